"""The attend seam: softmax(q k' / sqrt(d) + bias) v, and who computes it.

`reference` is the definition. Everything else is held to it by a test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

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


BLOCK_ELEMENTS = 1 << 22  # logits that `blocked` holds at once: 16 MB in fp32

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
    """Plain matrix products over blocks of queries, softmax in fp32: for CPUs, in bf16.

    torch's fused CPU kernel runs bf16 attention at a quarter of the rate of a matrix product; this one holds
    one block of logits at a time, so memory stays linear in n (39 against 170 GFLOP/s on one AVX512-BF16 core).
    """
    rows = max(64, BLOCK_ELEMENTS // (k.shape[1] * k.shape[2]))
    keys, scale = k.transpose(-1, -2), q.shape[-1] ** -0.5
    out = torch.empty_like(q)
    for start in range(0, q.shape[2], rows):
        part = slice(start, start + rows)
        logits = (q[:, :, part] * scale) @ keys
        if call.key_bias is not None:
            logits = logits + call.key_bias
        out[:, :, part] = logits.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    return out


BACKENDS: dict[str, Attend] = {"sdpa": sdpa, "blocked": blocked, "reference": reference}


def split_heads(x: Float[Tensor, "b n m"], heads: int) -> Heads:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Heads) -> Float[torch.Tensor, "b n m"]:
    return x.transpose(1, 2).flatten(2)
