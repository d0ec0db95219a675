"""The attend seam: softmax(q k' / sqrt(d) + bias) v, and who computes it.

`reference` is the definition. Everything else is held to it by a test where it can run, and by kernels.py on the
tensors of a clip's first step. What comes from a package is imported when it is first called; what cannot be told of a
bias of keys leaves such calls to `sdpa`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from broll.engine import compiled
from broll.engine.shapes import Grid, Heads, Keys


@dataclass(frozen=True)
class AttendCall:
    """What a kernel may want to know about the attention it computes."""

    kind: Literal["self", "text", "image"]
    layer: int
    grid: Grid  # of the video tokens
    key_bias: Float[Tensor, "l"] | None = None  # added to the logits of each key
    branch: str = "positive"
    step: int = 0


FLASH3 = "the folder hopper of https://github.com/Dao-AILab/flash-attention"
SAGE = "https://github.com/thu-ml/SageAttention"
BLOCK_ELEMENTS = 1 << 21  # logits that `blocked` holds at once: 4 MB in bf16

Attend = Callable[[Heads, Keys, Keys, AttendCall], Heads]


def reference(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
    """The definition, in fp32, with the whole n x l matrix in memory."""
    logits = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    if call.key_bias is not None:
        logits = logits + call.key_bias
    return (logits.softmax(-1) @ v.float()).to(q.dtype)


def sdpa(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
    """Torch's scaled_dot_product_attention, which picks a fused kernel for the device."""
    bias = None if call.key_bias is None else call.key_bias.to(q.dtype).expand(1, 1, q.shape[-2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def blocked(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
    """Plain matrix products over blocks of heads and queries: for CPUs, in bf16. torch's softmax sums that in fp32.

    One block of logits at a time is held, of a few heads if all their queries fit in, else of one head: so memory stays
    linear in n. Heads are first gathered, since the tokens of one lie a whole model width apart. Two AVX512-BF16 cores,
    twelve heads of 128, 2,048 tokens: 93 ms, 101 if nothing is gathered, 345 with all heads in a block; torch's
    fused kernel 196.
    """
    (heads, length), (n, scale) = k.shape[1:3], (q.shape[2], q.shape[-1] ** -0.5)
    together = min(heads, max(1, BLOCK_ELEMENTS // (n * length)))
    rows = max(64, BLOCK_ELEMENTS // (together * length))
    out = torch.empty_like(q)
    for first in range(0, heads, together):
        some = slice(first, first + together)
        queries, keys, values = (x[:, some].contiguous() for x in (q, k, v))
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            logits = (queries[:, :, part] * scale) @ keys.transpose(-1, -2)
            if call.key_bias is not None:
                logits = logits + call.key_bias
            out[:, some, part] = logits.softmax(-1).to(v.dtype) @ values
    return out


def without_bias(kernel: Attend) -> Attend:
    @functools.wraps(kernel)
    def attend(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        return kernel(q, k, v, call) if call.key_bias is None else sdpa(q, k, v, call)

    return attend


@without_bias
def flash2(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:  # noqa: ARG001
    """FlashAttention 2. https://arxiv.org/abs/2307.08691"""
    from flash_attn import flash_attn_func  # noqa: PLC0415

    return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@without_bias
def flash3(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:  # noqa: ARG001
    """FlashAttention 3. https://arxiv.org/abs/2407.08608"""
    from flash_attn_interface import flash_attn_func  # noqa: PLC0415

    out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)))
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)  # older versions also give the sums


@without_bias
def sage(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:  # noqa: ARG001
    """SageAttention: q and k in 8 bits, on newer cards also softmax and v. https://arxiv.org/abs/2411.10958"""
    from sageattention import sageattn  # noqa: PLC0415

    return sageattn(q, k, v, tensor_layout="HND")


@without_bias
def flex(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:  # noqa: ARG001
    """Torch's FlexAttention, compiled; the first call of each shape waits for the compiler."""
    return compiled_flex()(q, k, v)


def compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415

    return compiled.compiled(flex_attention, "inductor")


@dataclass(frozen=True)
class Backend:
    """A kernel and what it needs. `capability`: the CUDA devices it runs on, from the first to below the second."""

    attend: Attend
    package: str = ""  # as it is imported; what comes with torch needs none
    install: str = ""  # how to get it
    capability: tuple[tuple[int, int], tuple[int, int]] | None = None  # None: any device
    halves: bool = False  # bf16 and fp16 only
    eight_bits: bool = False  # rounds what it multiplies to 8 bits


ANY = (100, 0)
BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(sdpa),
    "blocked": Backend(blocked),
    "reference": Backend(reference),
    "flash2": Backend(flash2, "flash_attn", "pip install flash-attn", ((8, 0), ANY), halves=True),
    "flash3": Backend(flash3, "flash_attn_interface", FLASH3, ((9, 0), (10, 0)), halves=True),
    "sage": Backend(sage, "sageattention", SAGE, ((8, 0), ANY), halves=True, eight_bits=True),
    "flex": Backend(flex, "triton", "pip install triton", ((7, 5), ANY)),
}


def split_heads(x: Float[Tensor, "b n m"], heads: int) -> Heads:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Heads) -> Float[torch.Tensor, "b n m"]:
    return x.transpose(1, 2).flatten(2)
