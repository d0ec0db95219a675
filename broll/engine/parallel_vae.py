"""The decoder's seam over several processes: each decodes a strip of rows, with exact halos.

    a convolution over places     is given one row more above and below, from the neighbours, before it runs
    attention over a frame        queries stay; keys and values of all strips are gathered
    all else                      looks at one place only, or doubles it

So nothing is computed twice and nothing is blended. At the picture's own edges there are zeros, as the layers pad
everywhere else. The causal layers remember their strip and its halos, so that every frame's halos are sent once. It
stays a stream: the strips of each latent are put together in all processes, and the next latent begins.

Rows need not divide: 90 over 4 processes are 23 23 22 22. With fewer rows than processes, each decodes all by itself.
Left out: encoding in strips.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from broll.engine.mesh import Group, shares
from broll.engine.shapes import Latent
from broll.engine.vae import VAE
from broll.engine.vae_layers import CausalConv3d, FrameAttention, Memory


class Strips:
    """`VAE.stream`, a strip of rows in each process of the group."""

    def __init__(self, vae: VAE, group: Group) -> None:
        self._vae, self._group = vae, group

    def __call__(self, z: Latent) -> Iterator[Float[Tensor, "b 3 _ H W"]]:
        if z.shape[3] < self._group.size:
            yield from self._vae.by_latent(z)
            return
        rows = shares(z.shape[3], self._group.size)
        pixels = [count * self._vae.config.spatial_stride for count in rows]
        own = z.split(rows, dim=3)[self._group.rank]
        memory: Memory = {}
        for latent in own.split(1, dim=2):
            with haloed(self._vae, self._group, rows):  # not while others have the next word
                strip = self._vae.pixels(self._vae.raw(latent), memory).float().clamp(-1, 1)
            yield self._group.gather(strip, 3, pixels)


@contextmanager
def haloed(vae: VAE, group: Group, rows: list[int]) -> Iterator[None]:
    """Every layer of the decoder that looks beyond its strip asks the neighbours."""
    layers = [*vae.post_quant_conv.modules(), *vae.decoder.modules()]
    wide = [layer for layer in layers if isinstance(layer, nn.Conv2d | CausalConv3d) and sides(layer)[-2]]
    before = [sides(layer) for layer in wide]
    attentions = [layer for layer in layers if isinstance(layer, FrameAttention)]
    for layer, padding in zip(wide, before, strict=True):
        assert padding[-2] == 1
        layer.padding = (*padding[:-2], 0, padding[-1])
        vars(layer)["forward"] = partial(convolved, layer, group)
    for attention in attentions:
        attention.attend = partial(attended, group, rows)
    try:
        yield
    finally:
        for layer, padding in zip(wide, before, strict=True):
            layer.padding = padding
            del vars(layer)["forward"]
        for attention in attentions:
            attention.attend = F.scaled_dot_product_attention


def sides(layer: nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    """How many zeros it pads with: frames, rows, columns."""
    assert not isinstance(layer.padding, str)
    return layer.padding


def convolved(layer: nn.Module, group: Group, x: Tensor, *memory: Memory) -> Tensor:
    """The layer's own forward, over its strip and a row on each side of it."""
    return type(layer).forward(layer, halo(x, group), *memory)


def halo(x: Tensor, group: Group) -> Tensor:
    """One row more above and below; beyond the picture, zeros."""
    first, last = x[..., :1, :].contiguous(), x[..., -1:, :].contiguous()
    above, below = x.new_zeros(first.shape), x.new_zeros(first.shape)
    sent, got = [], []
    if group.rank > 0:
        sent.append((first, group.rank - 1))
        got.append((above, group.rank - 1))
    if group.rank < group.size - 1:
        sent.append((last, group.rank + 1))
        got.append((below, group.rank + 1))
    group.trade(sent, got).wait()
    return torch.cat([above, x, below], dim=-2)


def attended(group: Group, rows: list[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Places of this strip attend those of all."""
    places = [count * q.shape[2] // rows[group.rank] for count in rows]
    k, v = (group.gather(x, 2, places) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def use(vae: VAE, group: Group) -> VAE:
    """From now on it decodes in strips."""
    vae.stream = Strips(vae, group)
    return vae
