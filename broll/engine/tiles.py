"""The decoder's seam, tile by tile: the same pixels in a fraction of the memory.

    middle     every latent, whole: there every place attends all others       small; kept for all latents
    tile       all latents of one part of the picture, up to its pixels         then the memory of its layers is let go
    frames     when all tiles are there; on a GPU they wait in main memory

Above the middle there are convolutions only. So a tile needs its own places and, around them, as many as the layers
reach: `regions` counts that back from the pixels, layer by layer, and what a block no longer needs is cut off behind
it. At the picture's own edges there is nothing to take, and the layers pad with zeros there, as they do untiled. So the
numbers are the same but for the order in which a library adds them up.

Two thirds of what decoding holds is the causal layers' memory of past frames (8.7 GB at 720p in fp32), and that goes
with the tile. Hence whole clips of a tile, one after the other, and not tiles of one frame.

Left out: encoding in tiles.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from broll.engine.config import VAEConfig
from broll.engine.shapes import TEMPORAL_STRIDE, Grid, Latent, pixel_frames
from broll.engine.vae import VAE, Decoder, UpBlock, channels_to_space
from broll.engine.vae_layers import Memory

LEVER = "vae_tiling"
COUNTS = (2, 4, 8, 16)  # tiles that a plan tries


class Span(NamedTuple):
    """Places `begin`, ..., `end` - 1 of one axis."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin

    def grown(self, by: int, size: int) -> "Span":
        """And `by` more on both sides, where the axis has them."""
        return Span(max(0, self.begin - by), min(size, self.end + by))

    def finer(self, times: int) -> "Span":
        """The places that these become, `times` from one."""
        return Span(self.begin * times, self.end * times)

    def halved(self) -> "Span":
        """The places that these are made from, one from two."""
        return Span(self.begin // 2, math.ceil(self.end / 2))

    def within(self, other: "Span") -> slice:
        """Where it lies in a tensor that holds the other."""
        return slice(self.begin - other.begin, self.end - other.begin)


@dataclass(frozen=True)
class Reach:
    """How far each level looks to the sides: its residual blocks, and the convolution behind doubling, if it doubles;
    and the last convolution of all.
    """

    levels: tuple[tuple[int, int | None], ...]
    last: int

    @staticmethod
    def of(decoder: Decoder) -> "Reach":
        levels = []
        for block in decoder.up_blocks:
            assert isinstance(block, UpBlock)
            levels.append(
                (reach(block.resnets), None if block.upsamplers is None else reach(block.upsamplers))
            )
        return Reach(tuple(levels), reach(decoder.conv_out))


def reach(layers: nn.Module) -> int:
    """Places to each side, of convolutions one after the other."""
    kernels = [layer.kernel_size for layer in layers.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    return sum(kernel[-1] // 2 for kernel in kernels)


class Regions(NamedTuple):
    """Of one axis of one tile: what every level is given, what is kept of its output, and the tile itself."""

    given: tuple[Span, ...]
    kept: tuple[Span, ...]
    own: Span


def regions(tile: Span, size: int, far: Reach) -> Regions:
    """Counted back from the pixels of these latents, on an axis of `size` latents."""
    given, kept = [], []
    scale = 2 ** (len(far.levels) - 1)
    own = tile.finer(scale)
    span = own.grown(far.last, size * scale)
    for blocks, doubling in reversed(far.levels):
        kept.append(span)
        if doubling is not None:
            span = span.grown(doubling, size * scale).halved()
            scale //= 2
        span = span.grown(blocks, size * scale)
        given.append(span)
    return Regions(tuple(reversed(given)), tuple(reversed(kept)), own)


def cut(size: int, count: int) -> list[Span]:
    """An axis in parts that are as equal as can be."""
    edges = [round(i * size / count) for i in range(count + 1)]
    return [Span(a, b) for a, b in zip(edges, edges[1:], strict=False)]


Tile = tuple[Regions, Regions]  # of rows and of columns


def tiles(height: int, width: int, count: int, far: Reach) -> list[Tile]:
    """`count` of them, or fewer where the latent has no more places; in the shape that computes least twice. The
    largest comes first: what it needs is enough for all.
    """
    found: list[list[Tile]] = []
    for rows in [n for n in range(1, count + 1) if count % n == 0]:
        down, across = (
            [regions(span, size, far) for span in cut(size, min(size, n))]
            for size, n in ((height, rows), (width, count // rows))
        )
        found.append(list(product(down, across)))
    best = min(found, key=lambda made: (-len(made), sum(positions(tile)[-1] for tile in made)))
    return sorted(best, key=positions, reverse=True)


def positions(tile: Tile) -> tuple[int, ...]:
    """Of a frame of it: what every level is given, and the last convolution."""
    rows, columns = ((*axis.given, axis.kept[-1]) for axis in tile)
    return tuple(r.size * c.size for r, c in zip(rows, columns, strict=True))


def areas(c: VAEConfig, latent: Grid, count: int) -> list[tuple[int, ...]]:
    """The positions of all tiles, for whoever counts operations."""
    with torch.device("meta"):
        far = Reach.of(Decoder(c))
    return [positions(tile) for tile in tiles(latent.height, latent.width, count, far)]


class Tiled:
    """`VAE.stream` in so many tiles."""

    def __init__(self, vae: VAE, count: int) -> None:
        self._vae, self._count = vae, count
        self.before = vae.stream

    def __call__(self, z: Latent) -> Iterator[Float[Tensor, "b 3 _ H W"]]:
        decoder, stride = self._vae.decoder, self._vae.config.spatial_stride
        parts = tiles(z.shape[3], z.shape[4], self._count, Reach.of(decoder))
        self._vae.passes = len(parts)
        middles = list(self._middles(z))
        shape = (z.shape[0], 3, pixel_frames(len(middles)), z.shape[3] * stride, z.shape[4] * stride)
        frames = torch.empty(shape, device="cpu" if middles[0].is_cuda else middles[0].device)
        for tile in parts:
            room, done = self._place(frames, tile), 0
            for pixels in self._tile(middles, tile):
                room[:, :, done : done + pixels.shape[2]] = pixels
                done += pixels.shape[2]
                yield frames[:, :, :0]
        del middles
        yield frames[:, :, :1]
        yield from frames[:, :, 1:].split(TEMPORAL_STRIDE, dim=2) if frames.shape[2] > 1 else ()

    def _middles(self, z: Latent) -> Iterator[Tensor]:
        memory: Memory = {}
        for latent in z.split(1, dim=2):
            yield self._vae.decoder.middle(self._vae.post_quant_conv(self._vae.raw(latent), memory), memory)

    def _tile(self, middles: Sequence[Tensor], tile: Tile) -> Iterator[Float[Tensor, "b 3 _ _ _"]]:
        memory: Memory = {}
        for middle in middles:
            pixels = risen(self._vae.decoder, middle, tile, memory)
            yield channels_to_space(pixels, self._vae.config.patch_size).float().clamp(-1, 1)

    def _place(self, frames: Tensor, tile: Tile) -> Tensor:
        rows, columns = (axis.own.finer(self._vae.config.patch_size) for axis in tile)
        return frames[..., rows.begin : rows.end, columns.begin : columns.end]


def risen(decoder: Decoder, middle: Tensor, tile: Tile, memory: Memory) -> Tensor:
    """Decoder.rise for one tile."""
    rows, columns = tile
    last = len(decoder.up_blocks) - 1

    def cut_off(level: int, x: Tensor) -> Tensor:
        times = 1 if level == last else 2
        within = [axis.kept[level].within(axis.given[level].finer(times)) for axis in tile]
        return x[..., within[0], within[1]]

    x = middle[..., slice(*rows.given[0]), slice(*columns.given[0])]
    x = decoder.rise(x, memory, cut_off)
    within = [axis.own.within(axis.kept[-1]) for axis in tile]
    return x[..., within[0], within[1]]


def use(vae: VAE, count: int) -> VAE:
    """From now on it decodes in so many tiles; with 1, as it did before there were any."""
    if isinstance(vae.stream, Tiled):
        vae.stream, vae.passes = vae.stream.before, 0
    if count > 1:
        vae.stream, vae.passes = Tiled(vae, count), count
    return vae
