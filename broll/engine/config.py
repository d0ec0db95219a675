"""The published numbers, frozen.

WAN 2.1       https://github.com/Wan-Video/Wan2.1 (wan/configs)   https://arxiv.org/abs/2503.20314
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from broll.errors import BadOption

Task = Literal["t2v", "i2v", "flf2v", "vace", "ti2v"]  # ti2v: from text, or from text and a first picture
FPS = 16
LONGEST_S = 600  # that is believed to be meant


def frames_of(seconds: float, fps: int = FPS) -> int:
    """The nearest length that a causal autoencoder makes, 4k + 1 frames, at `fps` frames a second. Raises BadOption."""
    if not 0 < seconds <= LONGEST_S:
        raise BadOption(f"seconds is {seconds:g}; it must be above 0 and at most {LONGEST_S}")
    return max(1, 4 * round((seconds * fps - 1) / 4) + 1)


@dataclass(frozen=True)
class TransformerConfig:
    """`in_dim` is 16 for text-to-video; 36 = 16 noise + 4 mask + 16 condition for image-to-video."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    text_len: int = 512
    eps: float = 1e-6
    patch_size: tuple[int, int, int] = (1, 2, 2)
    image_dim: int | None = None  # width of the CLIP features; None: no image branch
    image_positions: int | None = None  # FLF2V: learned positions for the tokens of two images
    vace_layers: tuple[int, ...] = ()  # VACE: the blocks that a hint is added after
    vace_in_dim: int | None = None  # VACE: 96 = 16 kept + 16 to be made anew + 64 of the mask

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class VAEConfig:
    base_dim: int = 96
    decoder_base_dim: int | None = None  # None: as base_dim
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    patch_size: int = 1
    latents_mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    latents_std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip

    @property
    def spatial_stride(self) -> int:
        return int(2 ** (len(self.dim_mult) - 1) * self.patch_size)


@dataclass(frozen=True)
class TextConfig:
    """umT5 encoder; the defaults are umT5-XXL's."""

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64


@dataclass(frozen=True)
class ImageConfig:
    """CLIP vision tower; the defaults are those of ViT-H/14."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_layers: int = 32
    num_heads: int = 16
    image_size: int = 224
    patch_size: int = 14


@dataclass(frozen=True)
class Defaults:
    """What a request gets that does not say otherwise."""

    size: tuple[int, int]  # width, height
    max_area: int  # pixels of one frame that the model was trained for
    steps: int = 50
    guidance: float = 5.0
    shift: float = 5.0
    frames: int = 81
    fps: int = FPS
    negative_prompt: str = ""
    sampler: str = "unipc"
    grid: str = "official"


@dataclass(frozen=True)
class Ratios:
    """How much the blocks add in each step, against the step before, of both branches (magnitudes.py)."""

    positive: tuple[float, ...]
    negative: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class ModelConfig:
    name: str
    task: Task
    transformer: TransformerConfig
    defaults: Defaults
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    image: ImageConfig | None = None
    preview: tuple[tuple[float, ...], ...] | None = None  # z_dim + 1 rows of RGB; the last is the bias
    parameters: int = 0  # of the transformer, as published
    ratios: Ratios | None = None  # measured for this checkpoint; None: the published ones of its name, if any

    @property
    def size_multiple(self) -> int:
        """Both sides of a clip are multiples of this: one token's pixels."""
        return self.vae.spatial_stride * self.transformer.patch_size[1]


# The official default, word for word: wan/configs/shared_config.py
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
NEGATIVE_I2V = "镜头晃动，" + NEGATIVE
NEGATIVE_FLF2V = "镜头切换，" + NEGATIVE_I2V

_1_3B: dict[str, Any] = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
_14B: dict[str, Any] = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
_I2V: dict[str, Any] = _14B | {"in_dim": 36, "image_dim": 1280}
_VACE: dict[str, Any] = {"vace_in_dim": 96}
_480P, _720P = 832 * 480, 1280 * 720

PUBLISHED: dict[str, ModelConfig] = {
    model.name: model
    for model in (
        ModelConfig(
            name="wan2.1-t2v-1.3b",
            task="t2v",
            transformer=TransformerConfig(**_1_3B),
            defaults=Defaults((832, 480), _480P, guidance=6.0, shift=8.0, negative_prompt=NEGATIVE),
            parameters=1_418_996_800,
        ),
        ModelConfig(
            name="wan2.1-t2v-14b",
            task="t2v",
            transformer=TransformerConfig(**_14B),
            defaults=Defaults((1280, 720), _720P, negative_prompt=NEGATIVE),
            parameters=14_288_491_584,
        ),
        ModelConfig(
            name="wan2.1-i2v-14b-480p",
            task="i2v",
            transformer=TransformerConfig(**_I2V),
            image=ImageConfig(),
            defaults=Defaults((832, 480), _480P, steps=40, shift=3.0, negative_prompt=NEGATIVE_I2V),
            parameters=16_394_878_784,
        ),
        ModelConfig(
            name="wan2.1-i2v-14b-720p",
            task="i2v",
            transformer=TransformerConfig(**_I2V),
            image=ImageConfig(),
            defaults=Defaults((1280, 720), _720P, steps=40, negative_prompt=NEGATIVE_I2V),
            parameters=16_394_878_784,
        ),
        ModelConfig(
            name="wan2.1-flf2v-14b",
            task="flf2v",
            transformer=TransformerConfig(**_I2V, image_positions=514),
            image=ImageConfig(),
            defaults=Defaults((1280, 720), _720P, shift=16.0, negative_prompt=NEGATIVE_FLF2V),
            parameters=16_395_536_704,
        ),
        ModelConfig(
            name="wan2.1-vace-1.3b",
            task="vace",
            transformer=TransformerConfig(**_1_3B, **_VACE, vace_layers=tuple(range(0, 30, 2))),
            defaults=Defaults((832, 480), _480P, shift=16.0, negative_prompt=NEGATIVE),
            parameters=2_153_972_032,
        ),
        ModelConfig(
            name="wan2.1-vace-14b",
            task="vace",
            transformer=TransformerConfig(**_14B, **_VACE, vace_layers=tuple(range(0, 40, 5))),
            defaults=Defaults((1280, 720), _720P, shift=16.0, negative_prompt=NEGATIVE),
            parameters=17_337_592_896,
        ),
    )
}
