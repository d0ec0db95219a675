"""Rendered clips show what their labels say."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import cycle, islice

import cv2
import numpy as np
import pytest
import torch

from training.camera import CAMERAS, MOVES
from training.scenes import ALLOWED, SCENES, Scene, mirrored, render, sample
from training.styles import STYLES
from training.worlds import LIGHTS, WORLDS

STILL = Scene("lake", "noon", "static", "normal", "", 3)
SMALL = {"height": 64, "width": 96}


def _shift(clip: torch.Tensor) -> tuple[float, float]:
    """Pixels that the picture moves right and down in a frame, by phase correlation."""
    frames = clip.mean(1).numpy()
    window = cv2.createHanningWindow((frames.shape[2], frames.shape[1]), cv2.CV_32F)
    steps = [
        cv2.phaseCorrelate(np.float32(a), np.float32(b), window)[0]
        for a, b in zip(frames, frames[1:], strict=False)
    ]
    return float(np.median([s[0] for s in steps])), float(np.median([s[1] for s in steps]))


def _moves(scene: Scene) -> tuple[float, float]:
    return _shift(render(scene, frames=9, height=96, width=160))


def test_the_same_seed_renders_the_same_pixels_and_another_does_not() -> None:
    once, again = render(STILL, frames=3, **SMALL), render(STILL, frames=3, **SMALL)
    assert torch.equal(once, again)
    assert not torch.equal(once, render(replace(STILL, seed=4), frames=3, **SMALL))


def test_a_clip_has_the_asked_size_and_stays_in_range() -> None:
    clip = render(STILL, frames=5, height=48, width=80)
    assert clip.shape == (5, 3, 48, 80)
    assert clip.dtype == torch.float32
    assert clip.min() >= -1 and clip.max() <= 1


@pytest.mark.parametrize("style", STYLES)
def test_some_frames_are_those_of_the_whole_clip(style: str) -> None:
    scene = Scene("city", "night", "orbit", "fast", "left", 3, style)
    whole, some = render(scene, frames=21, **SMALL), render(scene, frames=21, only=(2, 3, 11, 20), **SMALL)
    torch.testing.assert_close(some, whole[[2, 3, 11, 20]])


@pytest.mark.parametrize("name", SCENES)
def test_every_light_and_every_camera_of_a_scene_renders_finite_and_not_flat(name: str) -> None:
    ways = [(camera, move) for camera in WORLDS[name].cameras for move in MOVES.get(camera, ("",))]
    lights = WORLDS[name].lights
    assert len(ways) > len(lights)
    for (camera, move), light in zip(ways, islice(cycle(lights), len(ways)), strict=True):
        clip = render(Scene(name, light, camera, "fast", move, 7), frames=2, **SMALL)
        assert torch.isfinite(clip).all()
        assert clip.std() > 0.05, (light, camera)


def test_a_world_says_which_cameras_and_lights_suit_it() -> None:
    for world in WORLDS.values():
        assert set(world.cameras) <= set(CAMERAS) and set(world.lights) <= set(LIGHTS)
        assert {"static", "pan left", "pan right", "zoom in", "handheld"} <= set(world.cameras)
    assert all(len(ALLOWED[camera]) >= 4 for camera in CAMERAS)
    assert {light for world in WORLDS.values() for light in world.lights} == set(LIGHTS)


@pytest.mark.parametrize("name", ["lake", "desert", "city", "product"])
def test_content_moves_against_pan_and_tilt(name: str) -> None:
    view = Scene(name, "noon", "pan left", "normal", "", 5)
    assert _moves(view)[0] > 1
    assert _moves(replace(view, camera="pan right"))[0] < -1
    assert _moves(replace(view, camera="tilt up"))[1] > 1
    assert _moves(replace(view, camera="tilt down"))[1] < -1
    assert max(map(abs, _moves(replace(view, camera="static")))) < 0.5


@pytest.mark.parametrize("name", SCENES)
def test_pictures_do_not_depend_on_which_frames_are_painted_together(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, seen = Scene(name, "night", "pan right", "fast", "", 9), []
    for chunk in (12, 5):
        monkeypatch.setattr("training.scenes.CHUNK", chunk)
        seen.append(render(scene, frames=12, **SMALL))
    assert (seen[0] - seen[1]).abs().mean() < 1e-4


def test_a_fast_pan_moves_further_than_a_slow_one() -> None:
    view = Scene("lake", "noon", "pan left", "slow", "", 5)
    assert _moves(replace(view, speed="fast"))[0] > 1.5 * _moves(view)[0]


def test_a_mirrored_clip_shows_the_mirrored_scene() -> None:
    view = Scene("lake", "noon", "pan left", "normal", "", 5)
    assert mirrored(view).camera == "pan right"
    flipped = _shift(render(view, frames=9, height=96, width=160).flip(3))[0]
    assert flipped < -1 and _moves(mirrored(view))[0] < -1
    rng = random.Random(2)
    for scene in (sample(rng) for _ in range(300)):
        other = mirrored(scene)
        assert mirrored(other) == scene
        assert ("left" in scene.camera) == ("right" in other.camera)
        assert (scene.move == "left") == (other.move == "right")
        assert replace(other, camera=scene.camera, move=scene.move) == scene


def test_night_is_darkest_and_golden_hour_is_warmest_where_there_are_both() -> None:
    for name, world in WORLDS.items():
        mean = {
            light: render(Scene(name, light, "static", "normal", "", 2), frames=1, **SMALL).mean((0, 2, 3))
            for light in world.lights
        }
        assert min(mean, key=lambda light: float(mean[light].mean())) == "night", name
        if {"golden hour", "noon"} <= mean.keys():
            assert max(mean, key=lambda light: float(mean[light][0] - mean[light][2])) == "golden hour", name


def test_samples_are_of_what_suits_and_of_everything_about_as_often() -> None:
    rng = random.Random(0)
    drawn = [sample(rng) for _ in range(6000)]
    for scene in drawn:
        assert scene.camera in WORLDS[scene.scene].cameras and scene.light in WORLDS[scene.scene].lights
        assert scene.move in MOVES.get(scene.camera, ("",))
    cameras = [sum(s.camera == camera for s in drawn) for camera in CAMERAS]
    assert min(cameras) > 0.8 * len(drawn) / len(CAMERAS)
    for field, values in (("scene", SCENES), ("light", LIGHTS), ("style", STYLES)):
        counts = [sum(getattr(s, field) == value for s in drawn) for value in values]
        assert min(counts) > 0.12 * len(drawn) / len(values), field
