"""Prompt to frames. Read this first: one line for each of the engine's ideas.

    spec -> resolve -> text, image -> noise -> steps -> latents -> frames

`generate` is a generator: it yields a Step after each denoising step, then Frames as the VAE decodes them; and
Decoded while they wait for others, Warned where there is something to say.
Whoever iterates owns progress, preview, snapshot and cancel (closing it stops the work).
"""

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from broll.engine import conditioning, fused, guidance, kernels, parallel, shapes, sparse, step_cache, vace
from broll.engine.batching import Seat
from broll.engine.conditioning import Conditioning
from broll.engine.config import ModelConfig
from broll.engine.guidance import Forward
from broll.engine.load import Parts
from broll.engine.mesh import Mesh
from broll.engine.sampler import SAMPLERS, Step
from broll.engine.schedule import schedule
from broll.engine.shapes import Grid, Latent
from broll.engine.transformer import Transformer
from broll.errors import BadOption, BadPrompt, UnsupportedShape, WrongTask
from broll.spec import VideoSpec

Pictures = Mapping[str, Image.Image]  # sha256 of an Artifact -> its picture
MAX_FRAMES = 1 + 4 * 1023  # the rotary table of the published models ends at 1024 latent frames


@dataclass(frozen=True)
class Frames:
    """Decoded frames `first`, `first + 1`, ... : [3, f, h, w] in [-1, 1]."""

    first: int
    frames: shapes.Frames


@dataclass(frozen=True)
class Decoded:
    """So much of what comes before the first frame, where frames are decoded in tiles (tiles.py)."""

    done: int
    total: int


@dataclass(frozen=True)
class Warned:
    """Something that whoever waits for the clip should know; it goes on."""

    text: str


def resolve(spec: VideoSpec, config: ModelConfig, *, picture: Image.Image | None = None) -> VideoSpec:
    """Fill in the model's defaults, draw a seed, and refuse what the model cannot do.

    With a picture and no size, the clip keeps the picture's aspect at the model's own area.
    """
    defaults = config.defaults
    _check_task(spec, config)
    width, height = _size(spec, config, picture)
    full = VideoSpec.model_validate(
        spec.model_dump()
        | {
            "width": width,
            "height": height,
            "seed": secrets.randbelow(2**32) if spec.seed is None else spec.seed,
        }
        | {
            name: getattr(defaults, name) if getattr(spec, name) is None else getattr(spec, name)
            for name in (
                "frames", "fps", "steps", "guidance", "shift", "sampler", "grid", "negative_prompt",
            )
        }
    )  # fmt: skip
    assert full.frames is not None
    shapes.check_frames(full.frames)
    if full.frames > MAX_FRAMES:
        raise UnsupportedShape(f"{full.frames} frames are too many: {config.name} counts to {MAX_FRAMES}")
    if width * height > 2 * defaults.max_area:
        w, h = defaults.size
        raise UnsupportedShape(
            f"{width}x{height} is too large: {config.name} was trained at {w}x{h} "
            "and makes at most twice that area"
        )
    shapes.check_size(width, height, config.size_multiple)
    guidance.check(full)
    step_cache.check(full, config)
    return full


def _check_task(spec: VideoSpec, config: ModelConfig) -> None:
    if config.task in ("t2v", "vace") and (spec.image or spec.last_image):
        raise WrongTask(
            f"{config.name} makes clips from text alone; for --image use a model that starts from a picture, such as "
            "nano or wan2.1-i2v-14b-480p"
        )
    if config.task in ("i2v", "flf2v") and spec.image is None:
        raise WrongTask(f"{config.name} needs a picture to start from: give --image")
    if config.task in ("i2v", "ti2v") and spec.last_image:
        raise WrongTask(f"{config.name} takes no last picture; for --last-image use wan2.1-flf2v-14b")
    if config.task == "flf2v" and spec.last_image is None:
        raise WrongTask(f"{config.name} needs a first and a last picture: give --last-image too")


