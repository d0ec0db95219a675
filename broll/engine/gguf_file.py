"""GGUF: one file of named blocks. The gguf library walks through the container; here is what it does not check.

    general.architecture             "wan" for the transformer, "t5encoder" for umT5
    comfy.gguf.orig_shape.NAME       the shape of a tensor of more than four axes, which GGUF flattens
    dimensions                       innermost first; ours are the other way round

The file is mapped, copy on write: nothing is read before it is asked for. A tensor that lies beyond the end of the
file, does not fill its blocks or is of an unknown kind is named before anything is read. Long lists (a vocabulary)
are stepped over.

    format    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.gguf_reader import ReaderField
from torch import Tensor

from broll.engine.dequantize import KINDS
from broll.engine.stored import PLAIN, READABLE, Entries, Entry, Stored, Value

MOST_FIELDS = 1 << 16  # of metadata, or tensors; a real file has a thousand or two
MOST_STRINGS = 1 << 22  # in one list; umT5's vocabulary is 256384
MOST_AXES = 8
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


class Reader(GGUFReader):
    """The library's reader with two of its steps replaced: lists are not taken apart, tensors are checked."""

    def __init__(self, path: Path) -> None:
        self.found: Entries = {}
        self.source = path
        super().__init__(path, mode="c")

    def field(self, name: str) -> Any:
        """A string or a list of numbers; None if it is not there, or something else."""
        field = self.fields.get(name)
        if field is None or not field.data:
            return None
        part = field.parts[field.data[0]]
        return bytes(part).decode() if field.types == [GGUFValueType.STRING] else part.tolist()

    def _build_fields(self, offs: Any, count: Any) -> int:
        if self.byte_order != "I":
            raise ValueError("its byte order is that of another machine")
        limit(int(count), "fields")
        return super()._build_fields(offs, int(count))

    def _build_tensor_info(self, offs: Any, count: Any) -> tuple[int, list[ReaderField]]:
        limit(int(count), "tensors")
        return super()._build_tensor_info(offs, int(count))

    def _get_field_parts(
        self, orig_offs: Any, raw_type: Any
    ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data = self.data.data  # as bytes
        number, length = struct.unpack_from("<IQ", data, orig_offs)
        kind, offs = GGUFValueType(number), orig_offs + 12
        if kind == GGUFValueType.STRING:
            if length > MOST_STRINGS:
                raise ValueError(f"a list of {length} strings")
            for _ in range(length):
                offs += 8 + struct.unpack_from("<Q", data, offs)[0]
            return offs - orig_offs, [], [], [GGUFValueType.ARRAY, kind]
        values = self._get(offs, self.gguf_scalar_to_np[kind], length)
        if len(values) != length:
            raise ValueError(f"a list of {length} numbers, which are not there")
        return offs - orig_offs + values.nbytes, [values], [0], [GGUFValueType.ARRAY, kind]

    def _build_tensors(self, start_offs: Any, fields: list[ReaderField]) -> None:
        for field in fields:
            _, raw_name, _, dims, raw_kind, offset = field.parts
            name, shape = bytes(raw_name).decode(), [int(n) for n in reversed(dims)]
            if name in self.found:
                raise ValueError(f"{name} is there twice")
            kind = kind_name(name, int(raw_kind[0]))
            start = int(start_offs) + int(offset[0])
            size = stored_bytes(name, kind, shape)
            if start % 4 or start + size > len(self.data):
                raise ValueError(f"{name} lies beyond the end of the file")
            rows = math.prod(shape[:-1])
            shape = self._original_shape(name, shape)
            read = partial(read_tensor, self.data[start : start + size], kind, tuple(shape), rows)
            self.found[name] = Entry(name, tuple(shape), kind, read, span=(self.source, start, size))

    def _original_shape(self, name: str, shape: list[int]) -> list[int]:
        original = self.field(ORIGINAL_SHAPE + name)
        if original is None:
            return shape
        if not isinstance(original, list) or math.prod(original) != math.prod(shape) or min(original) < 1:
            raise ValueError(f"{name} has the shape {shape}, but its metadata says {original}")
        return original


def limit(count: int, what: str) -> None:
    if count > MOST_FIELDS:
        raise ValueError(f"{count} {what}")


def kind_name(name: str, number: int) -> str:
    try:
        kind = GGMLQuantizationType(number).name
    except ValueError:
        kind = f"number {number}"
    if kind not in PLAIN and kind not in KINDS:
        raise ValueError(f"{name} is of kind {kind}; possible are {READABLE}")
    return kind


def stored_bytes(name: str, kind: str, shape: Sequence[int]) -> int:
    if not 0 < len(shape) <= MOST_AXES:
        raise ValueError(f"{name} has {len(shape)} axes")
    count = math.prod(shape)
    if kind in PLAIN:
        return count * PLAIN[kind].itemsize
    values, size, _ = KINDS[kind]
    if shape[-1] % values:
        raise ValueError(f"{name} has rows of {shape[-1]}, which {kind} cannot cut into blocks of {values}")
    return count // values * size


def read_tensor(data: npt.NDArray[np.uint8], kind: str, shape: tuple[int, ...], rows: int) -> Value:
    raw: Tensor = torch.from_numpy(data)
    if kind in PLAIN:
        return raw.view(PLAIN[kind]).reshape(shape)
    return Stored(kind, shape, raw.reshape(rows, -1))


def open_gguf(path: Path) -> tuple[str | None, Entries]:
    """Its `general.architecture`, and what it holds. Raises ValueError and what the library raises."""
    reader = Reader(path)
    architecture = reader.field("general.architecture")
    return architecture if isinstance(architecture, str) else None, reader.found
