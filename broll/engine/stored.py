"""A tensor as a checkpoint keeps it: its bytes, what kind they are, and how to read it when it is wanted.

    Entry     a name in a file with its shape and kind; nothing is read yet
    Stored    a tensor still in its bytes, quantized or in 16 bits: rows of blocks, and with fp8 a scale

Who reads gets a plain tensor or a Stored one, never bytes without their meaning.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from broll.engine.dequantize import KINDS, dequantize

# What safetensors and GGUF call the plain kinds.
PLAIN: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
READABLE = ", ".join([*PLAIN, *KINDS])


@dataclass(frozen=True)
class Stored:
    kind: str  # of dequantize.EVERY
    shape: tuple[int, ...]  # of the numbers
    data: UInt8[Tensor, "rows _"]
    scale: Float32[Tensor, "r parts 1"] | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def tensor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return dequantize(self.data, self.kind, dtype, self.scale).reshape(self.shape)


Value = Tensor | Stored
Span = tuple[Path, int, int]  # bytes of a file: which one, from where, how many


@dataclass(frozen=True)
class Entry:
    key: str  # its name in the file, for messages
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], Value]
    file: Path | None = None  # the shard that holds it
    span: Span | None = None  # where its bytes are; None: not known

    def plain(self, dtype: torch.dtype = torch.float32) -> Tensor:
        value = self.read()
        return value.tensor(dtype) if isinstance(value, Stored) else value

    def third(self, place: int) -> "Entry":
        """One of three equal parts of its first axis."""
        shape = (self.shape[0] // 3, *self.shape[1:])
        return replace(self, shape=shape, read=lambda: self.plain().chunk(3)[place], span=None)


Entries = dict[str, Entry]


def as_rows(tensor: Tensor) -> UInt8[Tensor, "rows _"]:
    """The bytes of a one-byte tensor, by its first axis."""
    rows = tensor.shape[0] if tensor.dim() > 1 else 1
    return tensor.contiguous().view(torch.uint8).reshape(rows, -1)