def _size(spec: VideoSpec, config: ModelConfig, picture: Image.Image | None) -> tuple[int, int]:
    if (spec.width is None) != (spec.height is None):
        raise BadOption("width and height go together; only one of them was given")
    if spec.width is not None and spec.height is not None:
        return spec.width, spec.height
    if picture is None:
        return config.defaults.size
    grid = conditioning.image_size(picture, config.defaults.max_area, config.size_multiple)
    return grid.width, grid.height


def noise(grid: Grid, channels: int, seed: int) -> Latent:
    """The clip before its first step. Drawn on the CPU in fp32, so that a seed means the same everywhere."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(1, channels, grid.frames, grid.height, grid.width, generator=generator)


def prompts(spec: VideoSpec) -> tuple[str, ...]:
    """What the text encoder is asked for. Without guidance a negative prompt has no effect, however long it is."""
    return (spec.prompt,) if spec.guidance == 1 else (spec.prompt, spec.negative_prompt or "")


def condition(spec: VideoSpec, parts: Parts, pictures: Pictures) -> Conditioning:
    """Run the encoders: text; for a picture the VAE and, where the model has it, CLIP."""
    texts = []
    for prompt in prompts(spec):
        features = parts.text(prompt)
        texts.append(conditioning.collapsed(features, parts.config.transformer.text_len))
    positive, negative = texts[0], texts[1] if len(texts) > 1 else None
    given = [pictures[a.sha256] for a in (spec.image, spec.last_image) if a is not None]
    assert spec.width and spec.height and spec.frames
    if parts.config.task == "ti2v" and given:
        first = conditioning.first_latent(parts.vae, given[0], spec.width, spec.height)
        return Conditioning(positive, negative, first=first)
    if parts.config.task == "vace":
        control = vace.free(parts.vae, spec.frames, spec.height, spec.width)
        return Conditioning(positive, negative, control=control)
    if not given or parts.image is None:
        return Conditioning(positive, negative)
    cut = [conditioning.cover(picture, spec.width, spec.height) for picture in given]
    fitted = [conditioning.fit(p, spec.width, spec.height, spec.preprocessing) for p in cut]
    features = torch.cat([parts.image(picture, spec.preprocessing) for picture in cut], dim=1)
    last = fitted[1] if len(fitted) > 1 else None
    y = conditioning.image_channels(parts.vae, fitted[0], last, spec.frames)
    return Conditioning(positive, negative, features, y)


def check_prompt(spec: VideoSpec, parts: Parts) -> None:
    """Refuse a prompt that the text encoder would cut off."""
    limit = parts.config.transformer.text_len
    for name, prompt in zip(("prompt", "negative prompt"), prompts(spec), strict=False):
        count = parts.text.count(prompt)
        if count > limit:
            raise BadPrompt(f"the {name} has {count} tokens; {parts.config.name} reads at most {limit}")


@torch.inference_mode()
def generate(
    spec: VideoSpec, parts: Parts, pictures: Pictures | None = None, resume: Step | None = None
) -> Iterator[Step | Frames | Decoded | Warned]:
    """Yield every step, then the frames. `spec` is resolved; with `resume`, go on after that step."""
    assert spec.width and spec.height and spec.frames and spec.steps and spec.shift and spec.seed is not None
    assert spec.sampler and spec.grid and spec.guidance
    check_prompt(spec, parts)
    kernels.begin(parts.transformer)
    parts.compiler.begin()
    stride = parts.config.vae.spatial_stride
    grid = shapes.latent_grid(Grid(spec.frames, spec.height, spec.width), stride)
    levels = schedule(spec.steps, shift=spec.shift, grid=spec.grid, sampler=spec.sampler)
    last = None if resume is None else on(resume, parts.device)

    if last is None or last.index + 1 < levels.steps:
        given = condition(spec, parts, pictures or {})
        group = parallel.of(spec, parts.config, parts.team, parts.compiler)
        skips, held = step_cache.of(spec, parts.config, parts.transformer), guidance.held(spec)
        x = noise(grid, parts.config.transformer.out_dim, spec.seed).to(parts.device)
        with step_cache.on(parts.transformer, skips), faster(spec, parts, group), seated(parts) as model:
            branches = forwards(parts, given, grid, levels.times, model)
            velocity = parallel.guided(group, *branches, spec.guidance, held)
            for step in SAMPLERS[spec.sampler](velocity, x, levels, last):
                news = kernels.news(parts.transformer) + parts.compiler.news()
                yield from map(Warned, parallel.together(parts.team, parts.transformer, news))
                last = as_seen(step, given, resumable=step.index + 1 not in skips | held)
                yield last
    assert last is not None
    yield from decode(last.x, parts)


@contextmanager
def faster(spec: VideoSpec, parts: Parts, group: Mesh | None = None) -> Iterator[None]:
    """Far pairs left out, passes compiled, tokens cut: whatever of it this clip asks for or pays for."""
    model, compiler = parts.transformer, parts.compiler
    wanted = fused.wanted(spec, parts.config, compiler) and (group is None or group.layout.tokens == 1)
    grid = sparse.grid_of(spec, parts.config)
    with (
        sparse.on(model, spec, compiler),
        fused.on(model, compiler, wanted=wanted),
        parallel.on(model, group, grid),
    ):
        yield


@contextmanager
def seated(parts: Parts) -> Iterator[Transformer | Seat]:
    """The transformer; among others where clips are made together, and then as it is (`batching.kind`)."""
    if parts.meeting is None:
        yield parts.transformer
        return
    with parts.meeting.seat() as seat:
        yield seat


def forwards(
    parts: Parts,
    given: Conditioning,
    grid: Grid,
    times: tuple[float, ...],
    called: Transformer | Seat | None = None,
) -> tuple[Forward, Forward | None]:
    """The transformer under the positive and the negative prompt, as functions of x and the step's index."""
    model = parts.transformer
    called = called or model

    def forward(text: conditioning.Text, branch: str) -> Forward:
        context = model.context(grid, text.features, given.image, text_bias=text.bias, branch=branch)
        if given.control is not None:
            assert isinstance(model, vace.VACE)
            context = model.follow(context, given.control)

        def run(x: Latent, index: int) -> Latent:
            full = x if given.y is None else torch.cat([x, given.y], dim=1)
            time = torch.tensor([times[index]], device=x.device)
            if given.first is not None:  # what is given is clean: time 0
                full = conditioning.held(x, given.first)
                time = time.repeat(1, grid.frames)
                time[:, : given.first.shape[2]] = 0
            return called(full, time, context, index)

        return run

    positive = forward(given.positive, "positive")
    return positive, None if given.negative is None else forward(given.negative, "negative")


def as_seen(step: Step, given: Conditioning, *, resumable: bool) -> Step:
    """With the latents that were given in their places: a solver moves them too, but nobody looks."""
    x, x0 = (conditioning.held(latent, given.first) for latent in (step.x, step.x0))
    return replace(step, x=x, x0=x0, resumable=resumable)


def decode(latent: Latent, parts: Parts) -> Iterator[Frames | Decoded]:
    """Latents to frames, as they come out of the VAE."""
    first = before = 0
    for video in parts.vae.decode_stream(latent):
        if video.shape[2]:
            yield Frames(first, video[0])
            first += video.shape[2]
        else:
            before += 1
            yield Decoded(before, parts.vae.passes * latent.shape[2])


def on(step: Step, device: torch.device) -> Step:
    history = tuple(tensor.to(device) for tensor in step.history)
    return Step(step.index, step.sigma, step.x.to(device), step.x0.to(device), history)


def digest(x: Tensor) -> str:
    """sha256 of a latent's fp32 bytes: two clips with the same one are the same, bit for bit."""
    return hashlib.sha256(x.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
