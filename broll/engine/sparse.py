"""The attend seam of self-attention, with far pairs of tokens left out: radial attention, without training.

Every frame is cut into 4 to 8 bands of consecutive tokens, 256 or more if it has them. Of two frames d apart, band a
attends band b if

    d = 0, or b is in the first frame          each frame sees itself, and all see the first (a sink)
    |a - b| <= w / 2^floor(log2 d)             else a window that halves when the distance doubles;
    a = b, and d is a multiple of a power of 2   where it is thinner than a band: that band, in fewer and fewer frames

w is the widest with which `sparsity`, a share of all pairs, is left out. The first quarter of the steps and the first
layer stay dense, as in the authors' scripts for WAN 2.1 (12 of 50 steps, 1 of 4; 1 layer). Sparsity 0 changes no bit.

`gathered` runs the dense kernel over each band's own keys, so it works with any kernel and is checked as it is;
`masked` is its slow twin. `flexed`, where something is compiled (compiled.py), gives the pattern to FlexAttention: of
blocks of 128 those are left out whole of which no pair is kept, and in the others those pairs that are not. `gathered`
is its slow twin. Left out: text attention, and the finer windows of the authors' kernel (blocks of 128).

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
# Operations a second of `flexed` on an H200 and of its dense attention, by cuDNN: 14B at 720p, sparsity 0.5, in
# benchmarks/results/h200-2026-11-26.json. A block takes 295.1 ms with 41 % of the pairs, 278.2 with all, of which
# attention is 206.2.
FLEX, DENSE_H200 = 216e12, 568e12
BLOCK = 128  # tokens of a block of FlexAttention
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


@functools.lru_cache(maxsize=4)
def mask(pattern: Pattern, device: torch.device) -> Any:
    """The pattern as FlexAttention's BlockMask: blocks of which some pairs are kept, and those of which all are."""
    from torch.nn.attention.flex_attention import BlockMask  # noqa: PLC0415  it brings the compiler

    tokens = pattern.edges[-1]
    tile = torch.repeat_interleave(torch.tensor(pattern.edges).diff())
    holds = torch.zeros(-(-tokens // BLOCK), len(pattern.kept))  # block x tile
    holds[torch.arange(tokens) // BLOCK, tile] = 1
    kept = pattern.kept.float()
    some, lacking = (holds @ kept @ holds.T) > 0, (holds @ (1 - kept) @ holds.T) > 0
    of_token, table = tile.to(device), pattern.kept.to(device)

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
        if self._compiler.makes(FEATURE):
            try:
                return self._compiler.run(
                    FEATURE, "flex", partial(flexed, self._compiler, q, k, v, made), slow
                )
            except Dropped:
                pass
        return slow()


def by_flex(spec: VideoSpec, compiler: Compiler) -> bool:
    """Whether pairs of this clip are left out by FlexAttention."""
    return bool(spec.sparsity) and compiler.makes(FEATURE)


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
    part = pattern(grid_of(spec, config), spec.sparsity).share
    return (
        f"sparsity {spec.sparsity:g}: {part:.0%} of the pairs in self-attention are computed after the first "
        f"{dense_steps(spec)} of {spec.steps} steps; {share(spec, config):.0%} in all"
        + (f"; {worth(part)}" if device == "cuda" and FLEX / part < DENSE_H200 else "")
    )


def worth(part: float) -> str:
    return (
        f"this saves time only where dense attention computes less than {FLEX / part / 1e12:.0f} TFLOP/s, and an "
        f"H200 computes {DENSE_H200 / 1e12:.0f}"
    )
