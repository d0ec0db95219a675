"""Prompt to frames on a tiny model: the door, the stream, and going on after a break."""

import dataclasses

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from broll.engine import conditioning, pipeline, preview, snapshot, step_cache
from broll.engine.config import Ratios
from broll.engine.load import load
from broll.engine.pipeline import Frames, digest, generate, resolve
from broll.engine.sampler import SAMPLERS, Step
from broll.errors import BadOption, BadPrompt, BadSnapshot, UnsupportedShape, WrongTask
from broll.spec import Artifact, parse
from tests import checkpoints


@pytest.fixture(scope="module")
def starting(tmp_path_factory):
    """A model that makes clips from text, or from text and a first picture."""
    return load(checkpoints.diffusers_folder(tmp_path_factory.mktemp("ti2v") / "starts", "ti2v"), "starts")


@pytest.fixture(scope="module")
def parts(tiny_models):
    return load(tiny_models / "tiny", "tiny")


def ask(parts, **fields):
    return resolve(parse(**{"model": "tiny", "prompt": "a lake", "seed": 4} | fields), parts.config)


def split(events):
    events = list(events)
    steps = [e for e in events if isinstance(e, Step)]
    return steps, torch.cat([e.frames for e in events if isinstance(e, Frames)], dim=1)


def test_defaults_come_from_the_model_and_a_seed_is_drawn(parts):
    spec = resolve(parse(model="tiny", prompt="a lake"), parts.config)
    assert (spec.width, spec.height, spec.frames, spec.steps) == (64, 32, 9, 3)
    assert spec.seed is not None
    assert resolve(spec, parts.config) == spec


def test_steps_come_first_and_then_the_frames_in_order(parts):
    events = list(generate(ask(parts, frames=13), parts))
    assert [type(e) for e in events] == [Step] * 3 + [Frames] * 4
    assert [e.index for e in events[:3]] == [0, 1, 2]
    assert [(e.first, e.frames.shape[1]) for e in events[3:]] == [(0, 1), (1, 4), (5, 4), (9, 4)]
    frames = torch.cat([e.frames for e in events[3:]], dim=1)
    assert frames.shape == (3, 13, 32, 64)
    assert frames.abs().max() <= 1
    assert frames.std() > 0


