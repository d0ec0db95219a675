"""`quality`, from the command line and in jobs: measured, asked for, stopped, gone on with, refused."""

import dataclasses
import json

import pytest

from broll import calibration, catalog, plan, takes, wiring
from broll.cli import app
from broll.cli.progress import Quiet
from broll.cli.request import prepare
from broll.cli.typed import Options
from broll.cli.watch import Watch
from broll.engine import magnitudes, pipeline, step_cache
from broll.engine.config import Ratios
from broll.engine.sampler import Step
from broll.events import Clip, Progress, Snapshot, Stopped, Work
from broll.renderer import Flag, Renderer
from broll.settings import Settings
from broll.spec import parse
from tests import checkpoints

STEPS = 14
RATIOS = Ratios((1.0, *[0.99] * 13), (1.0, *[0.98] * 13), "made up")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of which `tiny` has been measured and `other` has not."""
    place = tmp_path_factory.mktemp("measured")
    for name in ("tiny", "other"):
        checkpoints.diffusers_folder(place / name)
    (place / "tiny" / magnitudes.NAME).write_text(magnitudes.written(RATIOS))
    return place


@pytest.fixture
def settings(folder, tmp_path):
    return Settings(models=folder, data=tmp_path / "data", threads=1)


def work(settings, snapshot=None, **fields):
    config = wiring.describe(catalog.find(settings, "tiny"))
    given = {"model": "tiny", "prompt": "a lake", "seed": 1, "steps": STEPS, "quality": "draft"} | fields
    spec = pipeline.resolve(parse(**given), config)
    return Work("job", "tiny", spec.model_dump_json(exclude_none=True), {}, snapshot, 0.0), spec, config


def record(clip):
    assert isinstance(clip, Clip), clip
    return json.loads(clip.record)


# --- jobs -------------------------------------------------------------------------------------------------


def test_snapshots_are_taken_only_where_the_next_step_is_computed_and_give_the_same_bits(settings):
    renderer = Renderer(settings)
    asked, spec, config = work(settings)
    told = list(renderer.run(asked, Flag()))
    skips, made = step_cache.by_magnitude(spec, config), record(told[-1])
    snapshots = [event for event in told if isinstance(event, Snapshot)]
    assert [one.step for one in snapshots] == [step for step in range(STEPS) if step + 1 not in skips]
    assert len(snapshots) < STEPS
    assert made["conditions"]["skipped"] == " ".join(map(str, sorted(skips)))
    for one in snapshots:
        *_, again = renderer.run(work(settings, one.data)[0], Flag())
        assert record(again)["latents_sha256"] == made["latents_sha256"]
        assert not record(again)["resumed_elsewhere"]


def test_a_job_asked_to_stop_stops_before_a_computed_step_with_a_snapshot(settings):
    asked, spec, config = work(settings)
    skips, flag, told = step_cache.by_magnitude(spec, config), Flag(), []
    stop = min(skips)  # steps done when the next one would be skipped
    for event in Renderer(settings).run(dataclasses.replace(asked, snapshot_s=1e9), flag):
        told.append(event)
        if isinstance(event, Progress) and event.done == stop:
            flag.soon = True
    assert isinstance(told[-1], Stopped)
    assert isinstance(told[-2], Snapshot)
    assert told[-2].step >= stop
    assert told[-2].step + 1 not in skips


def test_a_job_that_skips_a_step_is_stopped_at_once_if_it_must(settings):
    asked, spec, config = work(settings)
    flag, told = Flag(), []
    for event in Renderer(settings).run(asked, flag):
        told.append(event)
        if isinstance(event, Progress) and event.done == min(step_cache.by_magnitude(spec, config)):
            flag.now = True
    assert isinstance(told[-1], Stopped)
    assert not any(isinstance(event, Clip) for event in told)


# --- the command line -------------------------------------------------------------------------------------


@pytest.fixture
def broll(folder, place, monkeypatch, capsys):
    monkeypatch.setenv("BROLL_MODELS", str(folder))

    def run(*words):
        capsys.readouterr()
        status = app.run([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


def test_generate_says_what_a_quality_comes_to_and_the_clip_says_what_it_was(broll):
    ask = ("generate", "a lake", "--model", "tiny", "--seed", 3, "--steps", STEPS, "--json")
    status, out, err = broll(*ask, "--quality", "draft")
    assert status == 0, err
    assert "quality draft: 5 of 14 steps are computed, the others made from those before" in err
    made = json.loads(out)
    assert made["spec"]["quality"] == "draft"
    status, out, _ = broll("inspect", made["file"], "--json")
    assert json.loads(out)["conditions"]["skipped"].startswith("3 4 ")
    again = json.loads(broll("generate", "--like", made["file"], "--json")[1])
    assert again["latents_sha256"] == made["latents_sha256"]
    best = json.loads(broll("generate", "--like", made["file"], "--quality", "best", "--json")[1])
    assert best["latents_sha256"] == json.loads(broll(*ask)[1])["latents_sha256"] != made["latents_sha256"]


def test_a_run_that_is_stopped_keeps_a_step_that_can_be_gone_on_from(settings, place):
    job = prepare(Options(prompt="a lake", model="tiny", seed=1, steps=STEPS, quality="draft"), settings)
    expected = plan.make(job.spec, job.config, plan.here(job.spec, job.config, settings, job.model))
    watch, skips, kept = Watch(job, expected, Quiet()), step_cache.by_magnitude(job.spec, job.config), []
    for event in takes.make(job.spec, wiring.load(job.model, job.config), job.out, format="mp4"):
        watch.saw(event)
        kept += [watch.step.index] if isinstance(event, Step) else []
    assert kept == [max(i for i in range(step + 1) if i + 1 not in skips) for step in range(STEPS)]
    assert any(step != at for at, step in enumerate(kept))


def test_few_steps_make_the_exact_clip_and_that_is_said(broll):
    ask = ("generate", "a lake", "--model", "other", "--seed", 3, "--json")  # its own default: 3 steps
    status, out, err = broll(*ask, "--quality", "draft")
    assert status == 0, err
    assert "quality draft changes nothing: 3 steps are too few to skip any" in err
    assert json.loads(out)["latents_sha256"] == json.loads(broll(*ask)[1])["latents_sha256"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--model", "tiny", "--quality", "good"),
            "quality is 'good': input should be 'draft', 'standard' or",
        ),
        (("--model", "other", "--quality", "draft", "--steps", 20), "broll bench calibrate --model other"),
    ],
)
def test_what_cannot_be_skipped_is_refused_in_one_line(broll, words, told):
    status, out, err = broll("generate", "a lake", *words)
    assert (status, out) == (2, "")
    *_, last = err.splitlines()
    assert "[bad_option]" in last
    assert told in last


def test_calibrate_measures_a_model_which_can_then_skip(broll, tmp_path, monkeypatch):
    mine = checkpoints.diffusers_folder(tmp_path / "mine")
    numbers = json.loads((mine / "broll.json").read_text())
    numbers["defaults"]["steps"] = STEPS
    (mine / "broll.json").write_text(json.dumps(numbers))
    status, out, err = broll("bench", "calibrate", "--model", mine, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["file"] == str(mine / magnitudes.NAME)
    assert len(told["positive"]) == len(told["negative"]) == STEPS
    assert told["computed"]["draft"] <= told["computed"]["standard"] <= told["computed"]["best"] == STEPS
    kept = magnitudes.read(mine)
    assert kept.positive == pytest.approx(told["positive"], abs=1e-5)
    assert kept.source.startswith("broll bench calibrate: 64x32, 9 frames, 14 steps")
    status, _, err = broll("generate", "a lake", "--model", mine, "--quality", "standard")
    assert status == 0, err
    assert "quality standard: " in err


def test_a_model_of_few_steps_is_not_measured(broll):
    status, _, err = broll("bench", "calibrate", "--model", "other")
    assert status == 2
    assert "other is made for 3 steps: too few to skip any of them" in err


def test_measuring_changes_no_bit_and_leaves_the_model_as_it_was(settings):
    _, spec, config = work(settings)
    parts = wiring.load(catalog.find(settings, "tiny"), config)
    before = parts.transformer.stack
    measured = [pipeline.digest(step.x) for step in calibration.measure(spec, parts)]
    assert parts.transformer.stack == before
    plain = pipeline.generate(spec.model_copy(update={"quality": None}), parts)
    assert measured == [pipeline.digest(event.x) for event in plain if isinstance(event, Step)]
