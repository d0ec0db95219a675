import numpy as np
import pytest

from broll.media.camera import camera
from broll.media.camera_field import gather, votes
from broll.media.camera_move import MOVES
from broll.media.camera_track import WIDTH, Tracker, look
from tests.cases import long
from tests.media import stage

H, W, FPS = 96, 160, stage.FPS


def chains(frames, fps=FPS):
    tracker = Tracker(fps)
    for frame in frames:
        tracker.add(frame)
    return tracker.finish()


def seen(frames, fps=FPS):
    return camera(chains(frames, fps), fps, frames.shape[1] / frames.shape[2])


def crossing(frames, seed=0, share=0.3):
    """A textured disc of `share` of the height that crosses the picture."""
    f, h, w = frames.shape[:3]
    y, x = np.mgrid[:h, :w]
    texture = stage.cloth(90 + seed)
    made = frames.copy()
    for index in range(f):
        cx, cy, radius = w * (0.1 + 0.8 * index / (f - 1)), h * (0.6 - 0.2 * index / f), share * h
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        made[index][inside] = texture[(y - int(cy)) % 512, (x - int(cx)) % 512][inside]
    return made


def grainy(frames, level=8):
    noise = np.random.default_rng(1).normal(0, level, (*frames.shape[:3], 1))
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


def at_night(frames):
    """Little light, and the noise that comes with it."""
    return grainy((frames * 0.12 + 6).astype(np.uint8), 2)


def test_the_stage_knows_every_move():
    assert set(stage.moves()) == set(MOVES)


@pytest.mark.parametrize("name", MOVES)
def test_every_move_is_named(name):
    assert seen(stage.film(stage.moves()[name])).move == name


def half(first):
    """Every second move at once, and the others by `make test-all`; what all are asked at once is which they are."""
    return [
        pytest.param(name, marks=() if place % 2 == first else pytest.mark.slow)
        for place, name in enumerate(MOVES)
    ]


@pytest.mark.parametrize("name", half(0))
def test_a_slow_move_is_named(name):
    assert seen(stage.film(stage.moves(size=0.45)[name], seed=1)).move == name


@pytest.mark.parametrize("name", half(1))
def test_a_subject_that_crosses_changes_no_name(name):
    assert seen(crossing(stage.film(stage.moves()[name], seed=2))).move == name


@pytest.mark.parametrize("name", [*MOVES[::4], *long(*MOVES[2::4])])
def test_grain_changes_no_name(name):
    assert seen(grainy(stage.film(stage.moves()[name], seed=3))).move == name


@pytest.mark.parametrize("name", ["static", *MOVES[1::4], *long(*MOVES[3::4])])
def test_night_changes_no_name(name):
    assert seen(at_night(stage.film(stage.moves()[name], seed=4))).move == name


@pytest.mark.parametrize(
    "name", ["static", "zoom in", "orbit left", *long("pan left", "truck right", "roll left")]
)
def test_a_tall_and_a_wide_picture_are_named_alike(name):
    poses = stage.moves()[name]
    sizes = [(192, 108), (90, 210), *([(270, 480)] if name == "orbit left" else [])]
    for height, width in sizes:
        assert seen(stage.film(poses[::2], height, width), FPS / 2).move == name


@pytest.mark.parametrize("name", ["static", "pan left", "tilt down", "zoom out"])
def test_light_that_changes_is_no_move(name):
    frames = stage.film(stage.moves()[name])
    level = 0.75 + 0.25 * np.sin(np.arange(len(frames)) / 3)
    assert seen((frames * level[:, None, None, None]).astype(np.uint8)).move == name


def test_a_pan_is_measured_in_frame_widths():
    turn = 0.4
    camera = seen(stage.film([{"yaw": s} for s in np.linspace(-turn / 2, turn / 2, 49)]))
    # The middle of the picture moves by the focal length times the angle; the sides by a little more.
    assert camera.pan == pytest.approx(100 * stage.FOCAL * turn, rel=0.12)
    assert abs(camera.tilt) < 1 and camera.zoom == pytest.approx(1, abs=0.02) and abs(camera.roll) < 1


def test_a_tilt_is_measured_in_frame_heights():
    turn = 0.2
    camera = seen(stage.film([{"pitch": s} for s in np.linspace(-turn / 2, turn / 2, 49)]))
    assert camera.tilt == pytest.approx(100 * stage.FOCAL * turn * W / H, rel=0.1)
    assert abs(camera.pan) < 1


