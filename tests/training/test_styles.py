"""Each style shows at a glance, and is the same however a clip is cut into chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.scenes import Scene, render
from training.styles import GRAIN, STYLES, finish

DONE_AFTERWARDS = ("film", "anamorphic", "documentary", "watercolour")


def _picture(frames: int = 6, height: int = 80, width: int = 128) -> torch.Tensor:
    """A bright sky over a dark coloured floor, with a lamp that moves."""
    img = torch.zeros(3, frames, height, width)
    img[:, :, : height // 2] = torch.tensor([0.4, 0.6, 0.9])[:, None, None, None]
    img[:, :, height // 2 :] = torch.tensor([0.3, 0.2, 0.1])[:, None, None, None]
    for frame in range(frames):
        img[:, frame, 50:56, 20 + 8 * frame : 28 + 8 * frame] = 1.0
    return img


def finished(img: torch.Tensor, style: str, seed: int) -> torch.Tensor:
    return finish(img, style, seed, torch.arange(img.shape[1]))


def _glance(img: torch.Tensor) -> torch.Tensor:
    """What is left after a blur: means over squares of 16 pixels."""
    return F.avg_pool2d(img.movedim(1, 0), 16)


@pytest.mark.parametrize("style", STYLES)
def test_pictures_stay_finite_and_in_range(style: str) -> None:
    for img in (_picture(), torch.zeros(3, 2, 48, 80), torch.ones(3, 2, 80, 48)):
        out = finished(img.clone(), style, 7)
        assert out.shape == img.shape
        assert torch.isfinite(out).all()
        assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_the_same_whatever_frames_are_finished_together(style: str) -> None:
    img = _picture()
    whole = finished(img.clone(), style, 7)
    parts = [
        finish(img[:, start : start + 2].clone(), style, 7, torch.arange(start, start + 2))
        for start in (0, 2, 4)
    ]
    assert (whole - torch.cat(parts, 1)).abs().max() < 1e-5


def test_styles_differ_from_plain_and_from_each_other_even_when_blurred() -> None:
    seen = {"plain": _glance(_picture())}
    for style in DONE_AFTERWARDS:
        now = _glance(finished(_picture(), style, 7))
        for other, before in seen.items():
            assert (now - before).abs().mean() > 0.03, (style, other)
        seen[style] = now
    for style in ("plain", "shallow", "timelapse"):  # these happen while painting
        assert torch.equal(finished(_picture(), style, 7), _picture())


def test_shallow_focus_blurs_what_is_far_and_time_lapse_moves_faster() -> None:
    clips = {
        style: render(Scene("meadow", "noon", "static", "normal", "", 3, style), frames=9)
        for style in ("plain", "shallow", "timelapse")
    }
    top = {style: clip[:, :, :60] for style, clip in clips.items()}
    edges = {style: (clip[..., 1:] - clip[..., :-1]).abs().mean() for style, clip in top.items()}
    assert edges["shallow"] < 0.8 * edges["plain"]
    motion = {style: (clip[-1] - clip[0]).abs().mean() for style, clip in top.items()}
    assert motion["timelapse"] > 1.5 * motion["plain"]


def test_film_grain_is_fine_lives_and_repeats() -> None:
    flat = torch.full((3, 3, 96, 128), 0.5)
    out = finished(flat, "film", 7)
    middle = out[1, :, 40:56, 50:78]
    assert 0.6 * GRAIN < middle.std() < 1.6 * GRAIN
    assert (out[:, 1] - out[:, 0]).abs().mean() > 0.5 * GRAIN
    assert torch.equal(out, finished(flat, "film", 7))
    assert not torch.equal(out, finished(flat, "film", 8))


def test_anamorphic_bars_leave_a_wide_picture() -> None:
    out = finished(torch.full((3, 1, 160, 256), 0.5), "anamorphic", 7)[0, 0, :, 100]
    assert out[:26].max() == 0 and out[-26:].max() == 0
    assert 256 / 2.45 < int((out > 0.25).sum()) < 256 / 2.33


def test_watercolour_keeps_still_where_the_picture_does() -> None:
    img = _picture(2)
    out = finished(img, "watercolour", 7)
    still = (img[:, 0] == img[:, 1]).all(0)
    far = F.max_pool2d((~still).float()[None, None], 31, 1, 15)[0, 0] == 0
    assert (out[:, 0] - out[:, 1]).abs()[:, far].max() < 1e-6
    assert out[:, :, 0, 0].min() > 0.85  # the border is bare paper
