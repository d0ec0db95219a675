"""The attend seam over several processes, each with its own tokens: Ulysses, ring, and one inside the other.

    Ulysses   all tokens of some heads for some tokens of all heads; attention as ever; and back
              heads need not divide: 12 over 8 processes are 2 2 2 2 1 1 1 1, and who has none waits
    Ring      queries stay; keys and values go round, and what each block of them gives is put together:
              s = log(exp(s1) + exp(s2)),  out = exp(s1 - s) out1 + exp(s2 - s) out2          in fp32

By Ulysses a kernel is given each head exactly as in a single process, so it may be any kernel, and pairs may be left
out. The ring needs the sums of the exponentials, which torch's own flash kernels give. While one block is computed, the
next one is on its way.

Attention to text and image needs no other process: their keys are everywhere.

    DeepSpeed-Ulysses    https://arxiv.org/abs/2309.14509
    Ring attention       https://arxiv.org/abs/2310.01889
    both                 https://arxiv.org/abs/2405.07719
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from broll.engine.attention import Attend, AttendCall
from broll.engine.mesh import Group, Mesh, shares
from broll.engine.shapes import Heads, Keys

Sums = Float[Tensor, "b k n"]  # logarithms of the sums of exponentials, in fp32
RING = ("auto", "sdpa")  # the names of kernels that may be asked for beside a ring


class Ulysses:
    """An attend around an attend. `tokens`: how many each process of the group has."""

    def __init__(self, dense: Attend, group: Group, tokens: Sequence[int]) -> None:
        self._dense, self._group, self._tokens = dense, group, list(tokens)

    @property
    def __name__(self) -> str:
        return self._dense.__name__

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        b, count, n, d = q.shape
        heads = shares(count, self._group.size)
        own = heads[self._group.rank]
        outgoing = torch.stack([q, k, v]).split(heads, dim=2)
        came = self._group.exchange(outgoing, [(3, b, own, tokens, d) for tokens in self._tokens])
        q, k, v = torch.cat(came, dim=3).unbind()
        out = self._dense(q, k, v, call) if own else q
        came = self._group.exchange(out.split(self._tokens, dim=2), [(b, given, n, d) for given in heads])
        return torch.cat(came, dim=1)


class Ring:
    """An attend in place of another, under its name: a record says the layout apart. `tokens`: how many each process of
    the group has.
    """

    def __init__(self, dense: Attend, group: Group, tokens: Sequence[int]) -> None:
        self._group, self._tokens = group, list(tokens)
        self.__name__ = dense.__name__

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        assert call.key_bias is None, "among video tokens there is no bias"
        rank, size = self._group.rank, self._group.size
        held = torch.stack([k, v])
        out, sums = (
            q.new_zeros(q.shape, dtype=torch.float32),
            q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32),
        )
        for hop in range(1, size + 1):
            shape = (*held.shape[:3], self._tokens[(rank - hop) % size], held.shape[4])
            coming = held.new_empty(shape if hop < size else 0)
            if hop < size:
                trade = self._group.trade([(held, (rank + 1) % size)], [(coming, (rank - 1) % size)])
            out, sums = merged(out, sums, *part(q, *held.unbind()))
            if hop < size:
                trade.wait()
                held = coming
        return out.to(q.dtype)


def merged(out: Heads, sums: Sums, more: Heads, more_sums: Sums) -> tuple[Heads, Sums]:
    """Attention over two sets of keys, from attention over each."""
    both = torch.logaddexp(sums, more_sums)
    old, new = (sums - both).exp().unsqueeze(-1), (more_sums - both).exp().unsqueeze(-1)
    return out * old + more.float() * new, both


def part(q: Heads, k: Keys, v: Keys) -> tuple[Heads, Sums]:
    """Attention over some of the keys, and what must be known to put it together with the others."""
    if q.device.type != "cuda":
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
    elif q.dtype in (torch.bfloat16, torch.float16):
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:
        out, sums = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        sums = sums[..., : q.shape[2]]  # the kernel rounds their number up
    return out, sums.float()


def attend(dense: Attend, mesh: Mesh, tokens: Sequence[int]) -> Attend:
    """What computes self-attention in this layout. `tokens`: how many each process of mesh.tokens has."""
    layout = mesh.layout
    blocks = [list(tokens[i : i + layout.ulysses]) for i in range(0, len(tokens), layout.ulysses)]
    inner = Ring(dense, mesh.ring, [sum(block) for block in blocks]) if layout.ring > 1 else dense
    return Ulysses(inner, mesh.ulysses, blocks[mesh.ring.rank]) if layout.ulysses > 1 else inner
