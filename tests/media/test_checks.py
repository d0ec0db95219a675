from pathlib import Path

import numpy as np
import pytest

from broll.errors import BadOption
from broll.media import faults
from broll.media.checks import Checks, measure, measure_frames
from broll.media.flow import HIGH, LOW, degree
from broll.media.video_file import VideoWriter
from tests.cases import long
from tests.media import stage

H, W, FPS = 96, 160, stage.FPS
WAN = Path(__file__).parents[3] / "shared" / "data" / "wan" / "decoded.mp4"


def film(name="static", frames=33, **options):
    return stage.film(stage.moves(frames)[name], **options)


def living(frames=33, seed=0):
    """A still camera before a wall whose lower half wobbles."""
    clip = film("static", frames, seed=seed)
    for index, frame in enumerate(clip):
        frame[H // 2 :] = np.roll(frame[H // 2 :], (0, 2, 5, 3)[index % 4], axis=1)
    return clip


def store(path, frames, format="mp4"):
    with VideoWriter(path, width=frames.shape[2], height=frames.shape[1], fps=FPS, format=format) as video:
        video.write(frames)
    return path


def check(frames):
    return measure_frames(frames, FPS)


@pytest.mark.parametrize("format", ["mp4", "webm", "gif"])
def test_a_file_of_any_format_is_measured(tmp_path, format):
    checks = measure(store(tmp_path / f"a.{format}", film("pan left"), format))
    assert checks.frames == 33 and checks.camera.move == "pan left"
    assert checks.fps == pytest.approx(FPS, rel=0.05)


def test_checks_travel_as_json():
    checks = check(film("zoom in"))
    assert Checks.model_validate_json(checks.model_dump_json()) == checks


def test_checks_do_not_change():
    with pytest.raises(ValueError):
        check(film(frames=5)).motion = 3


def test_a_file_and_its_frames_agree(tmp_path):
    frames = film("tilt up")
    file, memory = measure(store(tmp_path / "a.mp4", frames)), check(frames)
    assert file.camera.move == memory.camera.move
    assert file.motion == pytest.approx(memory.motion, rel=0.1)
    assert file.camera.tilt == pytest.approx(memory.camera.tilt, rel=0.1)


@pytest.mark.parametrize("cuts", [(), (12,), (9, 20)])
def test_cuts_are_found_at_their_frames(tmp_path, cuts):
    edges = [0, *cuts, 33]
    shots = [film("pan left", b - a, seed=5 + a) for a, b in zip(edges, edges[1:], strict=False)]
    assert measure(store(tmp_path / "a.mp4", np.concatenate(shots))).cuts == cuts


def test_a_flash_is_no_cut():
    frames = living()
    frames[16] = 255
    assert check(frames).cuts == ()


def test_a_fast_move_is_no_cut():
    assert check(stage.film([{"yaw": s} for s in np.linspace(-0.9, 0.9, 17)])).cuts == ()


def test_the_camera_is_measured_on_both_sides_of_a_cut():
    frames = np.concatenate([film("pan left", 25, seed=5), film("pan left", 25, seed=6)])
    checks = check(frames)
    assert checks.cuts == (25,) and checks.camera.move == "pan left"


def test_a_freeze_is_found(tmp_path):
    frames = film("pan left", 33)
    frames[12:22] = frames[11]
    checks = measure(store(tmp_path / "a.mp4", frames))
    assert checks.freezes == ((12, 21),) and checks.frozen == pytest.approx(10 / 32)


def test_a_still_camera_before_living_things_is_not_frozen(tmp_path):
    checks = measure(store(tmp_path / "a.mp4", living()))
    assert checks.frozen == 0 and checks.camera.move == "static"


def test_black_frames_are_counted():
    frames = living(20)
    frames[:5] = 3
    assert check(frames).black == 0.25
    assert check(film("static", 5)).black == 0


def test_a_lamp_in_the_dark_is_not_black():
    frames = np.full((5, H, W, 3), 2, np.uint8)
    frames[:, 20:30, 20:40] = 200
    assert check(frames).black == 0


def test_flicker_is_measured_and_a_fade_is_none():
    frames = film("static", 33).astype(float)
    rng = np.random.default_rng(0)
    noisy = frames * (1 + 0.05 * rng.normal(size=33))[:, None, None, None]
    fade = frames * np.linspace(0.5, 1, 33)[:, None, None, None]
    quiet = check(fade.astype(np.uint8)).flicker
    assert quiet < 0.1 and check(noisy.clip(0, 255).astype(np.uint8)).flicker > 10 * quiet


def test_drift_of_light_and_colour_has_the_sign_and_the_size():
    frames = film("static", 33).astype(float)
    darker = check((frames * np.linspace(1, 0.6, 33)[:, None, None, None]).astype(np.uint8))
    assert darker.drift_light < -8
    warmer = frames + np.linspace(0, 40, 33)[:, None, None, None] * [1, 0, -1]
    checks = check(warmer.clip(0, 255).astype(np.uint8))
    assert checks.drift_chroma > 10 and abs(checks.drift_light) < 4
    same = check(living())
    assert abs(same.drift_light) < 0.5 and same.drift_chroma < 0.5


def test_sharpness_falls_with_focus():
    import cv2

    frames = film("static", 9)
    for index, frame in enumerate(frames):
        frames[index] = cv2.GaussianBlur(frame, (0, 0), 0.1 + index * 0.4)
    checks = check(frames)
    assert checks.sharpness_last < 0.3 * checks.sharpness_first
    assert checks.sharpness_last < checks.sharpness < checks.sharpness_first


def test_a_seam_is_found_in_its_region_only():
    """All of it stands still but for one corner, which walks."""
    frames = film("static", 33)
    texture = stage.cloth(7)
    for index, frame in enumerate(frames):
        frame[:32, :40] = texture[:32, index : index + 40]
    checks = check(frames)
    seam = np.array(checks.loop_seam)
    assert seam[0, 0] == checks.loop_seam_worst == seam.max() > 2
    assert np.delete(seam.ravel(), 0).max() < 1.6


def test_a_turn_of_the_motion_at_the_join_is_seen():
    there = film("pan left", 17)
    back = np.concatenate([there, there[-2:0:-1]])
    line = np.array(check(there).loop_turn)
    assert np.array(check(back).loop_turn).min() > 4 * line.min()


@pytest.mark.parametrize(
    ("motion", "name"), [(0, "low"), (LOW, "medium"), (HIGH - 0.1, "medium"), (HIGH, "high")]
)
def test_degrees_of_motion(motion, name):
    assert degree(motion) == name


def test_motion_is_measured_in_short_sides_a_second():
    turn = 0.4
    frames = stage.film([{"yaw": s} for s in np.linspace(-turn / 2, turn / 2, 33)])
    expected = 100 * stage.FOCAL * turn / 2 * W / H  # over two seconds; the sides a little more
    assert expected < check(frames).motion < 1.5 * expected
    assert check(film("static", 33)).motion < 0.1


@pytest.mark.parametrize("fps", [8, 60, *long(16, 30)])
def test_motion_does_not_depend_on_the_frame_rate(fps):
    frames = stage.film([{"yaw": s} for s in np.linspace(-0.2, 0.2, 2 * fps + 1)])
    assert measure_frames(frames, fps).motion == pytest.approx(check(film_pan()).motion, rel=0.1)


def film_pan():
    return stage.film([{"yaw": s} for s in np.linspace(-0.2, 0.2, 2 * FPS + 1)])


@pytest.mark.parametrize("size", [(2, 2), (4, 300), (300, 4), (16, 16), (1, 1)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_tiny_clips_are_answered(size, count):
    frames = np.random.default_rng(0).integers(0, 255, (count, *size, 3), dtype=np.uint8)
    checks = check(frames)
    assert checks.frames == count and checks.camera.move == "static"
    assert (checks.loop_seam is None) == (count < 3)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_clip_of_nothing_is_still_and_frozen(level):
    checks = check(np.full((12, H, W, 3), level, np.uint8))
    assert checks.camera.move == "static" and checks.camera.confidence == 0
    assert checks.frozen == 1 and checks.motion_class == "low" and checks.cuts == ()
    assert checks.black == (level == 0)


def test_no_frame_and_no_rate_are_refused():
    with pytest.raises(BadOption, match="no frame"):
        check(np.zeros((0, H, W, 3), np.uint8))
    with pytest.raises(BadOption, match="fps is 0"):
        measure_frames(film(frames=5), 0)


def test_a_file_that_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"hello")
    with pytest.raises(BadOption, match="not a video"):
        measure(tmp_path / "a.mp4")


def test_correlation_of_pictures():
    one, other = (stage.cloth(seed)[..., 0] for seed in (1, 2))
    flat = np.full_like(one, 9)
    assert faults.correlation(one, one) == pytest.approx(1)
    assert abs(faults.correlation(one, other)) < 0.3
    assert faults.correlation(flat, flat) == 1 and faults.correlation(one, flat) == 0


@pytest.mark.parametrize(
    ("camera", "scene", "move"),
    [
        ("static", "sea", ""), ("pan left", "city", ""), ("zoom in", "lake", "zoom"), ("orbit", "lighthouse", ""),
        *long(("tilt up", "forest", ""), ("zoom out", "forest", "dolly"), ("tracking", "desert", "")),
    ],
)  # fmt: skip
def test_rendered_worlds_are_named(camera, scene, move):
    from benchmarks import checks as bench

    names = {"orbit": "orbit right", "tracking": "truck right"}
    drawn = bench.Scene(scene, "night", camera, "normal", move, 77)
    frames = bench.filmed(bench.Case(drawn, H, W, subject=True, grain=5, seed=3))
    assert bench.alike(check(frames).camera.move) == names.get(camera, camera)


@pytest.mark.skipif(not WAN.exists(), reason="a real WAN clip in ../shared/data, which is not committed")
def test_a_real_clip_with_a_still_camera_and_a_moving_subject_is_still():
    checks = measure(WAN)
    assert checks.camera.move == "static" and checks.camera.confidence > 0.8
    assert checks.motion_class != "low" and checks.cuts == () and checks.frozen == 0