@pytest.mark.parametrize("times", [0.7, 1.3, 1.7])
def test_a_zoom_is_measured_as_a_ratio(times):
    poses = [{"zoom": 1.3 * times**s} for s in np.linspace(-0.5, 0.5, 49)]
    assert seen(stage.film(poses)).zoom == pytest.approx(times, rel=0.04)


@pytest.mark.parametrize("degrees", [-25, 12, 30])
def test_a_roll_is_measured_in_degrees(degrees):
    poses = [{"roll": np.radians(degrees) * s} for s in np.linspace(-0.5, 0.5, 49)]
    assert seen(stage.film(poses)).roll == pytest.approx(degrees, rel=0.08)


def test_jitter_grows_with_the_hand():
    steady, weak, strong = (
        seen(stage.film(stage.handheld(81, amplitude))).jitter for amplitude in (0, 0.01, 0.03)
    )
    assert steady < 0.05 < weak and strong == pytest.approx(3 * weak, rel=0.15)


def test_a_pan_from_the_hand_is_a_pan_with_jitter():
    shake = stage.handheld(49, 0.008)
    poses = [
        {"yaw": pose["yaw"] + s, "pitch": pose["pitch"]}
        for pose, s in zip(shake, np.linspace(-0.25, 0.25, 49), strict=True)
    ]
    camera = seen(stage.film(poses))
    assert camera.move == "pan right" and camera.jitter > 0.2


def test_a_move_that_eases_in_and_out_does_not_shake():
    ease = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 81))
    assert seen(stage.film([{"yaw": 0.4 * s} for s in ease])).jitter < 0.3


def test_speeds_are_told_apart():
    found = [seen(stage.film(stage.moves(81, size)["pan left"])).speed for size in (0.7, 1.3, 2)]
    assert found == ["slow", "normal", "fast"]


def test_parallax_tells_a_truck_from_a_pan():
    moves = stage.moves()
    assert seen(stage.film(moves["pan left"])).parallax < 0.04
    assert seen(stage.film(moves["truck left"])).parallax > 0.2


def test_confidence_is_higher_where_the_move_is_plain():
    plain, faint = (seen(stage.film(stage.moves(size=size)["tilt up"])) for size in (1, 0.06))
    assert 0 <= faint.confidence <= plain.confidence <= 1


def test_nothing_to_follow_is_a_still_camera_that_is_not_believed():
    camera = seen(np.full((20, H, W, 3), 90, np.uint8))
    assert camera.move == "static" and camera.confidence == 0 and camera.tracked == 0


def test_noise_alone_is_still():
    frames = np.random.default_rng(0).integers(0, 255, (20, H, W, 3), dtype=np.uint8)
    assert seen(frames).move == "static"


def test_one_frame_and_five_frames_are_answered():
    frames = stage.film(stage.moves(5, size=0.2)["pan left"])
    assert seen(frames[:1]).move == "static"
    assert seen(frames).move == "pan left"
    assert seen(stage.film(stage.moves(5)["static"])).move == "static"


def test_the_look_of_a_frame_does_not_depend_on_its_light():
    frame = stage.film([{}])[0]
    dim = look((frame * 0.4).astype(np.uint8)).astype(int)
    assert np.abs(look(frame).astype(int) - dim).mean() < 6
    assert dim.shape == (round(WIDTH * H / W), WIDTH)


def test_tracks_follow_the_truth():
    """Every track of a turning camera goes where the homography takes it."""
    turn = 0.02
    (chain,) = chains(stage.film([{"yaw": turn * i} for i in range(9)]))
    start, end = chain.track[0], chain.track[-1]
    x, y = start[:, 0] / stage.FOCAL, start[:, 1] / stage.FOCAL
    angle = np.arctan(x) - turn * 8
    true_x = np.tan(angle) * stage.FOCAL
    true_y = y * np.hypot(1, np.tan(angle)) / np.hypot(1, x) * stage.FOCAL
    miss = np.hypot(end[:, 0] - true_x, end[:, 1] - true_y)
    assert len(start) > 50 and np.median(miss) < 0.002 and np.percentile(miss, 90) < 0.006


def test_a_field_of_few_cells_says_nothing():
    assert len(gather(votes([], FPS, 0.6), 0.6)) == 0
