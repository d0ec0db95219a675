"""The attend seam of self-attention, with far pairs of tokens left out: radial attention, without training.

Every frame is cut into 4 bands of consecutive tokens. Up to 3 frames that follow each other are a group, and what one
band is in them is a tile, whose queries attend the same keys. Of a frame d away from the nearest one of a group, the
group's band a attends band b if

    d = 0, or the frame is the first    a group sees its own frames, and all see the first (a sink)
    |a - b| <= w / d                    else a window that narrows with the distance;
    a = b, and d is a multiple of the   where it is thinner than a band: that band, in fewer and fewer frames
      least power of 2 from d / w on

w is the widest with which `sparsity`, a share of all pairs, is left out. The first quarter of the steps and the first
layer stay dense, as in the authors' scripts for WAN 2.1 (12 of 50 steps, 1 of 4; 1 layer). Sparsity 0 changes no bit.

`gathered` runs the dense kernel, any, over each tile's own keys: 5 s at 720p are 28 calls of 2,700 queries a layer, so
copying keys is a small part, and the kernel has enough to do. `masked` is its slow twin. Where frames are so small that
calls would be short, and something is compiled (compiled.py), `flexed` gives the pattern to FlexAttention: of blocks of
128 those are left out whole of which no pair is kept, and in the others those pairs that are not. `gathered` is its
slow twin. Left out: text attention, and the finer windows of the authors' kernel (blocks of 128).

    Radial attention    https://arxiv.org/abs/2506.19852
    FlexAttention       https://pytorch.org/blog/flexattention/
    settings            scripts/wan_t2v_inference_*.sh of mit-han-lab/radial-attention
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from broll.engine import guidance, shapes
from broll.engine.attention import Attend, AttendCall
from broll.engine.compiled import Compiler, Dropped
from broll.engine.config import ModelConfig, TransformerConfig
from broll.engine.shapes import Grid, Heads, Keys
from broll.engine.transformer import SelfAttention, Transformer
from broll.spec import VideoSpec

FEATURE = "sparse"  # of what is compiled
# Operations a second of the 14B's attention on an H200 (benchmarks/results): dense, by cuDNN; of the pairs left,
# by FlexAttention in tiles of 450 tokens, and tile by tile, copying counted, with 1,170 queries a call and with 2,700.
DENSE_H200, FLEX_H200, SHORT_H200, LONG_H200 = 568e12, 216e12, 369e12, 484e12
LONG = 1800  # queries of a call, from which on cuDNN is as fast as with all of them, or nearly
FEW = 1024  # queries of a call: below, FlexAttention. Tile by tile with 450 it took 1.7 times as long, on that H200
BLOCK = 128  # tokens of a block of FlexAttention
FRAMES, BANDS = 3, 4  # of a tile, at most; of a frame
DENSE = 0.25  # of the steps, at the beginning
Runs = tuple[slice, ...]  # of tokens


@dataclass(frozen=True, eq=False)
class Pattern:
    """Pieces are a frame's bands. Tiles are pieces whose queries attend the same pieces, in one call."""

    edges: tuple[int, ...]  # where each piece begins; and where the last one ends
    tile: Tensor  # int [pieces]: of each piece the tile it is in
    kept: Tensor  # bool [tiles, pieces]

    @functools.cached_property
    def share(self) -> float:
        """Of all pairs of tokens, that are computed."""
        sizes = torch.tensor(self.edges, dtype=torch.float64).diff()
        return float(sizes @ self.kept[self.tile].double() @ sizes) / self.edges[-1] ** 2

    @functools.cached_property
    def piece(self) -> Tensor:
        """Of each token the piece it is in."""
        return torch.repeat_interleave(torch.tensor(self.edges).diff())

    @functools.cached_property
    def rows(self) -> tuple[tuple[Runs, Runs], ...]:
        """Of each tile the runs of its tokens, and of those that they attend."""
        return tuple((self._runs(self.tile == tile), self._runs(kept)) for tile, kept in enumerate(self.kept))

    def _runs(self, pieces: Tensor) -> Runs:
        on = [False, *pieces.tolist(), False]
        starts = [i for i in range(len(on) - 1) if on[i + 1] and not on[i]]
        ends = [i for i in range(len(on) - 1) if on[i] and not on[i + 1]]
        return tuple(slice(self.edges[a], self.edges[b]) for a, b in zip(starts, ends, strict=True))


