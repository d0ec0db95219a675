"""The Block seam, with all that lies between the matrix products and attention compiled into one pass each.

    entered        norm1, modulation, cast                    read fp32, write bf16
    turned         norm of queries or keys, rotary, cast      read bf16, write bf16
    after_self     x += gate * y;  norm3, cast                read fp32 and bf16, write both
    after_cross    x += y;         norm2, modulation, cast    the same
    after_ffn      x += gate * y                              read fp32 and bf16, write fp32
    rounded        fp8: a row's largest number, and the row divided by it (fp8.py), once for q, k and v
    rounded        int8 on a GPU: the same in integers (int8.py); scaled: sums of 32 bits, scales, bias, cast

The slow twin is Block.forward, where each of these is two to five passes over tokens x width in fp32: some 74 GB a
block of the 14B at 720p, against 24 here, when a tensor is counted at each reading and writing. The numbers are the
same but for the last bits: the compiler may multiply and add in one rounding. On CUDA, GELU is made inside the product.

It stands in each block's own `forward`, for one clip. So whoever runs blocks need not know, nor what stands in them:
hooks (offload.py), kernels, LoRAs, fp8, VACE's hints, times that differ from frame to frame. What a compiler costs is
paid by long clips only (`wanted`). See compiled.py for what happens when it fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broll.engine import compiled, fp8, int8, sparse, step_cache
from broll.engine.attention import merge_heads, split_heads
from broll.engine.compiled import Compiler, Dropped
from broll.engine.config import ModelConfig
from broll.engine.fp8 import Fp8Linear
from broll.engine.int8 import Int8Linear
from broll.engine.rope import Rotary
from broll.engine.shapes import Heads, TextTokens, Tokens
from broll.engine.transformer import Block, Context, CrossAttention, SelfAttention, Transformer
from broll.spec import VideoSpec

FEATURE = "blocks"
WIDE = 1536  # of a model: below, launching a kernel takes longer than what it does
# Tokens x width x blocks x forwards from which a clip takes less time with it: 6.7 s of compiling, and 3.4e-11 s saved
# by each of them, in benchmarks/results/h200-2026-11-26.json (14B: 0.27 s a forward at 480p, 0.52 at 720p).
PAYS = 2e11


# --- the passes -------------------------------------------------------------------------------------------


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
    """And `entered`, spelt out: tests check what each function is given, and here that would be compiled too."""
    x = x + y
    return x, torch.addcmul(shift, F.layer_norm(x, (x.shape[-1],), None, None, eps), 1 + scale).to(y.dtype)


def after_ffn(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x + gate * y


def signs(rotary: Rotary) -> tuple[Tensor, Tensor]:
    """What `turned` wants of the turns: cosines twice, and sines with the sign of each number's own place."""
    cos, sin = rotary.real, rotary.imag
    own, other = torch.stack([cos, cos], dim=-1), torch.stack([-sin, sin], dim=-1)
    return own.flatten(1).contiguous(), other.flatten(1).contiguous()


# --- a block of them --------------------------------------------------------------------------------------


