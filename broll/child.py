"""`python -m broll.child`, the local executor's: a renderer, and lanes that Work comes in by and events go out by.

The first lane is stdin and stdout; each file descriptor that is given is a socket, and one more. Each lane has a
thread, and one job at a time. Whatever a library prints goes to stderr.
"""

import os
import queue
import socket
import sys
import threading
from typing import BinaryIO

from broll import scratch
from broll.errors import BrollError
from broll.events import Stop, Work, pack, unpack
from broll.renderer import Flag, Renderer
from broll.settings import Settings


def serve(*descriptors: int) -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    renderer = Renderer(Settings())
    for descriptor in descriptors:
        ends = socket.socket(fileno=descriptor)
        lane = threading.Thread(
            target=along, args=(renderer, ends.makefile("rb"), ends.makefile("wb")), daemon=True
        )
        lane.start()
    along(renderer, sys.stdin.buffer, out, first=True)


def along(renderer: Renderer, source: BinaryIO, out: BinaryIO, *, first: bool = False) -> None:
    """Work from here, events there, for as long as the dispatcher lives."""
    waiting: queue.Queue[Work] = queue.Queue()
    flag = Flag()

    def listen() -> None:
        for message in unpack(source):
            if isinstance(message, Stop):
                flag.soon, flag.now = True, message.now
            else:
                flag.soon = flag.now = False  # here, so that a Stop right behind its Work is not lost
                waiting.put(message)
        if first:
            scratch.clear(os.getpid())
            os._exit(0)  # the dispatcher is gone

    threading.Thread(target=listen, daemon=True).start()
    while True:
        for event in renderer.run(waiting.get(), flag):
            out.write(pack(event))
            out.flush()


if __name__ == "__main__":
    try:
        serve(*map(int, sys.argv[1:]))
    except BrollError as error:
        sys.exit(str(error))