def test_the_same_seed_gives_the_same_bits_and_another_does_not(parts):
    runs = [split(generate(ask(parts, seed=seed), parts))[1] for seed in (7, 7, 8)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_prompt_matters(parts):
    runs = [split(generate(ask(parts, prompt=p), parts))[1] for p in ("a lake", "a city")]
    assert not torch.equal(*runs)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_clip_continued_from_a_snapshot_has_the_same_bits(sampler, parts, tmp_path):
    spec = ask(parts, sampler=sampler, steps=5)
    steps, frames = split(generate(spec, parts))
    for step in steps:
        path = tmp_path / "clip.snapshot"
        snapshot.save(path, snapshot.Snapshot(spec, step, snapshot.conditions(parts)))
        kept = snapshot.load(path)
        assert kept.spec == spec
        assert kept.conditions == snapshot.conditions(parts)
        rest, again = split(generate(kept.spec, parts, resume=kept.step))
        assert len(rest) == len(steps) - step.index - 1
        assert torch.equal(again, frames)
        if rest:
            assert digest(rest[-1].x) == digest(steps[-1].x)


def test_a_damaged_snapshot_is_refused(tmp_path, parts):
    path = tmp_path / "clip.snapshot"
    with pytest.raises(BadSnapshot, match="no snapshot"):
        snapshot.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(BadSnapshot, match="not a snapshot"):
        snapshot.load(path)


@pytest.mark.parametrize(
    "forged",
    [
        {"sigma": "0x1p5000"},
        {"conditions": "[" * 5000},
        {"conditions": "[1, 2]"},
        {"conditions": "3"},
        {"index": "many"},
        {"spec": "{}"},
    ],
)
def test_a_forged_snapshot_is_refused(forged, tmp_path, parts):
    path, spec = tmp_path / "clip.snapshot", ask(parts, steps=2)
    step = split(generate(spec, parts))[0][0]
    snapshot.save(path, snapshot.Snapshot(spec, step, snapshot.conditions(parts)))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file(load_file(path), path, header | forged)
    with pytest.raises(BadSnapshot, match="not a snapshot"):
        snapshot.load(path)


def test_closing_the_generator_stops_the_model(parts):
    calls = []
    parts.transformer.register_forward_hook(lambda *_: calls.append(1))
    events = generate(ask(parts, steps=20, guidance=1.0), parts)
    next(events)
    events.close()
    assert len(calls) == 1


def test_without_guidance_the_negative_prompt_is_not_run(parts):
    plain = split(generate(ask(parts, guidance=1.0, negative_prompt="grey"), parts))[1]
    assert torch.equal(plain, split(generate(ask(parts, guidance=1.0, negative_prompt="blue"), parts))[1])
    guided = split(generate(ask(parts, guidance=4.0, negative_prompt="grey"), parts))[1]
    assert not torch.equal(
        guided, split(generate(ask(parts, guidance=4.0, negative_prompt="blue"), parts))[1]
    )


def test_a_latent_is_previewed_without_the_autoencoder(parts):
    step = next(iter(generate(ask(parts), parts)))
    picture = preview.preview(step.x0)
    assert picture.shape == (3, 2, 4, 3)
    assert picture.dtype == torch.uint8
    one = torch.zeros(1, 16, 1, 1, 1)
    factors = (*[(0.5, 0.0, -0.5)] * 16, (0.1, 0.2, 0.3))
    one[:, 3] = 1.0
    expected = ((torch.tensor([0.6, 0.2, -0.2]) + 1) * 127.5).round()
    assert torch.equal(preview.preview(one, factors)[0, 0, 0].float(), expected)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"frames": 10}, UnsupportedShape, "9 or 13"),
        ({"width": 65, "height": 32}, UnsupportedShape, "64x32"),
        ({"width": 640, "height": 320}, UnsupportedShape, "too large"),
        ({"width": 64}, BadOption, "together"),
        ({"frames": 8001}, UnsupportedShape, "too many"),
        ({"image": Artifact.of(b"x")}, WrongTask, "nano or wan2.1-i2v-14b-480p"),
    ],
)
def test_what_the_model_cannot_do_is_refused_at_the_door(parts, fields, error, words):
    with pytest.raises(error, match=words):
        ask(parts, **fields)


def test_image_models_say_which_picture_they_need(tiny_models):
    for name, words in (("tiny-i2v", "--image"), ("tiny-flf2v", "--image")):
        config = load(tiny_models / name, name).config
        with pytest.raises(WrongTask, match=words):
            resolve(parse(model=name, prompt="a lake"), config)
    with pytest.raises(WrongTask, match="--last-image"):
        resolve(parse(model=name, prompt="a lake", image=Artifact.of(b"x")), config)


def test_an_over_long_prompt_is_refused(parts):
    with pytest.raises(BadPrompt, match="512"):
        next(iter(generate(ask(parts, prompt="a lake " * 200), parts)))


def test_a_picture_sets_the_clips_aspect(tiny_models):
    config = load(tiny_models / "tiny-i2v", "tiny-i2v").config
    asked = parse(model="tiny-i2v", prompt="a lake", image=Artifact.of(b"x"))
    tall = resolve(asked, config, picture=Image.new("RGB", (200, 400)))
    assert tall.height == 2 * tall.width


def test_the_first_frame_steers_an_image_model(tiny_models):
    parts = load(tiny_models / "tiny-i2v", "tiny-i2v")
    runs = []
    for colour in ("red", "blue"):
        image = Image.new("RGB", (64, 32), colour)
        artifact = Artifact.of(image.tobytes())
        spec = resolve(parse(model="tiny-i2v", prompt="a lake", seed=1, image=artifact), parts.config)
        runs.append(split(pipeline.generate(spec, parts, {artifact.sha256: image}))[1])
    assert not torch.equal(*runs)


# --- from text, or from a first picture -------------------------------------------------------------------

PICTURE = Image.linear_gradient("L").resize((64, 32)).convert("RGB")


def begun_with(picture, parts, **fields):
    """A spec with this picture, and the pictures that `generate` is given."""
    artifact = Artifact.of(picture.tobytes())
    given = {"model": "starts", "prompt": "a lake", "seed": 1, "image": artifact}
    spec = resolve(parse(**given | fields), parts.config, picture=picture)
    return spec, {artifact.sha256: picture}