@functools.lru_cache(maxsize=16)
def pattern(grid: Grid, sparsity: float) -> Pattern:
    """The widest windows that leave out so large a share of the pairs; or the narrowest there are."""
    frame = grid.height * grid.width
    bands = min(frame, BANDS)
    starts = (f * frame + round(b * frame / bands) for f in range(grid.frames) for b in range(bands))
    edges = (*starts, grid.size)
    group = groups(grid.frames)
    tile = (group[:, None] * bands + torch.arange(bands)).flatten()

    def of_width(width: float) -> Pattern:
        return Pattern(edges, tile, windows(group, bands, width))

    narrow, wide = 0.0, 2.0 * bands * grid.frames
    for _ in range(24):
        width = (narrow + wide) / 2
        if of_width(width).share <= 1 - sparsity:
            narrow = width
        else:
            wide = width
    return of_width(narrow)


def groups(frames: int) -> Tensor:
    """Of each frame its group: of consecutive ones, as equal as can be."""
    return torch.arange(frames) * -(-frames // FRAMES) // frames


def windows(group: Tensor, bands: int, width: float) -> Tensor:
    """Which tile attends which piece, [tiles, pieces]: see above. `group`: of each frame."""
    frame, band = torch.arange(len(group)), torch.arange(bands)
    frames = [frame[group == own] for own in group.unique()]
    apart = torch.stack([(own[:, None] - frame).abs().amin(0) for own in frames])[:, None, :, None]
    off = (band[:, None] - band).abs()[None, :, None, :]
    window = width / apart.clamp(min=1).double()
    every = 2 ** (-window.log2()).ceil().clamp(0, 30)
    near = torch.where(window >= 1, off <= window, (off == 0) & (apart % every == 0))
    return (near | (apart == 0) | (frame == 0)[:, None]).flatten(2).flatten(0, 1)


# --- computing it -----------------------------------------------------------------------------------------


def masked(q: Heads, k: Keys, v: Keys, pattern: Pattern) -> Heads:
    """The definition: every pair is computed, and those left out are taken away; n x n in memory."""
    kept = pattern.kept[pattern.tile][pattern.piece][:, pattern.piece]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=kept.to(q.device))


def gathered(dense: Attend, q: Heads, k: Keys, v: Keys, call: AttendCall, pattern: Pattern) -> Heads:
    """Each tile by the dense kernel, over the keys that it attends."""
    out = torch.empty_like(q)
    for own, seen in pattern.rows:
        made = dense(together(q, own), together(k, seen), together(v, seen), call)
        parts = made.split([run.stop - run.start for run in own], dim=2)
        for run, part in zip(own, parts, strict=True):
            out[:, :, run] = part
    return out


def together(x: Heads, runs: Runs) -> Keys:
    """These tokens one after the other. In memory tokens come before heads, so a run is copied in one piece."""
    return torch.cat([x.transpose(1, 2)[:, run] for run in runs], dim=1).transpose(1, 2)