class Passes:
    """Block.forward for the blocks of one model in one clip."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._tables: tuple[Rotary, tuple[Tensor, Tensor]] | None = None

    def forward(self, block: Block, x: Tokens, context: Context) -> Tokens:
        """The plain block as soon as a pass was dropped; of this one all is computed again."""
        if self._compiler.makes(FEATURE):
            try:
                return self._block(block, x, context)
            except Dropped:
                pass
        return type(block).forward(block, x, context)

    def _block(self, block: Block, x: Tokens, context: Context) -> Tokens:
        """The g parts of a clip that have times of their own are as many clips to the passes."""
        assert context.time is not None
        make, whole = self._pass, x.shape
        time = (block.modulation + context.time).flatten(0, 1).unsqueeze(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = time.unbind(1)
        x = x.reshape(len(time), -1, whole[-1])

        def parts(y: Tensor) -> Tensor:
            return y.reshape(x.shape)

        low = make(entered, x, shift1, scale1, block.norm1.eps, context.dtype)
        y = self._self(block.self_attn, low.reshape(whole), context)
        norm = block.norm3
        x, low = make(after_self, x, parts(y), gate1, norm.weight, norm.bias, norm.eps)
        y = self._cross(block.cross_attn, low.reshape(whole), context)
        x, low = make(after_cross, x, parts(y), shift2, scale2, block.norm2.eps)
        y = self._ffn(block.ffn, low.reshape(whole))
        return make(after_ffn, x, parts(y), gate2).reshape(whole)

    def _pass(self, function: Any, *given: Any) -> Any:
        def fast() -> Any:
            compiled.varied(*given)
            return self._compiler.of(function)(*given)

        return self._compiler.run(FEATURE, function.__name__, fast, partial(function, *given))

    def _self(self, own: SelfAttention, low: Tensor, context: Context) -> Tensor:
        q, k, v = self._products(low, own.q, own.k, own.v)
        tables = self._turns(context.rotary)
        q, k = (
            self._pass(turned, y, norm.weight, *tables, own.heads, norm.eps).transpose(1, 2)
            for y, norm in ((q, own.norm_q), (k, own.norm_k))
        )
        out = own.attend(q, k, split_heads(v, own.heads), context.call("self", own.layer))
        return self._products(merge_heads(out), own.o)[0]

    def _cross(self, own: CrossAttention, low: Tensor, context: Context) -> Tensor:
        (q,) = self._products(low, own.q)
        q = split_heads(self._pass(normed, q, own.norm_q.weight, own.norm_q.eps), own.heads)

        def attend(kind: str, to_k: nn.Module, norm: nn.Module, to_v: nn.Module, source: TextTokens) -> Heads:
            k, v = own.keys_values(to_k, norm, to_v, source, context)
            return own.attend(q, k, v, context.call(kind, own.layer))

        out = attend("text", own.k, own.norm_k, own.v, context.text)
        if context.image is not None:
            out = out + attend("image", own.k_img, own.norm_k_img, own.v_img, context.image)
        return self._products(merge_heads(out), own.o)[0]

    def _ffn(self, ffn: nn.Sequential, low: Tensor) -> Tensor:
        if len(ffn) == 2 or isinstance(ffn, int8.FeedForward):  # packed.py and int8.py have their own pass
            return ffn(low)
        return self._products(self._inner(ffn[0], ffn[1], low), ffn[2])[0]

    def _inner(self, linear: nn.Module, gelu: nn.Module, low: Tensor) -> Tensor:
        if type(linear) is not nn.Linear or not low.is_cuda:
            return gelu(self._products(low, linear)[0])

        def inside() -> Tensor:
            rows = low.flatten(0, -2)
            made = torch._addmm_activation(linear.bias, rows, linear.weight.t(), use_gelu=True)
            return made.unflatten(0, low.shape[:-1])

        return self._compiler.run(FEATURE, "gelu", inside, lambda: gelu(linear(low)))

    def _products(self, x: Tensor, *linears: nn.Module) -> list[Tensor]:
        """Of one input; in fp8, and in int8 on a GPU, it is rounded once for all of them."""
        fast = [linear for linear in linears if isinstance(linear, Fp8Linear)]
        if len(fast) == len(linears):
            q, size = self._pass(fp8.rounded, x.flatten(0, -2))
            return [linear.of_rounded(q, size, x) for linear in fast]
        whole = [linear for linear in linears if isinstance(linear, Int8Linear) and not linear.packed]
        if len(whole) == len(linears):
            p, size = self._pass(int8.rounded, x.flatten(0, -2), int8.LARGEST)
            sums = [(linear.sums(p), linear.scale, size, linear.bias, x.dtype) for linear in whole]
            return [self._pass(int8.scaled, *one).unflatten(0, x.shape[:-1]) for one in sums]
        return [linear(x) for linear in linears]

    def _turns(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        if self._tables is None or self._tables[0] is not rotary:
            self._tables = rotary, signs(rotary)
        return self._tables[1]


# --- for a clip -------------------------------------------------------------------------------------------


@contextmanager
def on(model: Transformer, compiler: Compiler, *, wanted: bool) -> Iterator[None]:
    """In all blocks of the model; if it is not wanted, nothing is changed."""
    blocks = [module for module in model.modules() if isinstance(module, Block)] if wanted else []
    passes = Passes(compiler)
    for block in blocks:
        vars(block)["forward"] = partial(passes.forward, block)  # before the class's own; hooks stay
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def wanted(spec: VideoSpec, config: ModelConfig, compiler: Compiler) -> bool:
    """Whether this clip is made so. Of a resolved spec, so that two machines with one setting agree."""
    if not compiler.makes(FEATURE):
        return False
    return compiler.how == compiled.ON or pays(spec, config)


def pays(spec: VideoSpec, config: ModelConfig) -> bool:
    """Whether it saves more time than compiling takes, where nothing is compiled yet."""
    c = config.transformer
    forwards = step_cache.forwards(spec, config)
    numbers = sparse.grid_of(spec, config).size * c.dim * (c.num_layers + len(c.vace_layers))
    return c.dim >= WIDE and numbers * forwards >= PAYS


def named(spec: VideoSpec, config: ModelConfig, compiler: Compiler) -> str:
    """What is compiled for this clip, for the record."""
    features = {
        FEATURE: wanted(spec, config, compiler),
        sparse.FEATURE: sparse.by_flex(spec, config, compiler),
    }
    return " ".join(name for name, so in features.items() if so)
