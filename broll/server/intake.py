"""An uploaded picture, decoded where it can do no harm, and written anew.

    parent    bytes to the child's stdin; PNG from its stdout, or one line of JSON from its stderr
    child     python -m broll.server.intake MEMORY SECONDS: limits first, then the bytes, then the decoder

Decoders are C, and fed by strangers. In a process of its own a picture can exhaust, crash or stall only that process,
which has no secrets in its environment, writes no file, and dies when its time is up. What comes back is pixels: no
archive appended to the file, no place, no owner. `broll.media.pictures` says which pictures are taken.

Left out: a sandbox. Code that took over the child would run as this user. How many run at once is the caller's choice.
"""

import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass

from PIL import Image

from broll.errors import BadImage, BrollError
from broll.media.pictures import MAX_BYTES, open_picture, to_png

PNG = b"\x89PNG\r\n\x1a\n"
MAX_OPEN_FILES = 32  # Pillow loads its decoders when they are needed


@dataclass(frozen=True)
class Cleaned:
    png: bytes
    width: int
    height: int


def clean_picture(data: bytes, *, timeout_s: float = 20.0, memory_bytes: int = 1_500_000_000) -> Cleaned:
    """The picture, upright, RGB, carrying nothing else; or BadImage."""
    if not data:
        raise BadImage("the file is empty; it must be a picture")
    if len(data) > MAX_BYTES:
        raise BadImage(f"the file has {len(data) / 1e6:.0f} MB; a picture may have {MAX_BYTES // 10**6} MB")
    png = decode_elsewhere(data, timeout_s, memory_bytes)
    if png[: len(PNG)] != PNG or len(png) < 24:
        raise BadImage("the picture could not be decoded")
    # https://www.w3.org/TR/png-3/#11IHDR: always the first chunk, and it begins with the size
    width, height = struct.unpack(">II", png[16:24])
    return Cleaned(png, width, height)


def decode_elsewhere(data: bytes, timeout_s: float, memory_bytes: int) -> bytes:
    late = BadImage(f"the picture takes more than {timeout_s:g} s to decode, which is the most it may")
    with subprocess.Popen(  # noqa: S603  nothing of the command comes from outside
        command(timeout_s, memory_bytes),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd="/",
        start_new_session=True,
    ) as child:
        try:
            png, said = child.communicate(data, timeout_s)
        except subprocess.TimeoutExpired as failure:
            raise late from failure
        finally:
            end(child)
    if child.returncode == 0:
        return png
    if child.returncode == -signal.SIGXCPU:
        raise late
    raise refusal(said, child.returncode)


def command(timeout_s: float, memory_bytes: int) -> list[str]:
    """-P: nothing is imported from the working directory; -B: nothing is written where it was imported from."""
    limits = [str(memory_bytes), str(math.ceil(timeout_s))]
    return [sys.executable, "-P", "-B", "-m", "broll.server.intake", *limits]


def environment() -> dict[str, str]:
    """Nothing of ours. OpenBLAS would reserve memory for every core there is."""
    return {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def end(child: subprocess.Popen[bytes]) -> None:
    """With its children, should it have made some."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)


def refusal(said: bytes, returncode: int) -> BrollError:
    """Why there is no picture: its own fault, or this installation's."""
    if returncode < 0:
        return BadImage("the picture could not be decoded: its decoder was killed over it")
    last = (said.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
    try:
        return BadImage(str(json.loads(last)["error"]))
    except (ValueError, TypeError, LookupError):
        return BrollError(f"the decoder of pictures does not start: {last[:200]}")


def limit(memory_bytes: int, seconds: int) -> None:
    """For this process and for good. SIGXCPU comes at the soft limit, SIGKILL at the hard one."""
    for kind, soft, hard in [
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
    ]:
        _, highest = resource.getrlimit(kind)
        top = hard if highest == resource.RLIM_INFINITY else min(hard, highest)
        resource.setrlimit(kind, (min(soft, top), top))


def decoded(data: bytes) -> bytes:
    """PNG, or BadImage whatever happens: what Pillow raises on a picture is the picture's fault."""
    try:
        return to_png(open_picture(data))
    except BadImage as failure:
        if isinstance(failure.__cause__, MemoryError):
            raise BadImage("the picture takes too much memory to decode") from failure
        raise
    except MemoryError as failure:
        raise BadImage("the picture takes too much memory to decode") from failure
    except Exception as failure:
        raise BadImage("the picture is damaged or cut off") from failure


def main() -> int:
    limit(int(sys.argv[1]), int(sys.argv[2]))
    Image.preinit()
    try:
        png = decoded(sys.stdin.buffer.read())
    except BadImage as failure:
        sys.stderr.write(json.dumps({"error": str(failure)}) + "\n")
        return 1
    sys.stdout.buffer.write(png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
