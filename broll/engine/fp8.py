"""The Linear seam for products in fp8 itself: the weight as it is stored, and x rounded to it too.

    y = sx sw' * (q W') + b,    sx = max|x| / 448 of each token,    q = x / sx in e4m3

The slow twin is QuantizedLinear, which dequantizes: exact to the stored weight. Here x is rounded as well, by 2.7 % of
its size (root mean square), so this is only for who asks for it (`Precision.native_fp8`). A model keeps its bytes.

For e4m3 with one scale for the matrix or each row, on devices whose `torch._scaled_mm` takes scales by rows: one
product is tried. Everything else goes on as it was.
"""

import functools

import torch
from torch import Tensor, nn

from broll.engine.quantized import QuantizedLinear

LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
MULTIPLE = 16  # that both sides of a matrix must be of


class Fp8Linear(QuantizedLinear):
    def __init__(self, linear: QuantizedLinear) -> None:
        super().__init__(linear.stored, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_rounded(*rounded(x.flatten(0, -2)), x)

    def of_rounded(self, q: Tensor, size: Tensor, x: Tensor) -> Tensor:
        """Of an x that is rounded already, for several Linears that share it."""
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        y = product(q, self.data.view(torch.float8_e4m3fn), size, self.by_rows(), bias)
        return y.to(x.dtype).unflatten(0, x.shape[:-1])

    def by_rows(self) -> Tensor:
        """Its scales [1, rows]."""
        scale = self.scale
        if scale is None:
            return torch.ones(1, self.rows, device=self.data.device)
        return scale.reshape(1, -1).expand(1, self.rows).contiguous()


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every row of x in e4m3, and the scale [n, 1] that it was divided by."""
    least, most = x.aminmax(dim=1, keepdim=True)  # one reading; abs and a cast would write it anew in fp32
    size = torch.maximum(-least, most).float().clamp(min=1e-12) / LARGEST
    return (x / size).to(torch.float8_e4m3fn), size  # what rounding makes of 448 is still nearest to 448


def product(q: Tensor, weight: Tensor, size: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return torch._scaled_mm(q, weight.t(), scale_a=size, scale_b=scale, bias=bias, out_dtype=torch.bfloat16)


@functools.cache
def available(device: torch.device) -> bool:
    """Whether this device and this torch multiply fp8 with scales by rows: one product is tried."""
    try:
        q, size = rounded(torch.ones(MULTIPLE, MULTIPLE, device=device))
        y = product(
            q, q, size, size.t().contiguous(), torch.ones(MULTIPLE, device=device, dtype=torch.bfloat16)
        )
        return bool((y == MULTIPLE + 1).all())
    except (AttributeError, RuntimeError):
        return False


def fits(layer: nn.Module) -> bool:
    if not isinstance(layer, QuantizedLinear) or layer.kind != "F8_E4M3":
        return False
    parts = 1 if layer.scale is None else layer.scale.shape[1]
    return parts == 1 and layer.rows % MULTIPLE == 0 and layer.columns % MULTIPLE == 0


def use(model: nn.Module) -> int:
    """Multiply natively wherever that is possible, in place; how many Linears do so now."""
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if fits(child) and available(child.data.device)
    ]
    for parent, name in places:
        layer = getattr(parent, name)
        assert isinstance(layer, QuantizedLinear)
        setattr(parent, name, Fp8Linear(layer))
    return len(places)


def multiplied(count: int) -> tuple[tuple[str, str], ...]:
    """For a record of what the weights were."""
    return (("native_fp8", f"{count} matrices"),) if count else ()
