"""The attend seam of self-attention, with far pairs of tokens left out: radial attention, without training.

Every frame is cut into bands of rows, some 256 tokens each. Of two frames d apart, band a attends band b if

    d = 0, or b is in the first frame          each frame sees itself, and all see the first (a sink)
    |a - b| <= w / 2^floor(log2 d)             else a window that halves when the distance doubles;
    a = b, and d is a multiple of a power of 2   where it is thinner than a band: that band, in fewer and fewer frames

w is the widest with which `sparsity`, a share of all pairs, is left out. The first quarter of the steps and the first
layer stay dense, as in the authors' scripts for WAN 2.1 (12 of 50 steps, 1 of 4; 1 layer). Sparsity 0 changes no bit.

`gathered` runs the dense kernel over each band's own keys, so it is fast with any kernel and checked as it is;
`masked` is its slow twin. Left out: text attention, and the finer windows of the authors' kernel (blocks of 128).

    Radial attention    https://arxiv.org/abs/2506.19852
    settings            scripts/wan_t2v_inference_*.sh of mit-han-lab/radial-attention
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from broll.engine import shapes
from broll.engine.attention import Attend, AttendCall
from broll.engine.config import ModelConfig, TransformerConfig
from broll.engine.shapes import Grid, Heads, Keys
from broll.engine.transformer import SelfAttention, Transformer
from broll.spec import VideoSpec

BAND = 256  # tokens, about
BANDS = (4, 8)  # of a frame: at least and at most
DENSE = 0.25  # of the steps, at the beginning


@dataclass(frozen=True, eq=False)
class Pattern:
    """Tiles of tokens, and which attend which."""

    edges: tuple[int, ...]  # where each tile begins; and where the last one ends
    kept: Tensor  # bool [tiles, tiles]

    @functools.cached_property
    def share(self) -> float:
        """Of all pairs of tokens, that are computed."""
        sizes = torch.tensor(self.edges, dtype=torch.float64).diff()
        return float(sizes @ self.kept.double() @ sizes) / self.edges[-1] ** 2

    @functools.cached_property
    def rows(self) -> tuple[tuple[slice, tuple[slice, ...]], ...]:
        """Of each tile its tokens, and the runs of tokens that they attend."""
        tiles = enumerate(zip(self.edges, self.edges[1:], strict=False))
        return tuple((slice(*edges), self._runs(tile)) for tile, edges in tiles)

    def _runs(self, tile: int) -> tuple[slice, ...]:
        on = [False, *self.kept[tile].tolist(), False]
        starts = [i for i in range(len(on) - 1) if on[i + 1] and not on[i]]
        ends = [i for i in range(len(on) - 1) if on[i] and not on[i + 1]]
        return tuple(slice(self.edges[a], self.edges[b]) for a, b in zip(starts, ends, strict=True))


@functools.lru_cache(maxsize=16)
def pattern(grid: Grid, sparsity: float) -> Pattern:
    """The widest windows that leave out so large a share of the pairs; or the narrowest there are."""
    frame = grid.height * grid.width
    bands = min(frame, max(BANDS[0], min(BANDS[1], frame // BAND)))
    edges = tuple(f * frame + round(b * frame / bands) for f in range(grid.frames) for b in range(bands))
    narrow, wide = 0.0, 2.0 * bands * grid.frames
    for _ in range(24):
        width = (narrow + wide) / 2
        if Pattern((*edges, grid.size), windows(grid.frames, bands, width)).share <= 1 - sparsity:
            narrow = width
        else:
            wide = width
    return Pattern((*edges, grid.size), windows(grid.frames, bands, narrow))


def windows(frames: int, bands: int, width: float) -> Tensor:
    """Which tile attends which, [tiles, tiles]: see above."""
    frame = torch.arange(frames).repeat_interleave(bands)
    band = torch.arange(bands).repeat(frames)
    apart = (frame[:, None] - frame).abs()
    off = (band[:, None] - band).abs()
    window = width / 2 ** apart.clamp(min=1).double().log2().floor()
    every = 2 ** (-window.log2()).ceil().clamp(0, 30)
    near = torch.where(window >= 1, off <= window, (off == 0) & (apart % every == 0))
    return near | (apart == 0) | (frame == 0)


# --- computing it -----------------------------------------------------------------------------------------


def masked(q: Heads, k: Keys, v: Keys, pattern: Pattern) -> Heads:
    """The definition: every pair is computed, and those left out are taken away; n x n in memory."""
    tile = torch.repeat_interleave(torch.tensor(pattern.edges).diff())
    return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.kept[tile][:, tile].to(q.device))


def gathered(dense: Attend, q: Heads, k: Keys, v: Keys, call: AttendCall, pattern: Pattern) -> Heads:
    """Each tile by the dense kernel, over the keys that it attends."""
    out = torch.empty_like(q)
    for own, runs in pattern.rows:
        keys, values = (torch.cat([x[:, :, run] for run in runs], dim=2) for x in (k, v))
        out[:, :, own] = dense(q[:, :, own], keys, values, call)
    return out


class Radial:
    """An attend around a dense one, for one clip."""

    def __init__(self, dense: Attend, sparsity: float, first: int) -> None:
        self._dense, self._sparsity, self._first = dense, sparsity, first

    @property
    def __name__(self) -> str:
        return self._dense.__name__

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        if call.step < self._first:
            return self._dense(q, k, v, call)
        return gathered(self._dense, q, k, v, call, pattern(call.grid, self._sparsity))


@contextmanager
def on(model: Transformer, spec: VideoSpec) -> Iterator[None]:
    """For one clip. Without sparsity nothing is changed."""
    places = [module for module in model.modules() if isinstance(module, SelfAttention)]
    before = [place.attend for place in places]
    for place in places:
        if spec.sparsity and place.layer not in dense_layers(model.config):
            place.attend = Radial(place.attend, spec.sparsity, dense_steps(spec))
    try:
        yield
    finally:
        for place, attend in zip(places, before, strict=True):
            place.attend = attend


# --- what it comes to -------------------------------------------------------------------------------------


def dense_layers(c: TransformerConfig) -> tuple[int, ...]:
    """The first block; of VACE also the first that makes hints."""
    return (0, c.num_layers) if c.vace_layers else (0,)


def dense_steps(spec: VideoSpec) -> int:
    return max(1, round(DENSE * (spec.steps or 0)))


def grid_of(spec: VideoSpec, config: ModelConfig) -> Grid:
    assert spec.frames and spec.width and spec.height
    latent = shapes.latent_grid(Grid(spec.frames, spec.height, spec.width), config.vae.spatial_stride)
    return shapes.token_grid(latent, config.transformer.patch_size)


def share(spec: VideoSpec, config: ModelConfig, forwards: int | None = None) -> float:
    """Of all pairs of a resolved spec's self-attention, how many are computed, all steps and layers together.

    `forwards`: how many there are, where later ones are skipped.
    """
    if not spec.sparsity:
        return 1.0
    c, steps = config.transformer, spec.steps or 1
    layers, dense = c.num_layers + len(c.vace_layers), len(dense_layers(c))
    step = (dense + (layers - dense) * pattern(grid_of(spec, config), spec.sparsity).share) / layers
    branches = 1 if spec.guidance == 1 else 2
    count = steps * branches if forwards is None else forwards
    first = min(count, dense_steps(spec) * branches)
    return (first + (count - first) * step) / count


def told(spec: VideoSpec, config: ModelConfig) -> str:
    """One line on what the sparsity asked for comes to; empty without any."""
    if not spec.sparsity:
        return ""
    part = pattern(grid_of(spec, config), spec.sparsity).share
    return (
        f"sparsity {spec.sparsity:g}: {part:.0%} of the pairs in self-attention are computed after the first "
        f"{dense_steps(spec)} of {spec.steps} steps; {share(spec, config):.0%} in all"
    )
