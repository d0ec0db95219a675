"""Operations of every part, from the shapes alone; a multiplication and an addition are two.

    Linear           2 * rows * in * out
    attention        4 * queries * keys * width
    convolution      2 * weights * output positions

Divided by what computes them, because each has a rate of its own. Counted, not guessed: tests/engine/test_counts.py
holds every count against torch's own FlopCounterMode, at the true size of the published models.

Left out: norms, activations and other arithmetic of single elements, which costs memory traffic and hardly operations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broll.engine.config import ImageConfig, TextConfig, TransformerConfig, VAEConfig
from broll.engine.shapes import Grid

Number = int | float  # for beartype, an int is no float


@dataclass(frozen=True)
class Operations:
    matrix: Number = 0.0
    attention: Number = 0.0
    convolution: Number = 0.0

    @property
    def total(self) -> float:
        return self.matrix + self.attention + self.convolution

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(
            self.matrix + other.matrix,
            self.attention + other.attention,
            self.convolution + other.convolution,
        )

    def __mul__(self, times: Number) -> "Operations":
        return Operations(self.matrix * times, self.attention * times, self.convolution * times)


def forward(c: TransformerConfig, n: int, text: int, image: int = 0, *, share: float = 1.0) -> Operations:
    """One forward over n tokens that attend `text` and `image` tokens, whose keys and values are known already, and
    a share of each other.
    """
    blocks, hints = c.num_layers + len(c.vace_layers), len(c.vace_layers)
    linear = 2.0 * n * blocks * (6 * c.dim**2 + 2 * c.dim * c.ffn_dim)
    linear += 2.0 * n * c.dim**2 * (hints + (hints > 0))  # after_proj of each, before_proj of the first
    time = 2.0 * (c.freq_dim * c.dim + 7 * c.dim**2)
    ends = 2.0 * n * c.dim * patch(c) * (c.in_dim + c.out_dim)
    attention = 4.0 * n * (share * n + text + image) * c.dim * blocks
    return Operations(linear + time + ends, attention)


def prompt(c: TransformerConfig, text: int, image: int = 0) -> Operations:
    """What is computed once for a prompt: embedded tokens, and their keys and values in every block."""
    blocks = c.num_layers + len(c.vace_layers)
    embed = 2.0 * text * (c.text_dim * c.dim + c.dim**2)
    if image and c.image_dim is not None:
        embed += 2.0 * image * (c.image_dim**2 + c.image_dim * c.dim)
    return Operations(embed + 2.0 * (text + image) * 2 * c.dim**2 * blocks)


def patch(c: TransformerConfig) -> int:
    return c.patch_size[0] * c.patch_size[1] * c.patch_size[2]


def text_encoder(c: TextConfig, tokens: int) -> Operations:
    inner = c.num_heads * c.d_kv
    linear = 2.0 * tokens * c.num_layers * (4 * c.d_model * inner + 3 * c.d_model * c.d_ff)
    return Operations(linear, 4.0 * tokens**2 * inner * c.num_layers)


def image_tokens(c: ImageConfig) -> int:
    return (c.image_size // c.patch_size) ** 2 + 1


def image_encoder(c: ImageConfig) -> Operations:
    """One picture."""
    tokens, width = image_tokens(c), c.hidden_size
    linear = 2.0 * tokens * c.num_layers * (4 * width**2 + 2 * width * c.intermediate_size)
    patches = 2.0 * (tokens - 1) * width * 3 * c.patch_size**2
    return Operations(linear, 4.0 * tokens**2 * width * c.num_layers, patches)


def decode(c: VAEConfig, latent: Grid, tiles: Iterable[Sequence[int]] = ()) -> Operations:
    """All latents to pixels; the first makes 1 frame, the others 4. `tiles`: the positions of each at every level and
    at the last convolution (tiles.py), if there is more than the picture itself.
    """
    dims = [(c.decoder_base_dim or c.base_dim) * m for m in reversed(c.dim_mult)]
    area, frames = latent.height * latent.width, latent.frames
    total = 2.0 * area * frames * (c.z_dim**2 + 27 * c.z_dim * dims[0])
    made = Operations(0.0, 0.0, total) + middle(dims[0], area, frames)
    whole = [area * 4**level for level in range(len(dims))]
    for areas in tiles or [[*whole, whole[-1]]]:
        made += rise(c, dims, areas, frames)
    return made


def rise(c: VAEConfig, dims: Sequence[int], areas: Sequence[int], frames: int) -> Operations:
    """The decoder above its middle, with so many positions at every level."""
    made, dim_in = Operations(), dims[0]
    for level, (dim, area) in enumerate(zip(dims, areas, strict=False)):
        made += residuals(dim_in, dim, c.num_res_blocks + 1, area * frames)
        if level == len(dims) - 1:
            break
        total = 0.0
        if c.temporal_downsample[::-1][level]:
            total += 2.0 * area * (frames - 1) * 3 * dim * 2 * dim
            frames = 2 * frames - 1
        made += Operations(0.0, 0.0, total + 2.0 * 4 * area * frames * 9 * dim * (dim // 2))
        dim_in = dim // 2
    return made + Operations(0.0, 0.0, 2.0 * areas[-1] * frames * 27 * dims[-1] * 3 * c.patch_size**2)


def encode(c: VAEConfig, pixels: Grid) -> Operations:
    """All frames of a clip to latents."""
    dims = [c.base_dim * m for m in (1, *c.dim_mult)]
    area, frames = pixels.height * pixels.width // c.patch_size**2, pixels.frames
    made = Operations(0.0, 0.0, 2.0 * area * frames * 27 * 3 * c.patch_size**2 * dims[0])
    for level, (dim_in, dim) in enumerate(zip(dims, dims[1:], strict=False)):
        made += residuals(dim_in, dim, c.num_res_blocks, area * frames)
        if level == len(dims) - 2:
            break
        area //= 4
        total = 2.0 * area * frames * 9 * dim**2
        if c.temporal_downsample[level]:
            total += 2.0 * area * ((frames - 1) // 2) * 3 * dim**2
            frames = (frames - 1) // 2 + 1
        made += Operations(0.0, 0.0, total)
    total = 2.0 * area * frames * (27 * dims[-1] * 2 * c.z_dim + (2 * c.z_dim) ** 2)
    return made + middle(dims[-1], area, frames) + Operations(0.0, 0.0, total)


def residuals(dim_in: int, dim: int, count: int, positions: int) -> Operations:
    """Residual blocks one after the other; the first may change the width."""
    weights = 27 * (dim_in * dim + dim**2) + (count - 1) * 27 * 2 * dim**2
    weights += dim_in * dim if dim_in != dim else 0
    return Operations(0.0, 0.0, 2.0 * positions * weights)


def middle(dim: int, area: int, frames: int) -> Operations:
    """Two residual blocks, and attention among the positions of each frame."""
    return Operations(0.0, 4.0 * frames * area**2 * dim, 2.0 * frames * area * (4 * 27 + 4) * dim**2)
