"""What carries a LoRA inside a model: a Linear with something beside it, and a parameter with another one in its place.

    beside     y = base(x) + up(scale * weight * down(x)) + weight * (diff x + diff_b), whatever the base is: plain,
               packed or quantized; in the dtype of that Linear, and before an activation that the base carries
    swapped    W + weight * diff, in fp32, instead of W

Both know their pieces by the place of the LoRA in the stack, and take a new mixture of weights at any time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broll.engine.lora_files import Delta
from broll.engine.packed import PackedLinear

Weights = tuple[float, ...]  # of the LoRAs of a stack, at one step
Piece = tuple[int, Delta]  # place of its LoRA in the stack


class BesideLinear(nn.Module):
    """All ranks of all LoRAs in two products; full differences, which are rare, in a third."""

    like: Tensor
    down: Tensor | None
    up: Tensor | None
    scales: Tensor | None
    dense: Tensor | None
    bias: Tensor | None

    def __init__(self, base: nn.Module, like: Tensor) -> None:
        """`like` has the device and the dtype to compute in."""
        super().__init__()
        self.base = base
        self.active = False
        self.pieces: tuple[Piece, ...] = ()
        self.register_buffer("like", like, persistent=False)
        for name in ("down", "up", "scales", "dense", "bias"):
            self.register_buffer(name, None, persistent=False)

    def hold(self, pieces: Sequence[Piece]) -> None:
        """Take these deltas; the same ones again cost nothing."""
        before, self.pieces = self.pieces, tuple(pieces)
        if [delta for _, delta in before] == [delta for _, delta in pieces]:  # compared by identity
            return
        downs = [d.down.flatten(1).to(self.like) for _, d in pieces if d.down is not None]
        ups = [d.up.flatten(1).to(self.like) for _, d in pieces if d.up is not None]
        self.down = torch.cat(downs) if len(downs) > 1 else next(iter(downs), None)
        self.up = torch.cat(ups, dim=1) if len(ups) > 1 else next(iter(ups), None)

    def mix(self, weights: Weights) -> None:
        """Give every LoRA its weight."""
        self.active = any(weights[i] for i, _ in self.pieces)
        scales = [torch.full((d.rank,), weights[i] * d.scale) for i, d in self.pieces if d.rank]
        self.scales = torch.cat(scales).to(self.like.device) if scales else None
        dense = mixed(((weights[i], d.diff) for i, d in self.pieces), self.like.device)
        bias = mixed(((weights[i], d.diff_b) for i, d in self.pieces), self.like.device)
        self.dense = None if dense is None else dense.to(self.like)
        self.bias = None if bias is None else bias.to(self.like)

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        if not self.active:
            return base(x)
        y = base.product(x) if isinstance(base, PackedLinear) else base(x)
        if self.down is not None and self.up is not None and self.scales is not None:
            low = F.linear(x, self.down)
            low = (low * self.scales).to(low.dtype)  # the scales are fp32
            y = torch.addmm(y.flatten(0, -2), low.flatten(0, -2), self.up.t()).view_as(y)
        if self.dense is not None:
            y = y + F.linear(x, self.dense)
        if self.bias is not None:
            y = y + self.bias
        return base.activate(y) if isinstance(base, PackedLinear) else y


@dataclass(frozen=True, eq=False)
class Swapped:
    """A parameter, the tensor it was loaded with, and differences by the place of their LoRA in the stack."""

    parameter: nn.Parameter
    original: Tensor
    differences: tuple[tuple[int, Tensor], ...]

    def mix(self, weights: Weights) -> None:
        device = self.original.device
        total = mixed(((weights[i], difference) for i, difference in self.differences), device)
        if total is None:
            self.restore()
        else:
            total = total.reshape(self.original.shape) + self.original.float()
            self.parameter.data = total.to(self.original.dtype)

    def restore(self) -> None:
        self.parameter.data = self.original


def mixed(parts: Iterable[tuple[float, Tensor | None]], device: torch.device) -> Tensor | None:
    """Sum of weight * difference, in fp32; None if nothing is left."""
    total: Tensor | None = None
    for weight, difference in parts:
        if weight and difference is not None:
            part = weight * difference.to(device, torch.float32)
            total = part if total is None else total + part.reshape(total.shape)
    return total
