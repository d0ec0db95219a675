"""The Linear seam on CPUs: weights kept in oneDNN's own blocked layout, and GELU inside the product.

torch's plain Linear reorders its weight at every call, and its GELU makes another trip through memory. Packed once,
neither happens. A packed Linear agrees with a plain one to bf16 rounding; with GELU inside,
the result is rounded once instead
of twice (tests/engine/test_packed.py, benchmarks/engine.py).

The operators are those that torch's own compiler emits (torch/_inductor/mkldnn_lowerings.py); where a build lacks
them, or the CPU has no AVX512 for them, `pack` leaves the model as it is.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broll.engine.transformer import Block, Transformer


class PackedLinear(nn.Module):
    """y = x W' + b, optionally through GELU(tanh). The plain weight is given up.

    A weight on the meta device is packed when it comes (offload.py).
    """

    weight: Tensor | None

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self.weight = None if linear.weight.is_meta else self.laid_out(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = ("gelu", "tanh") if gelu else ("none", "")

    @staticmethod
    def laid_out(weight: Tensor) -> Tensor:
        """In oneDNN's own layout; a new tensor."""
        return torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        name, algorithm = self.activation
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)

    def product(self, x: Tensor) -> Tensor:
        """Without the GELU, for what is added before it (lora_layers.py)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def activate(self, y: Tensor) -> Tensor:
        return F.gelu(y, approximate="tanh") if self.activation[0] == "gelu" else y


@functools.cache
def available() -> bool:
    """Whether this build has the operators and this CPU can run them in bf16: one is tried."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        PackedLinear(nn.Linear(8, 8, dtype=torch.bfloat16))(torch.zeros(1, 8, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError):
        return False
    return True


def pack(model: Transformer) -> Transformer:
    """Pack the Linears inside the blocks of a bf16 model on a CPU, in place; others stay as they are."""
    weight = model.head.head.weight
    if model.compute_dtype != torch.bfloat16 or weight.device.type != "cpu" or not available():
        return model
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        for attention in (block.self_attn, block.cross_attn):
            for name, child in list(attention.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(attention, name, PackedLinear(child))
        first, _, second = block.ffn
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        block.ffn = nn.Sequential(PackedLinear(first, gelu=True), PackedLinear(second))
    return model
