"""The Linear seam for products of 8-bit integers: a weight is rounded as it is loaded, and x at every call.

    y = sx sw' * (p q') + b,    q = W / sw rounded, sw = max|row| / reach;    p = x / sx rounded, sx = max|token| / 127

Sums are exact integers, so all that is lost is lost in rounding: `rounded` and `product` are its definition, and a test
holds the kernels to them, sums exactly and results to 1e-6. `reach` is 127; a CPU without VNNI adds two products in 16
bits, which overflow beyond 64, so there it is 63 and a weight has 7 bits. One product says which it is.

A matrix that would lose more than LIMIT of itself stays as it is. So do those that the checkpoint has quantized.

    CPU     oneDNN, its operators those that torch's own compiler emits (torch/_inductor/fx_passes/quantization.py)
    CUDA    torch._int_mm, from compute capability 7.5 on
"""

import functools
import math

import torch
from torch import Tensor, nn

from broll.engine.dequantize import HALVES
from broll.engine.quantized import QuantizedLinear
from broll.engine.transformer import Block

LARGEST = 127  # of an 8-bit integer, on both sides of 0
SMALLER = 63
# Of a matrix, root mean square. Normally distributed numbers lose 0.8 % in 8 bits and 1.6 % in 7; with one column that
# is 30 times as large as the others 5.4 % and 10.9 % (1536 columns).
LIMIT = 0.03
MULTIPLE = 8  # what CUDA wants both sides of a matrix to be of
FEWEST = 17  # and the rows of x to be at least
# On a CPU, of x at a time, so that what lies between stays in the cache; and of a GELU
CPU_ROWS, GELU_ROWS = 512, 32
BELOW = -128  # where oneDNN's unsigned numbers begin


