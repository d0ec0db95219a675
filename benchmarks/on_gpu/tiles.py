"""Radial attention's tiles (sparse.py) as a mask of FlexAttention: blocks of 128 are left out whole.

A block of queries and one of keys is computed if any tile of the one attends any of the other; if not all do, pair by
pair, by the same table. So what is computed is the pattern's definition, at any size of its tiles.

    FlexAttention    https://pytorch.org/blog/flexattention/
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks.on_gpu.bench import Bench
from broll.engine import attention, sparse
from broll.engine.attention import Attend, AttendCall
from broll.engine.shapes import Heads, Keys
from broll.engine.sparse import Pattern

BLOCK = 128


def tiled(bench: Bench, size: str, sparsity: float) -> Attend:
    return Tiled(
        sparse.pattern(bench.tokens(size), sparsity), bench.device, compiled=bench.device.type == "cuda"
    )


class Tiled:
    def __init__(self, pattern: Pattern, device: torch.device, *, compiled: bool) -> None:
        self._pattern, self._device = pattern, device
        plain: Callable[..., Any] = flex_attention
        self._attend = torch.compile(plain, dynamic=False) if compiled else plain

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        if call.kind != "self":
            return attention.sdpa(q, k, v, call)
        return self._attend(q, k, v, block_mask=self._mask)

    @functools.cached_property
    def _mask(self) -> BlockMask:
        return mask(self._pattern, self._device)


def mask(pattern: Pattern, device: torch.device) -> BlockMask:
    tokens = pattern.edges[-1]
    tile = torch.repeat_interleave(torch.tensor(pattern.edges).diff())
    blocks = -(-tokens // BLOCK)
    holds = torch.zeros(blocks, len(pattern.kept))  # block x tile
    holds[torch.arange(tokens) // BLOCK, tile] = 1
    kept = pattern.kept.float()
    some, lacking = (holds @ kept @ holds.T) > 0, (holds @ (1 - kept) @ holds.T) > 0
    of_token, table = tile.to(device), pattern.kept.to(device)

    def kept_pair(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return table[of_token[query], of_token[key]]

    return BlockMask.from_kv_blocks(
        *listed(some & lacking, device), *listed(some & ~lacking, device),
        BLOCK_SIZE=BLOCK, mask_mod=kept_pair, seq_lengths=(tokens, tokens),
    )  # fmt: skip


def listed(on: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first."""
    count = on.sum(1, dtype=torch.int32)
    which = on.int().argsort(dim=1, descending=True, stable=True).int()
    return count[None, None].to(device), which[None, None].contiguous().to(device)
