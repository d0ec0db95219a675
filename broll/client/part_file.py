"""A download that can be gone on with, and a file that is whole or not there.

.NAME.xxxx.part     grows beside the place it is for; renamed when it is complete, removed if that fails
Range, If-Range     after a broken connection only the rest is asked for, and only if the file is the same
                    (its ETag); else the server sends all of it, and all of it is taken
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from broll.client.errors import ConnectionFailed, UnexpectedAnswer
from broll.errors import OutputError


class PartFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")
        self._etag = ""
        self._size, self._total = 0, -1  # bytes here; bytes of the whole, -1: not said
        self._furthest = 0

    def __enter__(self) -> Self:
        with self._writing():
            self._file = self._part.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def headers(self) -> dict[str, str]:
        """What to ask for: the rest, if it is known to be the rest of the same."""
        if not self._size or not self._etag or self._etag.startswith("W/"):
            return {}
        return {"Range": f"bytes={self._size}-", "If-Range": self._etag}

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """An answer came; its body follows."""
        if status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", ""))
            if match is None or int(match[1]) != self._size:
                raise UnexpectedAnswer(f"the server sent another part of {self.path.name} than was asked for")
            self._total = -1 if match[2] == "*" else int(match[2])
            return
        with self._writing():
            self._file.seek(0)
            self._file.truncate()
        self._size, self._total = 0, int(headers.get("content-length", -1))
        self._etag = headers.get("etag", "")

    def write(self, chunk: bytes) -> bool:
        """True if it is further now than ever before."""
        with self._writing():
            self._file.write(chunk)
        self._size += len(chunk)
        further, self._furthest = self._size > self._furthest, max(self._size, self._furthest)
        return further

    def finish(self) -> Path:
        """The whole file, in its place."""
        if self._total not in (-1, self._size):
            raise ConnectionFailed(f"{self.path.name} broke off after {self._size} of {self._total} bytes")
        with self._writing():
            self._file.close()
            self._part.replace(self.path)
        return self.path

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"cannot write {self.path}: {reason}") from error
