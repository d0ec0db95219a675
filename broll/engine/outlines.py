"""What the usual operations give on the meta device: shape and dtype, and nothing else.

torch works it out in Python, and imports its compiler for it: two seconds, for who asks what a clip takes. So these
stand in a table; an operation that is not in it, or not among meta tensors alone, is left to torch.
tests/engine/test_estimate.py holds the table against torch's own answer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def on_meta_only(args: Any, given: Mapping[str, Any]) -> bool:
    """Tensors and results of an operation; and numbers with a point, since others may become such."""
    tensors = [x for x in tree_leaves((args, given)) if isinstance(x, Tensor)]
    kinds: list[tuple[Any, Any]] = [(x.device, x.dtype) for x in tensors] or [
        (given.get("device"), given.get("dtype"))
    ]
    return all(
        str(device) == "meta" and dtype and (dtype.is_floating_point or dtype.is_complex)
        for device, dtype in kinds
    )


def normed(x: Tensor, shape: Sequence[int], *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    rest = (*x.shape[: x.dim() - len(shape)], *(1 for _ in shape))
    mean, deviation = (x.new_empty(rest, dtype=torch.float32) for _ in range(2))
    return alike(x), mean, deviation


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape, dtype = list(parts[0].shape), parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return parts[0].new_empty(shape, dtype=dtype)


def reduced(x: Tensor, dims: Sequence[int], *keep: bool, dtype: torch.dtype | None = None) -> Tensor:
    gone = {dim % x.dim() for dim in dims}
    shape = [1 if i in gone else n for i, n in enumerate(x.shape) if any(keep) or i not in gone]
    return x.new_empty(shape, dtype=dtype)


def paired(a: Any, b: Any, *more: Tensor, **_: Any) -> Tensor:
    """Of shapes that fit each other."""
    shapes = [tuple(x.shape) for x in (a, b, *more) if isinstance(x, Tensor)]
    axes = max(map(len, shapes))
    padded = [(1,) * (axes - len(shape)) + shape for shape in shapes]
    shape = [max(sizes) if 0 not in sizes else 0 for sizes in zip(*padded, strict=True)]
    dtype = torch.result_type(a, b)
    for other in more:
        dtype = torch.promote_types(dtype, other.dtype)
    return torch.empty(shape, dtype=dtype, device="meta")


def convolved(
    x: Tensor, weight: Tensor, _: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], *__: Any,
) -> Tensor:  # fmt: skip
    """Not of a transposed one, which no model here has."""
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
    return x.new_empty(x.shape[0], weight.shape[0], *sizes)


def alike(x: Tensor, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def itself(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


ALIKE = (
    "gelu", "silu", "neg", "cos", "sin", "clamp", "rsqrt", "clone", "empty_like", "zeros_like", "ones_like",
)  # fmt: skip
aten = torch.ops.aten
OUTLINES: dict[Any, Callable[..., Any]] = {
    aten.addmm.default: lambda bias, x, weight: x.new_empty(x.shape[0], weight.shape[1]),
    aten.arange.default: lambda end, dtype=None, **_: torch.empty(end, dtype=dtype, device="meta"),
    aten.div.out: lambda a, b, out: out,
    aten.native_layer_norm.default: normed,
    aten.linalg_vector_norm.default: lambda x, order, *how, **given: reduced(x, *how, **given),
    aten.convolution.default: convolved,
    aten.mean.dim: reduced,
    aten.cat.default: joined,
    aten.div.Tensor: paired,
    aten.mul.Tensor: paired,
    aten.add.Tensor: paired,
    aten.addcmul.default: paired,
    aten.pow.Scalar: paired,
    aten.pow.Tensor_Scalar: alike,
    aten._upsample_nearest_exact2d.default: lambda x, size, *_: x.new_empty(*x.shape[:2], *size),  # noqa: SLF001
    aten.silu_.default: itself,
    aten.mul_.Tensor: itself,
    aten.add_.Tensor: itself,
    aten.add_.Scalar: itself,
} | {getattr(aten, name).default: alike for name in ALIKE}