def test_the_first_latent_stays_that_of_the_picture_in_every_step(starting):
    spec, pictures = begun_with(PICTURE, starting)
    steps, frames = split(generate(spec, starting, pictures))
    latent = conditioning.first_latent(starting.vae, PICTURE, 64, 32)
    for step in steps:
        assert torch.equal(step.x[:, :, :1], latent)
        assert torch.equal(step.x0[:, :, :1], latent)
        assert not torch.equal(step.x[:, :, 1:2], latent)
    assert torch.equal(frames[:, :1], starting.vae.decode(latent)[0])


def test_the_picture_steers_the_frames_after_it(starting):
    runs = []
    for colour in ("red", "blue"):
        spec, pictures = begun_with(Image.new("RGB", (64, 32), colour), starting)
        runs.append(split(generate(spec, starting, pictures))[0][-1].x[:, :, 1:])
    assert not torch.equal(*runs)


def test_without_a_picture_the_clip_is_that_of_a_model_for_text(starting, parts):
    asked = {"prompt": "a lake", "seed": 1}
    own = split(generate(resolve(parse(model="starts", **asked), starting.config), starting))[1]
    assert torch.equal(own, split(generate(ask(parts, **asked), parts))[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_clip_from_a_picture_is_continued_from_any_step_with_the_same_bits(sampler, starting, tmp_path):
    spec, pictures = begun_with(PICTURE, starting, sampler=sampler, steps=5)
    steps, frames = split(generate(spec, starting, pictures))
    for step in steps:
        path = tmp_path / "clip.snapshot"
        snapshot.save(path, snapshot.Snapshot(spec, step, snapshot.conditions(starting)))
        rest, again = split(generate(spec, starting, pictures, resume=snapshot.load(path).step))
        assert torch.equal(again, frames)
        assert [digest(one.x) for one in rest] == [digest(one.x) for one in steps[step.index + 1 :]]


def test_steps_are_skipped_and_the_first_latent_stays(starting):
    """Continued before a computed step, the bits are the same."""
    known = Ratios((1.0, *[0.99] * 13), (1.0, *[0.98] * 13), "made up")
    parts = dataclasses.replace(starting, config=dataclasses.replace(starting.config, ratios=known))
    spec, pictures = begun_with(PICTURE, parts, steps=14, quality="draft")
    assert len(step_cache.by_magnitude(spec, parts.config)) == 9
    steps, frames = split(generate(spec, parts, pictures))
    latent = conditioning.first_latent(parts.vae, PICTURE, 64, 32)
    assert all(torch.equal(step.x[:, :, :1], latent) for step in steps)
    exact = split(generate(spec.model_copy(update={"quality": None}), parts, pictures))[1]
    assert not torch.equal(frames, exact)
    for step in (step for step in steps if step.resumable):
        assert torch.equal(split(generate(spec, parts, pictures, resume=step))[1], frames)


def test_a_last_picture_is_refused_and_the_model_that_takes_one_is_named(starting):
    image = Artifact.of(b"x")
    asked = parse(model="starts", prompt="a lake", image=image, last_image=image)
    with pytest.raises(WrongTask, match=r"starts takes no last picture; .* wan2\.1-flf2v-14b"):
        resolve(asked, starting.config)


@pytest.mark.parametrize(
    ("sides", "size"), [((200, 400), (32, 64)), ((400, 200), (64, 32)), ((90, 90), (32, 32))]
)
def test_a_first_picture_sets_the_aspect_at_the_models_own_area(starting, sides, size):
    spec, pictures = begun_with(Image.new("RGB", sides, "red"), starting)
    assert (spec.width, spec.height) == size
    assert split(generate(spec, starting, pictures))[1].shape == (3, 9, *reversed(size))
    assert begun_with(Image.new("RGB", sides), starting, width=96, height=32)[0].width == 96


def test_a_large_first_picture_is_scaled_without_aliasing(starting):
    """Stripes of one pixel, at a sixteenth of their size, are grey; taken pixel by pixel they would not be."""
    stripes = Image.frombytes("L", (1024, 512), bytes([0, 255] * 512) * 512).convert("RGB")
    grey = conditioning.first_latent(starting.vae, Image.new("RGB", (64, 32), (127, 127, 127)), 64, 32)
    made = conditioning.first_latent(starting.vae, stripes, 64, 32)
    assert (made - grey).abs().max() < 0.1
