"""Rendered clips show what their labels say."""

from __future__ import annotations

import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from training.scenes import ALLOWED, CAMERAS, LIGHTS, SCENES, Scene, render, sample

STILL = Scene("lake", "noon", "static", "normal", "", 3)


def _shift(scene: Scene) -> tuple[float, float]:
    """Pixels that the picture moves right and down over a short clip, by phase correlation."""
    clip = render(scene, frames=9).mean(1).numpy()
    window = cv2.createHanningWindow((160, 96), cv2.CV_32F)
    steps = [
        cv2.phaseCorrelate(np.float32(a), np.float32(b), window)[0]
        for a, b in zip(clip, clip[1:], strict=False)
    ]
    return float(np.median([s[0] for s in steps])), float(np.median([s[1] for s in steps]))


def test_the_same_seed_renders_the_same_pixels_and_another_does_not() -> None:
    once, again = render(STILL, frames=3), render(STILL, frames=3)
    assert torch.equal(once, again)
    assert not torch.equal(once, render(replace(STILL, seed=4), frames=3))


def test_a_clip_has_the_asked_size_and_stays_in_range() -> None:
    clip = render(STILL, frames=5, height=48, width=80)
    assert clip.shape == (5, 3, 48, 80)
    assert clip.dtype == torch.float32
    assert clip.min() >= -1 and clip.max() <= 1


@pytest.mark.parametrize("name", SCENES)
def test_every_light_and_camera_of_a_scene_renders_finite_and_not_flat(name: str) -> None:
    for light in LIGHTS:
        for camera in CAMERAS:
            if name not in ALLOWED.get(camera, SCENES):
                continue
            for move in ("zoom", "dolly") if camera.startswith("zoom") else ("",):
                clip = render(Scene(name, light, camera, "fast", move, 7), frames=3)
                assert torch.isfinite(clip).all()
                assert clip.std() > 0.05


@pytest.mark.parametrize("name", ["lake", "desert", "city", "product"])
def test_content_moves_against_pan_and_tilt(name: str) -> None:
    view = Scene(name, "noon", "pan left", "normal", "", 5)
    assert _shift(view)[0] > 1
    assert _shift(replace(view, camera="pan right"))[0] < -1
    assert _shift(replace(view, camera="tilt up"))[1] > 1
    assert _shift(replace(view, camera="tilt down"))[1] < -1
    assert max(map(abs, _shift(replace(view, camera="static")))) < 0.5


def test_pictures_do_not_depend_on_which_frames_are_painted_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in SCENES:
        scene = Scene(name, "night", "pan right", "fast", "", 9)
        monkeypatch.setattr("training.scenes.CHUNK", 20)
        whole = render(scene, frames=20)
        monkeypatch.setattr("training.scenes.CHUNK", 2)
        assert (whole - render(scene, frames=20)).abs().mean() < 1e-4


def test_a_fast_pan_moves_further_than_a_slow_one() -> None:
    view = Scene("lake", "noon", "pan left", "slow", "", 5)
    assert _shift(replace(view, speed="fast"))[0] > 1.5 * _shift(view)[0]


def test_night_is_darkest_and_golden_hour_is_warmest_in_every_scene() -> None:
    for name in SCENES:
        mean = {
            light: render(Scene(name, light, "static", "normal", "", 2), frames=1).mean((0, 2, 3))
            for light in LIGHTS
        }
        assert min(LIGHTS, key=lambda light: float(mean[light].mean())) == "night"
        assert max(LIGHTS, key=lambda light: float(mean[light][0] - mean[light][2])) == "golden hour"


def test_samples_allow_each_camera_only_where_it_shows() -> None:
    rng = random.Random(0)
    drawn = [sample(rng) for _ in range(3000)]
    assert all(s.scene in ALLOWED.get(s.camera, SCENES) for s in drawn)
    for field, values in (("scene", SCENES), ("light", LIGHTS), ("camera", CAMERAS)):
        counts = [sum(getattr(s, field) == value for s in drawn) for value in values]
        assert min(counts) > 0.7 * len(drawn) / len(values)
