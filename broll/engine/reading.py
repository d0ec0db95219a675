"""How the bytes of tensors come out of a file: in its order, told to the system beforehand, let go once they are cast.

What is kept as it is in the file stays mapped, and takes no memory of its own but the system's copy of the file.
What is cast is mapped for the moment: its pages would be counted beside what is made of them.
"""

import math
import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from broll.engine.dequantize import HALVES
from broll.engine.stored import PLAIN, Entry, Span, Stored, as_rows

WINDOW = 1 << 28  # bytes that the system is told of in advance


class Ahead:
    """Tells the system which bytes of a file come next, each once, so that a disk has enough to do."""

    def __init__(self) -> None:
        self._told: dict[Path, int] = {}

    def __call__(self, entry: Entry) -> None:
        new = self.news(entry)
        if new is None or not hasattr(os, "posix_fadvise"):
            return
        path, begin, size = new
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, begin, size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)

    def news(self, entry: Entry) -> Span | None:
        """What has not been told yet of this entry and a window behind it."""
        if entry.span is None:
            return None
        path, start, size = entry.span
        begin, end = max(start, self._told.get(path, 0)), start + size + WINDOW
        if end <= begin:
            return None
        self._told[path] = end
        return path, begin, end - begin


def order(entry: Entry) -> tuple[str, int]:
    """By this, tensors are read as they lie in their files."""
    return ("", 0) if entry.span is None else (str(entry.span[0]), entry.span[1])


def can_cast(entry: Entry, dtype: torch.dtype) -> bool:
    return entry.span is not None and PLAIN.get(entry.kind, dtype) != dtype and math.prod(entry.shape) > 0


def cast(entry: Entry, dtype: torch.dtype) -> Tensor:
    """The numbers of a plain entry in another dtype."""
    return mapped(entry, PLAIN[entry.kind]).view(entry.shape).to(dtype)


def stays(entry: Entry, dtype: torch.dtype) -> bool:
    """Whether it is a matrix of 16-bit numbers, and not in this dtype anyway."""
    return HALVES.get(entry.kind, dtype) != dtype and len(entry.shape) == 2 and 0 not in entry.shape


def kept(entry: Entry) -> Stored:
    """A matrix of 16-bit numbers as it lies in its file."""
    tensor = entry.read() if entry.span is None else mapped(entry, HALVES[entry.kind]).view(entry.shape)
    assert isinstance(tensor, Tensor)
    return Stored(entry.kind, entry.shape, as_rows(tensor))


def mapped(entry: Entry, dtype: torch.dtype) -> Tensor:
    """The bytes of an entry, read as they are touched; they stay mapped as long as the tensor lives."""
    assert entry.span is not None
    path, start, size = entry.span
    begin = start - start % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        room = mmap.mmap(file.fileno(), start + size - begin, access=mmap.ACCESS_COPY, offset=begin)
    return torch.frombuffer(room, dtype=dtype, offset=start - begin, count=size // dtype.itemsize)