@functools.lru_cache(maxsize=4)
def mask(pattern: Pattern, device: torch.device) -> Any:
    """The pattern as FlexAttention's BlockMask: blocks of which some pairs are kept, and those of which all are."""
    from torch.nn.attention.flex_attention import BlockMask  # noqa: PLC0415  it brings the compiler

    tokens = pattern.edges[-1]
    holds = torch.zeros(-(-tokens // BLOCK), len(pattern.tile))  # block x piece
    holds[torch.arange(tokens) // BLOCK, pattern.piece] = 1
    pairs = pattern.kept[pattern.tile]
    kept = pairs.float()
    some, lacking = (holds @ kept @ holds.T) > 0, (holds @ (1 - kept) @ holds.T) > 0
    of_token, table = pattern.piece.to(device), pairs.to(device)

    return BlockMask.from_kv_blocks(
        *listed(some & lacking, device), *listed(some & ~lacking, device),
        BLOCK_SIZE=BLOCK, seq_lengths=(tokens, tokens),
        mask_mod=lambda b, h, query, key: table[of_token[query], of_token[key]],
    )  # fmt: skip


def listed(on: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first."""
    count = on.sum(1, dtype=torch.int32)
    which = on.int().argsort(dim=1, descending=True, stable=True).int()
    return count[None, None].to(device), which[None, None].contiguous().to(device)


def flexed(compiler: Compiler, q: Heads, k: Keys, v: Keys, pattern: Pattern) -> Heads:
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415

    return compiler.of(flex_attention)(q, k, v, block_mask=mask(pattern, q.device))


class Radial:
    """An attend around a dense one, for one clip."""

    def __init__(self, dense: Attend, sparsity: float, first: int, compiler: Compiler) -> None:
        self._dense, self._sparsity, self._first, self._compiler = dense, sparsity, first, compiler

    @property
    def __name__(self) -> str:
        return self._dense.__name__

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        if call.step < self._first:
            return self._dense(q, k, v, call)
        made = pattern(call.grid, self._sparsity)
        slow = partial(gathered, self._dense, q, k, v, call, made)
        if short(call.grid) and self._compiler.makes(FEATURE):
            try:
                return self._compiler.run(
                    FEATURE, "flex", partial(flexed, self._compiler, q, k, v, made), slow
                )
            except Dropped:
                pass
        return slow()


def queries(grid: Grid) -> float:
    """Of a call tile by tile, on average."""
    return grid.size / (len(groups(grid.frames).unique()) * BANDS)


def short(grid: Grid) -> bool:
    """Whether the calls tile by tile would be."""
    return queries(grid) < FEW


def by_flex(spec: VideoSpec, config: ModelConfig, compiler: Compiler) -> bool:
    """Whether pairs of this clip are left out by FlexAttention."""
    return bool(spec.sparsity) and compiler.makes(FEATURE) and short(grid_of(spec, config))


@contextmanager
def on(model: Transformer, spec: VideoSpec, compiler: Compiler | None = None) -> Iterator[None]:
    """For one clip. Without sparsity nothing is changed."""
    compiler = compiler or Compiler()
    places = [module for module in model.modules() if isinstance(module, SelfAttention)]
    before = [place.attend for place in places]
    for place in places:
        if spec.sparsity and place.layer not in dense_layers(model.config):
            place.attend = Radial(place.attend, spec.sparsity, dense_steps(spec), compiler)
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
    count = steps + spec.guided if forwards is None else forwards
    dense_first = range(dense_steps(spec))
    guided = 0 if spec.guidance == 1 else len(set(dense_first) - guidance.held(spec))
    first = min(count, len(dense_first) + guided)
    return (first + (count - first) * step) / count


def told(spec: VideoSpec, config: ModelConfig, device: str = "cpu") -> str:
    """One line on what the sparsity asked for comes to, on a GPU also whether that may take longer; else empty."""
    if not spec.sparsity:
        return ""
    grid = grid_of(spec, config)
    part = pattern(grid, spec.sparsity).share
    return (
        f"sparsity {spec.sparsity:g}: {part:.0%} of the pairs in self-attention are computed after the first "
        f"{dense_steps(spec)} of {spec.steps} steps; {share(spec, config):.0%} in all"
        + (worth(part, on_h200(grid)) if device == "cuda" else "")
    )


def on_h200(grid: Grid) -> float:
    """Operations a second of what is left."""
    if short(grid):
        return FLEX_H200
    return LONG_H200 if queries(grid) >= LONG else SHORT_H200


def worth(part: float, rate: float) -> str:
    """Nothing where it is faster on an H200."""
    if rate / part >= DENSE_H200:
        return ""
    return (
        f"; this saves time only where dense attention computes less than {rate / part / 1e12:.0f} TFLOP/s, and an "
        f"H200 computes {DENSE_H200 / 1e12:.0f}"
    )
