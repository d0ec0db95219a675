import numpy as np
import pytest

from broll.errors import BadOption
from broll.media.checks import measure_frames
from broll.media.retime import Between, retime
from tests.media import stage

FPS = stage.FPS


def pan(frames, turn=0.3):
    return stage.film([{"yaw": s} for s in np.linspace(-turn / 2, turn / 2, frames)])


def error(a, b):
    """Mean absolute difference where both show the same, levels; the rim, which comes into the picture, is left out."""
    return np.abs(a.astype(int) - b.astype(int))[..., 8:-8, 12:-12, :].mean()


def test_the_same_pace_is_the_same_clip():
    frames = pan(9)
    assert np.array_equal(retime(frames, 1), frames)


@pytest.mark.parametrize(("factor", "count"), [(2, 9), (0.5, 33), (4, 5), (0.8, 21), (1.5, 11), (1 / 3, 49)])
def test_the_whole_clip_is_shown(factor, count):
    frames = pan(17)
    made = retime(frames, factor)
    assert made.shape == (count, *frames.shape[1:]) and made.dtype == np.uint8
    assert np.array_equal(made[0], frames[0])


def test_twice_as_fast_leaves_out_every_other_frame():
    frames = pan(17)
    assert np.array_equal(retime(frames, 2), frames[::2])


def test_half_as_fast_keeps_every_frame_and_adds_true_ones_between():
    truth = pan(33)
    made = retime(truth[::2], 0.5)
    assert np.array_equal(made[::2], truth[::2])
    blend = (truth[:-2:2].astype(int) + truth[2::2]) / 2
    assert error(made[1::2], truth[1::2]) < 0.5 * error(blend, truth[1::2])


def test_a_clip_of_the_same_length_at_half_the_pace_is_its_first_half():
    frames = pan(33)
    made = retime(frames, 0.5, count=33)
    assert len(made) == 33 and np.array_equal(made[-1], frames[16])


def test_motion_is_what_the_pace_says():
    frames = pan(65)
    before = measure_frames(frames, FPS).motion
    for factor in (0.5, 0.8, 2):
        assert measure_frames(retime(frames, factor), FPS).motion == pytest.approx(before * factor, rel=0.15)


def test_a_faster_clip_of_the_same_length_needs_more_frames():
    with pytest.raises(BadOption, match="need 33 frames; the clip has 17, enough for 1 to 9"):
        retime(pan(17), 2, count=17)


@pytest.mark.parametrize("factor", [0, -1, 0.01, 100, float("nan")])
def test_an_impossible_pace_is_refused(factor):
    with pytest.raises(BadOption, match="the pace is"):
        retime(pan(3), factor)


def test_nothing_is_blended_across_a_cut():
    frames = np.concatenate([pan(3), stage.film([{}] * 3, seed=9)])
    made = retime(frames, 0.25)
    for index in range(8, 13):
        assert any(np.array_equal(made[index], frame) for frame in frames[2:4])


def test_what_neither_flow_explains_is_taken_from_the_nearer_frame():
    a, b = stage.film([{}, {}])
    b[30:50, 30:50] = 255  # appears from nowhere
    between = Between(a, b)
    for t, nearer in ((0.2, a), (0.8, b)):
        assert np.abs(between.at(t).astype(int) - nearer)[34:46, 34:46].mean() < 40


@pytest.mark.parametrize("size", [(2, 2), (8, 40), (16, 16), (700, 1000)])
def test_every_size_can_be_retimed(size):
    frames = np.random.default_rng(0).integers(0, 255, (2, *size, 3), dtype=np.uint8)
    assert retime(frames, 0.5).shape == (3, *size, 3)


def test_one_frame_stays_one():
    assert len(retime(pan(1), 0.5)) == 1
