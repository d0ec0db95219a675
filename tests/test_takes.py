"""Several seeds of a clip, measured; and one that moves too much, slowed down."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from broll import catalog, clips, takes, wiring
from broll.clips import Clip
from broll.engine import pipeline
from broll.engine.sampler import Step
from broll.engine.snapshot import Snapshot, conditions
from broll.errors import BadOption, BadSnapshot
from broll.media.checks import measure_frames
from broll.media.video_file import VideoWriter, read_frames
from broll.settings import Settings
from broll.spec import parse

ZEROS = torch.zeros(1, 1, 1, 1, 1)
STEP = Step(0, 1.0, ZEROS, ZEROS)


@pytest.fixture(scope="module")
def model(tiny_models):
    found = catalog.find(Settings(models=tiny_models), "tiny")
    config = wiring.describe(found)
    return config, wiring.load(found, config)


def wish(model, **fields):
    given = {"model": "tiny", "prompt": "a lake, pan left", "seed": 5} | fields
    return pipeline.resolve(parse(**given), model[0])


def run(model, spec, out, **options):
    events = list(takes.make(spec, model[1], out, format=out.suffix[1:], **options))
    assert isinstance(events[-1], Clip)
    return events


@pytest.mark.parametrize("form", ["mp4", "gif"])
def test_the_best_take_is_kept_and_is_what_its_seed_makes_alone(model, tmp_path, form):
    spec = wish(model, takes=3, pick="sharp")
    clip = run(model, spec, tmp_path / f"best.{form}")[-1]
    record = clips.read_record(clip.path)
    assert record == clip.record
    assert [take.seed for take in record.takes] == [5, 6, 7]
    best = max(record.takes, key=lambda take: take.sharpness)
    assert (record.spec.seed, record.spec.takes, record.spec.pick) == (best.seed, None, None)
    alone = run(model, record.spec, tmp_path / f"alone.{form}")[-1]
    assert alone.record.latents_sha256 == record.latents_sha256
    assert alone.record.checks == record.checks
    assert alone.record.takes == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"alone.{form}", f"best.{form}"]


def snapshot_of(events, model, index, step):
    """As it would have been saved after this step of this take."""
    take = [event for event in events if isinstance(event, takes.Take)][index]
    steps = [event for event in events if isinstance(event, Step)]
    return Snapshot(take.spec, steps[index * take.spec.steps + step], conditions(model[1]), take.memo)


@pytest.mark.parametrize(
    "at", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_death_in_any_take_changes_nothing(model, tmp_path, at):
    spec = wish(model, takes=3, pick="sharp")
    events = run(model, spec, tmp_path / "whole.mp4")
    again = run(model, spec, tmp_path / "again.mp4", resume=snapshot_of(events, model, at, 1))
    whole, resumed = events[-1].record, again[-1].record
    assert (resumed.spec, resumed.latents_sha256, resumed.takes) == (
        whole.spec,
        whole.latents_sha256,
        whole.takes,
    )
    redone = takes.begun(snapshot_of(events, model, at, 1)).tried
    lost = whole.spec.seed in [take.seed for take in redone]
    made = sum(isinstance(event, takes.Take) for event in again)
    assert made == 3 - at + lost, "a lost winner is made once more, other takes are not"


@pytest.mark.parametrize("memo", ["{", "[]", '{"wish": {}, "tried": []}', '{"tried": 3}'])
def test_a_memo_that_was_changed_is_refused(model, memo):
    with pytest.raises(BadSnapshot, match="takes"):
        takes.begun(Snapshot(wish(model), STEP, {}, memo))


def test_a_memo_of_another_clip_is_refused(model):
    told = json.loads(takes.Series(wish(model, takes=2, pick="sharp")).memo())
    told["wish"]["seed"] = 9
    with pytest.raises(BadSnapshot):
        takes.begun(Snapshot(wish(model), STEP, {}, json.dumps(told)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pick": "sharp"}, "one take to pick from"),
        ({"pick": "camera", "takes": 2, "prompt": "a lake"}, "no single camera move"),
        ({"pick": "camera", "takes": 2, "prompt": "a lake, pan left, then tilt up"}, "no single camera move"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(model, fields, words):
    with pytest.raises(BadOption, match=words):
        takes.check(wish(model, **fields))
    takes.check(wish(model, pick="camera", takes=2))


def moving(pixels, frames=17):
    """A texture that goes to the left, so that the camera seems to go to the right."""
    rng = np.random.default_rng(1)
    rough = rng.integers(0, 255, (12, 40, 3), np.uint8)
    wide = np.kron(rough, np.ones((8, 8, 1), np.uint8))
    return np.stack([wide[:, round(i * pixels) : round(i * pixels) + 160] for i in range(frames)])


def test_a_clip_that_moves_too_much_is_slowed_down_to_what_was_asked(model, tmp_path):
    frames = moving(2.0)
    checks = measure_frames(frames, 16)
    assert checks.motion_class == "high"
    spec = wish(model, motion="medium").model_copy(update={"width": 160, "height": 96, "frames": 17})
    record = clips.Record(broll="0", spec=spec, latents_sha256="0" * 64, checks=checks)
    with VideoWriter(tmp_path / "fast.mp4", **clips.shape(spec), format="mp4") as video:
        video.write(frames)
    clip = Clip(tmp_path / "fast.mp4", record, clips.Stills(17))
    series = takes.Series(spec, [takes.judged(record, spec)])
    made = takes.published(clip, series, tmp_path / "out.mp4", "mp4").record
    assert made.checks.motion_class == "medium"
    assert made.retimed == pytest.approx(checks.motion / (takes.AIM * takes.BOUND["medium"]))
    assert len(list(read_frames(tmp_path / "out.mp4"))) == 17
    assert clips.read_record(tmp_path / "out.mp4") == made


def test_what_moves_too_little_or_far_too_much_is_left_as_it_is():
    slow, fast = measure_frames(moving(0.2), 16), measure_frames(moving(6.0), 16)
    assert takes.slowness(slow, "high") is None
    assert takes.slowness(slow, "low") == 1.0
    assert takes.slowness(fast, "low") is None, "slower than 3 times is not made"


def test_the_move_that_was_asked_for_scores_higher_and_its_speed_too(model):
    right = measure_frames(moving(2.0), 16)
    asked = wish(model, prompt="a wall, camera pans right", takes=2, pick="camera")
    other = wish(model, prompt="a wall, camera pans left", takes=2, pick="camera")
    assert right.camera.move in ("pan right", "truck right")
    assert takes.score(right, asked) > 1 > takes.score(right, other)
    from broll.prompts.slots import asked_camera

    plain = asked_camera(asked.prompt)
    assert takes.followed(right, dataclasses.replace(plain, speed=right.camera.speed)) == 1.5
    wrong = "fast" if right.camera.speed != "fast" else "slow"
    assert takes.followed(right, dataclasses.replace(plain, speed=wrong)) == 1.0
