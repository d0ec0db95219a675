"""Stored bytes to numbers: fp8, int8 and the block formats of GGUF, in torch, on any device.

A kind cuts every row of a matrix into blocks of so many values, each kept in so many bytes; fp8 is a block of one.
Inside a block, d and m are scale and offset (fp16), q the small integers:

    Q8_0  Q5_0  Q4_0    x = d q                            32 values
    Q5_1  Q4_1          x = d q + m                        32 values
    Q6_K                x = (d s) q                        256 values, a scale s for each 16
    Q5_K  Q4_K          x = (d s) q - (dmin t)             256 values, scale s and offset t for each 32

The order of operations is that of the gguf library, so that results are its own, bit for bit
(tests/engine/test_dequantize.py). A matrix is done a few rows at a time: what is needed beside the result is small.

    layouts    https://github.com/ggml-org/ggml (src/ggml-common.h)

Left out: Q2_K, Q3_K, the IQ and ternary kinds, MXFP4 and NVFP4. They are refused by name.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

Blocks = UInt8[Tensor, "n bytes"]
Values = Float32[Tensor, "n values"]

CHUNK = {"cpu": 1 << 20}  # values at a time: what a cache holds; elsewhere what keeps a GPU busy
CHUNK_ELSEWHERE = 1 << 24


class Kind(NamedTuple):
    values: int  # of one block
    bytes: int  # that one block takes
    read: Callable[[Tensor], Tensor]  # [n, bytes] -> [n, values], fp32


def _half(blocks: Tensor, start: int) -> Tensor:
    """The fp16 number at this byte of every block."""
    return (
        blocks[:, start : start + 2].clone(memory_format=torch.contiguous_format).view(torch.float16).float()
    )


def _nibbles(packed: Tensor) -> Tensor:
    """[n, k] bytes: the low halves of all, then the high halves. [n, 2, k]"""
    return torch.stack([packed & 15, packed >> 4], dim=1)


def _bits(packed: Tensor) -> Tensor:
    """[..., k] bytes -> [..., k, 8] bits, the lowest first."""
    return (packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1


def _q8_0(b: Blocks) -> Values:
    return b[:, 2:].view(torch.int8).float() * _half(b, 0)


def _q4_0(b: Blocks) -> Values:
    return _half(b, 0) * (_nibbles(b[:, 2:]).flatten(1).float() - 8)


def _q4_1(b: Blocks) -> Values:
    return _half(b, 0) * _nibbles(b[:, 4:]).flatten(1).float() + _half(b, 2)


def _five(high: Tensor, low: Tensor) -> Tensor:
    return (_nibbles(low).flatten(1) | (_bits(high).flatten(1) << 4)).float()


def _q5_0(b: Blocks) -> Values:
    return _half(b, 0) * (_five(b[:, 2:6], b[:, 6:]) - 16)


def _q5_1(b: Blocks) -> Values:
    return _half(b, 0) * _five(b[:, 4:8], b[:, 8:]) + _half(b, 2)


def _scales_offsets(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve bytes hold eight scales and eight offsets of six bits. Each [n, 8]"""
    first, second, rest = packed.unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat([first & 63, (rest & 15) | ((first >> 2) & 48)], dim=1)
    offsets = torch.cat([second & 63, (rest >> 4) | ((second >> 2) & 48)], dim=1)
    return scales.float(), offsets.float()


def _k(b: Blocks, q: Tensor) -> Values:
    """Q4_K and Q5_K, q [n, 8, 32]."""
    scales, offsets = _scales_offsets(b[:, 4:16])
    d, m = (_half(b, 0) * scales)[..., None], (_half(b, 2) * offsets)[..., None]
    return (d * q.float() - m).flatten(1)


def _q4_k(b: Blocks) -> Values:
    return _k(b, _nibbles(b[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32))


def _q5_k(b: Blocks) -> Values:
    high = _bits(b[:, 16:48]).transpose(1, 2)  # n 8 32: bit g belongs to group g
    low = _nibbles(b[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32)
    return _k(b, low | (high << 4))


def _q6_k(b: Blocks) -> Values:
    low = _nibbles(b[:, :128].reshape(-1, 64)).reshape(-1, 8, 32)
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=b.device)[:, None]
    high = (b[:, 128:192].reshape(-1, 1, 32) >> pairs).reshape(-1, 8, 32) & 3
    q = (low | (high << 4)).float() - 32
    d = _half(b, 208) * b[:, 192:208].view(torch.int8).float()
    return (d[..., None] * q.reshape(-1, 16, 16)).flatten(1)


def _as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda blocks: blocks.view(dtype).float()


KINDS: dict[str, Kind] = {
    "F8_E4M3": Kind(1, 1, _as(torch.float8_e4m3fn)),
    "F8_E5M2": Kind(1, 1, _as(torch.float8_e5m2)),
    "I8": Kind(1, 1, _as(torch.int8)),
    "Q8_0": Kind(32, 34, _q8_0),
    "Q6_K": Kind(256, 210, _q6_k),
    "Q5_K": Kind(256, 176, _q5_k),
    "Q5_1": Kind(32, 24, _q5_1),
    "Q5_0": Kind(32, 22, _q5_0),
    "Q4_K": Kind(256, 144, _q4_k),
    "Q4_1": Kind(32, 20, _q4_1),
    "Q4_0": Kind(32, 18, _q4_0),
}
# Not quantized, but kept like it where fp32 is computed in (load.Precision.halves).
HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
EVERY = KINDS | {name: Kind(1, 2, _as(dtype)) for name, dtype in HALVES.items()}


def dequantize(
    data: UInt8[Tensor, "rows _"],
    kind: str,
    dtype: torch.dtype,
    scale: Float32[Tensor, "r parts 1"] | None = None,
    out: Float[Tensor, "rows columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """`scale` multiplies each of `parts` equal parts of a row; r is 1 (all rows alike) or the rows."""
    values, size, read = EVERY[kind]
    rows, columns = data.shape[0], data.shape[1] // size * values
    if out is None:
        out = torch.empty(rows, columns, dtype=dtype, device=data.device)
    if kind in HALVES:
        return out.copy_(data.view(HALVES[kind]))
    step = max(1, CHUNK.get(data.device.type, CHUNK_ELSEWHERE) // max(1, columns))
    for start in range(0, rows, step):
        part = data[start : start + step]
        numbers = read(part.reshape(-1, size)).view(len(part), columns)
        if scale is not None:
            own = scale if scale.shape[0] == 1 else scale[start : start + step]
            numbers = (numbers.unflatten(1, (own.shape[1], -1)) * own).flatten(1)
        out[start : start + step] = numbers
    return out
