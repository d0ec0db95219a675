"""The stack seam, with all that lies between the matrix products and attention compiled into one pass each.

    entered        norm1, modulation, cast                    read fp32, write bf16
    turned         norm of queries or keys, rotary, cast      read bf16, write bf16
    after_self     x += gate * y;  norm3, cast                read fp32 and bf16, write both
    after_cross    x += y;         norm2, modulation, cast    the same
    after_ffn      x += gate * y                              read fp32 and bf16, write fp32
    rounded        fp8: a row's largest number, and the row divided by it (fp8.py), once for q, k and v

The slow twin is Block.forward, where each of these is two to five passes over tokens x width in fp32: some 74 GB a
block of the 14B at 720p, against 24 here, when a tensor is counted at each reading and writing. The numbers are the
same but for the last bits: the compiler may multiply and add in one rounding (steps.py prints how far).

Left out: VACE's hints, image tokens, times that differ from frame to frame, and blocks that are streamed, whose hook
this stack does not call.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broll.engine import fp8
from broll.engine.attention import merge_heads, split_heads
from broll.engine.fp8 import Fp8Linear
from broll.engine.rope import Rotary
from broll.engine.shapes import Tokens
from broll.engine.transformer import Block, Context, SelfAttention, Transformer


def entered(x: Tensor, shift: Tensor, scale: Tensor, eps: float, low: torch.dtype) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, (x.shape[-1],), None, None, eps), 1 + scale).to(low)


def turned(y: Tensor, weight: Tensor, own: Tensor, other: Tensor, heads: int, eps: float) -> Tensor:
    """`own` and `other`: what a number, and the one that makes a pair with it, are multiplied by; [n, d]."""
    z = F.rms_norm(y.float(), (y.shape[-1],), weight, eps).unflatten(-1, (heads, -1))
    swapped = z.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (z * own.unsqueeze(1) + swapped * other.unsqueeze(1)).to(y.dtype)


def normed(y: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(y.float(), (y.shape[-1],), weight, eps).to(y.dtype)


def after_self(
    x: Tensor, y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x = x + gate * y
    return x, F.layer_norm(x, (x.shape[-1],), weight, bias, eps).to(y.dtype)


def after_cross(x: Tensor, y: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x + y
    return x, entered(x, shift, scale, eps, y.dtype)


def after_ffn(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x + gate * y


def signs(rotary: Rotary) -> tuple[Tensor, Tensor]:
    """What `turned` wants of the turns: cosines twice, and sines with the sign of each number's own place."""
    cos, sin = rotary.real, rotary.imag
    own, other = torch.stack([cos, cos], dim=-1), torch.stack([-sin, sin], dim=-1)
    return own.flatten(1).contiguous(), other.flatten(1).contiguous()


class Pieces:
    """The functions above, compiled for any number of tokens, or as they are."""

    def __init__(self, *, compiled: bool) -> None:
        self.entered, self.turned = made(entered, compiled=compiled), made(turned, compiled=compiled)
        self.normed, self.after_ffn = made(normed, compiled=compiled), made(after_ffn, compiled=compiled)
        self.after_self, self.after_cross = (
            made(after_self, compiled=compiled),
            made(after_cross, compiled=compiled),
        )
        self.rounded = made(fp8.rounded, compiled=compiled)

    @staticmethod
    @functools.cache
    def of(*, compiled: bool) -> "Pieces":
        """Compiled once, for all parts."""
        return Pieces(compiled=compiled)


def made(function: Callable[..., Any], *, compiled: bool) -> Callable[..., Any]:
    if not compiled:
        return function
    fast = torch.compile(function, dynamic=False)  # only what is marked

    @functools.wraps(function)
    def call(first: Tensor, *rest: Any) -> Any:
        for value in (first, *rest):  # what is as long as there are tokens
            if isinstance(value, Tensor) and value.dim() > 1 and value.shape[-2] > 1:
                torch._dynamo.maybe_mark_dynamic(value, value.dim() - 2)
        return fast(first, *rest)

    return call


class Fused:
    """A stack for one model; its tables are made anew for each context."""

    def __init__(self, model: Transformer, pieces: Pieces, *, epilogue: bool = False) -> None:
        self._model, self._pieces, self._epilogue = model, pieces, epilogue
        self._tables: tuple[Rotary, tuple[Tensor, Tensor]] | None = None

    def each_block(self, tokens: Tokens, context: Context) -> Iterator[Tokens]:
        for block in self._model.blocks:
            assert isinstance(block, Block)
            tokens = self._block(block, tokens, context)
            yield tokens

    def _block(self, block: Block, x: Tokens, context: Context) -> Tokens:
        assert context.time is not None
        make, eps = self._pieces, self._model.config.eps
        time = context.time.view(1, -1, 6, x.shape[-1])
        shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation + time).unbind(2)
        low = make.entered(x, shift1, scale1, eps, context.dtype)
        y = self._self(block.self_attn, low, context)
        x, low = make.after_self(x, y, gate1, block.norm3.weight, block.norm3.bias, eps)
        y = self._cross(block, low, context)
        x, low = make.after_cross(x, y, shift2, scale2, eps)
        return make.after_ffn(x, self._ffn(block.ffn, low), gate2)

    def _self(self, own: SelfAttention, low: Tensor, context: Context) -> Tensor:
        make, eps, tables = self._pieces, self._model.config.eps, self._turns(context.rotary)
        q, k, v = self._products(low, own.q, own.k, own.v)
        q = make.turned(q, own.norm_q.weight, *tables, own.heads, eps).transpose(1, 2)
        k = make.turned(k, own.norm_k.weight, *tables, own.heads, eps).transpose(1, 2)
        out = own.attend(q, k, split_heads(v, own.heads), context.call("self", own.layer))
        return self._products(merge_heads(out), own.o)[0]

    def _cross(self, block: Block, low: Tensor, context: Context) -> Tensor:
        own = block.cross_attn
        (q,) = self._products(low, own.q)
        q = split_heads(self._pieces.normed(q, own.norm_q.weight, self._model.config.eps), own.heads)
        k, v = own._keys_values(own.k, own.norm_k, own.v, context.text, context)
        out = own.attend(q, k, v, context.call("text", own.layer))
        return self._products(merge_heads(out), own.o)[0]

    def _ffn(self, ffn: nn.Sequential, low: Tensor) -> Tensor:
        if self._epilogue and type(ffn[0]) is nn.Linear:
            inner = torch._addmm_activation(ffn[0].bias, low[0], ffn[0].weight.t(), use_gelu=True)[None]
        else:
            inner = F.gelu(self._products(low, ffn[0])[0], approximate="tanh")
        return self._products(inner, ffn[2])[0]

    def _products(self, x: Tensor, *linears: nn.Module) -> list[Tensor]:
        """Of one input; in fp8 it is rounded once for all of them."""
        if not isinstance(linears[0], Fp8Linear):
            return [linear(x) for linear in linears]
        q, size = self._pieces.rounded(x.flatten(0, -2))
        return [of_rounded(q, size, x, linear) for linear in linears]

    def _turns(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        if self._tables is None or self._tables[0] is not rotary:
            self._tables = rotary, signs(rotary)
        return self._tables[1]


def of_rounded(q: Tensor, size: Tensor, x: Tensor, linear: nn.Module) -> Tensor:
    assert isinstance(linear, Fp8Linear)
    bias = None if linear.bias is None else linear.bias.to(torch.bfloat16)
    y = fp8.product(q, linear.data.view(torch.float8_e4m3fn), size, linear.by_rows(), bias)
    return y.to(x.dtype).unflatten(0, x.shape[:-1])
