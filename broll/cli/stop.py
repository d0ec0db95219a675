"""Ctrl-C and SIGTERM, anywhere in the work.

Either raises KeyboardInterrupt where the main thread is, so that a forward of minutes ends within one
operation. Some libraries swallow what is raised while they are imported: `check` raises it again. While a
snapshot is being written, further signals are ignored.
"""

import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager

from broll.errors import BrollError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BrollError):
    """Stopped."""

    code = "stopped"

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signum


class Stop:
    def __init__(self) -> None:
        self.signum = 0
        self.saving = False

    def __call__(self, signum: int, _frame: types.FrameType | None) -> None:
        self.signum = self.signum or signum
        if not self.saving:
            raise KeyboardInterrupt

    def check(self) -> None:
        if self.signum:
            raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