class Int8Linear(nn.Module):
    """`weight`: [rows, columns] integers, on a CPU in oneDNN's own layout; `scale`: [rows] in fp32."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, reach: int) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        integers, scale = rounded(weight, reach)
        self.packed = weight.device.type == "cpu"
        self.weight = laid_out(integers) if self.packed else integers
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.int64, device=weight.device))
        self.bias = bias

    scale: Tensor
    zeros: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if not self.packed:
            p, size = rounded(rows, LARGEST)
            return scaled(self.sums(p), self.scale, size, self.bias, x.dtype).unflatten(0, x.shape[:-1])
        y = rows.new_empty(len(rows), self.out_features)
        for part, out in zip(rows.split(CPU_ROWS), y.split(CPU_ROWS), strict=True):
            out.copy_(self.product(part))
        return y.unflatten(0, x.shape[:-1])

    def product(self, x: Tensor) -> Tensor:
        """[n, columns] to [n, rows] in fp32, on a CPU."""
        return self.of_rounded(*rounded(x, LARGEST))

    def of_rounded(self, p: Tensor, size: Tensor) -> Tensor:
        y = self.on_cpu(p)
        return y.mul_(size) if self.bias is None else torch.addcmul(self.bias.float(), y, size, out=y)

    def on_cpu(self, p: Tensor) -> Tensor:
        unsigned = p.view(torch.uint8).bitwise_xor_(-BELOW)  # p - BELOW; a quarter faster than signed ones
        return torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, -BELOW, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )  # fmt: skip

    def sums(self, p: Tensor) -> Tensor:
        """On a GPU: [n, columns] integers to [n, rows] of 32 bits."""
        missing = max(0, FEWEST - len(p))
        full = torch.nn.functional.pad(p, (0, 0, 0, missing)) if missing else p
        return torch._int_mm(full, self.weight.t())[: len(p)]  # noqa: SLF001  the only product of integers there is

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class FeedForward(nn.Sequential):
    """Of two such Linears on a CPU, [..., columns] to [..., rows]: some tokens at a time, and what lies between them
    stays in fp32 and is changed in place. A new tensor as large as that (18 MB of 512 tokens in the 1.3B) is pages that
    the system hands out and takes back at every call, which takes longer than the arithmetic (docs/engine/int8.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        first, _, second = self
        if not (isinstance(first, Int8Linear) and isinstance(second, Int8Linear)):  # a LoRA stands beside one
            return super().forward(x)
        rows = x.flatten(0, -2)
        y = rows.new_empty(len(rows), second.out_features)
        for part, out in zip(rows.split(CPU_ROWS), y.split(CPU_ROWS), strict=True):
            out.copy_(second.of_rounded(*rounded_(gelu_(first.product(part)), LARGEST)))
        return y.unflatten(0, x.shape[:-1])


def gelu_(y: Tensor) -> Tensor:
    """GELU(tanh) of [n, columns], in place: y / (1 + exp(-2 u)), u = sqrt(2 / pi) (y + 0.044715 y^3).

    torch's own calls tanh: 12 ms for 512 x 8,960 numbers on one core with AVX512, where this exponential takes 2.
    """
    twice = 2 * math.sqrt(2 / math.pi)
    u = torch.empty_like(y[:GELU_ROWS])
    for part in y.split(GELU_ROWS):
        here = torch.mul(part, part, out=u[: len(part)])
        part.mul_(here.mul_(0.044715 * twice).add_(twice).mul_(part).sigmoid_())
    return y


def rounded(x: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Every row as integers up to `reach`, and the scale [n, 1] that it was divided by."""
    return rounded_(x.to(torch.float32, copy=True), reach)


def rounded_(x: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """The same of x in fp32, which is used up."""
    most = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_())
    size = most.clamp_(min=1e-12).div_(reach)
    return x.div_(size).round_().to(torch.int8), size


def scaled(sums: Tensor, scale: Tensor, size: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    y = sums.float() * scale * size
    return (y if bias is None else y + bias).to(dtype)


def product(p: Tensor, size: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The definition, in double precision: [n, columns] and [rows, columns] integers with their scales."""
    y = (p.double() @ q.double().t()) * scale.double().t() * size.double()
    return y if bias is None else y + bias.double()


def laid_out(integers: Tensor) -> Tensor:
    return torch.ops.onednn.qlinear_prepack(integers, None)


def lost(weight: Tensor, reach: int) -> float:
    """What rounding takes from a matrix, root mean square and by its own size."""
    q, size = rounded(weight, reach)
    return float((q * size - weight).norm() / weight.float().norm().clamp(min=1e-12))


@functools.cache
def reach(device: torch.device) -> int:
    """How far the integers of a weight may go, so that sums are exact; 0: this device or torch has no such product."""
    for most in (LARGEST, SMALLER):
        try:
            one = Int8Linear(torch.full((64, 64), float(most), device=device), None, most)
            x = torch.full((FEWEST, 64), float(LARGEST), device=device)
            if bool((one(x) == 64 * most * LARGEST).all()):
                return most
        except (AttributeError, RuntimeError):
            return 0
    return 0


def use(model: nn.Module, device: torch.device) -> int:
    """Round the matrices of the blocks, in place, wherever that is possible; how many are integers now."""
    most, count = reach(device), 0
    for block in [module for module in model.modules() if isinstance(module, Block)] if most else []:
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear | QuantizedLinear):
                    child.to(device)  # one by one: all of them, not rounded yet, it may have no room for
                weight = plain(child)
                if weight is None or not fits(weight) or lost(weight, most) > LIMIT:
                    continue
                bias = child.bias
                assert bias is None or isinstance(bias, nn.Parameter)
                setattr(parent, name, Int8Linear(weight, bias, most))
                count += 1
        if device.type == "cpu":
            block.ffn = FeedForward(*block.ffn)
    return count


def rounding(count: int, device: torch.device) -> tuple[tuple[str, str], ...]:
    """For a record of what the weights were."""
    return (("int8", f"{count} matrices to {reach(device)}"),) if count else ()


def plain(layer: nn.Module) -> Tensor | None:
    """The numbers of a Linear that nobody has rounded yet."""
    if isinstance(layer, QuantizedLinear):
        return layer.dequantized(torch.float32) if layer.kind in HALVES else None
    return layer.weight.detach().float() if type(layer) is nn.Linear else None


def fits(weight: Tensor) -> bool:
    return not weight.is_meta and (
        weight.device.type == "cpu" or all(n % MULTIPLE == 0 for n in weight.shape)
    )
