"""What a clip costs before it is made: operations and bytes, stage by stage.

    text       the prompts through umT5, once each, and their keys and values
    image      the pictures through CLIP, and the clip between them through the VAE; VACE: a grey clip; ti2v: one frame
    denoise    a forward of the transformer for each step, and one more for each guided one, less those that are
               skipped (step_cache.py)
    decode     latents to frames

Operations come from counts.py, bytes from footprint.py. Without a lever every component stays in memory from the first
stage to the last, as load.py has it; a stage's peak is all of them and what the stage itself needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from broll.engine import counts, footprint, shapes, sparse, step_cache, tiles
from broll.engine.config import ModelConfig, VAEConfig
from broll.engine.counts import Operations
from broll.engine.footprint import Bytes
from broll.engine.load import Precision
from broll.engine.shapes import Grid
from broll.spec import VideoSpec

STAGES = ("text", "image", "denoise", "decode")
PROMPT = 80  # tokens of a prompt, about
BASE = {
    "cpu": 570_000_000,
    "cuda": 500_000_000,
}  # Python, torch, transformers, av with an encoder; a CUDA context


@dataclass(frozen=True)
class Stage:
    name: str
    operations: Operations
    weights: int  # bytes in memory meanwhile
    working: int  # bytes that it needs besides
    reads: int = 0  # bytes of weights that it passes over
    carried: int = 0  # bytes of weights that come to the device meanwhile

    @property
    def peak_bytes(self) -> int:
        return self.weights + self.working


@dataclass(frozen=True)
class Decoding:
    """What its cost depends on besides the number of tiles."""

    config: VAEConfig
    latent: Grid
    dtype: torch.dtype
    device: str

    def operations(self, count: int = 1) -> Operations:
        areas = [] if count == 1 else tiles.areas(self.config, self.latent, count)
        return counts.decode(self.config, self.latent, areas)

    def working(self, count: int = 1) -> int:
        size = (self.latent.height, self.latent.width, self.latent.frames)
        return footprint.decode(self.config, *size, self.dtype, self.device, count)


@dataclass(frozen=True)
class Estimate:
    stages: tuple[Stage, ...]
    base: int  # bytes of the process itself
    held: tuple[tuple[str, int], ...]  # bytes of every component's weights
    decoding: Decoding
    streamed: tuple[int, int] = (0, 0)  # footprint.streamed of the transformer

    @property
    def weight_bytes(self) -> int:
        return sum(size for _, size in self.held)

    @property
    def memory_bytes(self) -> int:
        """The highest peak of all stages."""
        return self.base + max(stage.peak_bytes for stage in self.stages)

    @property
    def flops(self) -> float:
        return sum(stage.operations.total for stage in self.stages)

    def stage(self, name: str) -> Stage:
        return next((stage for stage in self.stages if stage.name == name), Stage(name, Operations(), 0, 0))

    def changed(self, change: Callable[[Stage, "Estimate"], Stage]) -> "Estimate":
        return replace(self, stages=tuple(change(stage, self) for stage in self.stages))


def text_freed(stage: Stage, whole: Estimate) -> Stage:
    """With the text encoder loaded first and let go: beside it there is nothing, and later it is not there."""
    own = dict(whole.held)["text_encoder"]
    return replace(stage, weights=own if stage.name == "text" else stage.weights - own)


def blocks_streamed(stage: Stage, whole: Estimate) -> Stage:
    """With two blocks of the transformer on the device, and the others coming at every forward."""
    held, (away, rooms) = dict(whole.held), whole.streamed
    if stage.weights == held["text_encoder"]:
        return stage  # the transformer is not there yet
    carried = round(stage.reads * away / held["transformer"]) if stage.name == "denoise" else 0
    return replace(stage, weights=stage.weights - away + rooms, carried=carried)


def tiled(count: int) -> Callable[[Stage, Estimate], Stage]:
    """With frames decoded in so many tiles, if it is decoding that needs most."""

    def change(stage: Stage, whole: Estimate) -> Stage:
        highest = whole.base + stage.peak_bytes == whole.memory_bytes
        if stage.name != "decode" or not highest:
            return stage
        return replace(
            stage, working=whole.decoding.working(count), operations=whole.decoding.operations(count)
        )

    return change


def estimate(
    spec: VideoSpec,
    config: ModelConfig,
    *,
    precision: Precision,
    held: Bytes | None = None,
    device: str = "cpu",
    prompt_tokens: int = PROMPT,
) -> Estimate:
    """Of a resolved spec. `held`: footprint.kept of its checkpoint; else what is published, in this precision."""
    weights = held or footprint.built(config, precision)
    assert spec.frames and spec.width and spec.height and spec.steps and spec.guidance
    pixels = Grid(spec.frames, spec.height, spec.width)
    latent = shapes.latent_grid(pixels, config.vae.spatial_stride)
    pictures = len([a for a in (spec.image, spec.last_image) if a is not None])
    seen = 0 if config.image is None else counts.image_tokens(config.image) * max(1, pictures)
    prompts = 1 if spec.guidance == 1 else 2
    known, c, low = min(prompt_tokens + 1, config.transformer.text_len), config.transformer, precision.linears
    total, t = sum(weights.values()), config.text
    tokens = shapes.token_grid(latent, c.patch_size).size
    matrix = footprint.largest(weights["transformer"], c, low)
    working = footprint.forward(c, latent, known, seen, low, device, matrix)
    operations = counts.text_encoder(t, prompt_tokens) + counts.prompt(c, known, seen)
    text = footprint.text_encoder(t, prompt_tokens, precision.text)
    layers = counts.text_encoder(t, 1).matrix / 2
    reads = (
        weights["text_encoder"] * layers / (layers + t.vocab_size * t.d_model)
    )  # of its table only a few rows
    stages = [Stage("text", operations * prompts, total, text, int(reads) * prompts)]
    if seen or c.vace_layers or (pictures and config.task == "ti2v"):
        stages.append(_image(config, pixels, max(1, pictures), total, precision, device))
    forwards = step_cache.forwards(spec, config)
    working += step_cache.kept_bytes(spec, config, tokens)
    part = sparse.share(spec, config, forwards)
    denoise = counts.forward(c, tokens, known, seen, share=part) * forwards
    stages.append(Stage("denoise", denoise, total, working, weights["transformer"] * forwards))
    decoding = Decoding(config.vae, latent, precision.decodes, device)
    stages.append(Stage("decode", decoding.operations(), total, decoding.working(), weights["vae"]))
    streamed = footprint.streamed(weights["transformer"], config, precision, device)
    return Estimate(tuple(stages), BASE.get(device, BASE["cpu"]), tuple(weights.items()), decoding, streamed)


def _image(
    config: ModelConfig, pixels: Grid, pictures: int, total: int, precision: Precision, device: str
) -> Stage:
    frames = 1 if config.task == "ti2v" else pixels.frames
    operations = counts.encode(config.vae, Grid(frames, pixels.height, pixels.width))
    working = footprint.encode(config.vae, pixels.height, pixels.width, frames, precision.vae, device)
    if config.image is not None:
        operations += counts.image_encoder(config.image) * pictures
        tokens = counts.image_tokens(config.image)
        working = max(working, footprint.image_encoder(config.image, tokens, precision.image))
    return Stage("image", operations, total, working)
