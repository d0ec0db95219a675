"""`--attention`: a kernel by name, one warning when it is dropped, and what a snapshot says of it."""

import pytest
import torch

from broll.engine import attention

MADE = ("generate", "a lake", "--model", "tiny", "--seed", 1, "--json")


def nan(q, k, v, call):
    return torch.full_like(q, float("nan"))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(attention.BACKENDS, "nan", attention.Backend(nan))


def test_a_broken_kernel_costs_one_warning_and_no_picture(broll):
    ran, plain = broll(*MADE, "--attention", "nan"), broll(*MADE)
    assert ran.err.count("warning: attention nan was dropped") == 1
    assert "attention" not in plain.err
    assert ran.json["latents_sha256"] == plain.json["latents_sha256"]
    assert ran.json["attention"].startswith("nan dropped")
    assert "attention" not in plain.json
    told = broll("inspect", ran.json["file"], "--json").json
    assert told["attention"] == ran.json["attention"]
    assert told["conditions"]["attention"] == "sdpa after nan"


def test_the_flag_wins_over_the_setting(broll, monkeypatch):
    monkeypatch.setenv("BROLL_ATTENTION", "sage")
    assert broll(*MADE).status == 2
    made = broll(*MADE, "--attention", "reference").json
    assert broll("inspect", made["file"], "--json").json["conditions"]["attention"] == "reference"


def begin(place, name):
    """Stopped after the first step, with this kernel."""
    from broll import catalog, clips, wiring
    from broll.engine import pipeline
    from broll.settings import Loading, Settings
    from broll.spec import parse

    settings = Settings()
    wiring.use_threads(settings)
    model = catalog.find(settings, "tiny")
    config = wiring.describe(model)
    spec = pipeline.resolve(parse(model="tiny", prompt="a lake", seed=1), config)
    parts = wiring.load(model, config, Loading(attention=name))
    events = clips.make_clip(spec, parts, place / "x.mp4", format="mp4")
    *_, step = (next(events) for _ in range(2 if name == "nan" else 1))  # the warning comes first
    events.close()
    wiring.save_snapshot(place / "x.mp4.snapshot", spec, parts, step)


def test_a_clip_goes_on_without_the_kernel_that_was_dropped_and_with_no_warning(broll, place):
    whole = broll(*MADE).json
    begin(place, "nan")
    ran = broll("generate", "--resume", "x.mp4.snapshot", "--attention", "nan", "--json")
    assert "warning" not in ran.err
    assert not ran.json["resumed_elsewhere"]
    assert ran.json["latents_sha256"] == whole["latents_sha256"]


def test_going_on_with_another_kernel_is_said(broll, place):
    begin(place, "sdpa")
    ran = broll("generate", "--resume", "x.mp4.snapshot", "--attention", "blocked", "--json")
    assert "begun under other conditions (attention)" in ran.err
    assert ran.json["resumed_elsewhere"]
