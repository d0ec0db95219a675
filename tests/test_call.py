"""`broll.clip`: the command's clip, by one call."""

import json
import subprocess
import sys

import pytest
from PIL import Image

import broll
from broll import catalog, clips, wiring
from broll.cli import app
from broll.errors import BadOption, BrollError
from broll.settings import Settings
from tests import loras as files
from tests.test_group import environment

ASKED = {"model": "tiny", "seed": 4, "steps": 3}


def test_it_is_the_clip_of_the_command(place):
    made = broll.clip("a lake", place / "call.mp4", **ASKED)
    line = ["generate", "a lake", "--model", "tiny", "--seed", "4", "--steps", "3", "--out", "command.mp4"]
    assert app.run([*line, "--quiet"]) == 0
    like = clips.read_record(place / "command.mp4")
    assert made.record.latents_sha256 == like.latents_sha256
    assert clips.read_record(made.path) == made.record


def test_the_settings_hold_for_a_call_too(place, monkeypatch):
    plain = broll.clip("a lake", place / "plain.mp4", **ASKED).record
    monkeypatch.setenv("BROLL_OFFLOAD", "on")
    streamed = broll.clip("a lake", place / "streamed.mp4", **ASKED).record
    assert (plain.levers, streamed.levers) == ((), ("block_streaming",))
    assert streamed.latents_sha256 == plain.latents_sha256
    monkeypatch.setenv("BROLL_ATTENTION", "no such kernel")
    with pytest.raises(BadOption, match="no such kernel"):
        broll.clip("a lake", place / "never.mp4", **ASKED)
    assert not (place / "never.mp4").exists()


def test_takes_are_measured_and_the_best_is_the_file(place):
    made = broll.clip("a lake", place / "best.mp4", takes=2, pick="sharp", **ASKED)
    assert [take.seed for take in made.record.takes] == [4, 5]
    best = max(made.record.takes, key=lambda take: take.score)
    assert made.record.spec.seed == best.seed
    with pytest.raises(BadOption, match="one take to pick from"):
        broll.clip("a lake", place / "never.mp4", pick="sharp", **ASKED)


def test_length_is_said_in_seconds_and_loras_by_their_names_or_paths(place, tiny_models):
    model = catalog.find(Settings(), "tiny")
    film = files.pairs(wiring.load(model, wiring.describe(model)).transformer)
    files.save(film, "comfy", place / "film.safetensors")
    plain = broll.clip("a lake", place / "plain.mp4", seconds=0.6, **ASKED).record
    styled = broll.clip(
        "a lake", place / "styled.mp4", seconds=0.6, lora=[f"{place / 'film.safetensors'}:0.8"], **ASKED
    ).record
    assert plain.spec.frames == styled.spec.frames == 9
    assert [(use.name, use.weight) for use in styled.spec.loras] == [("film", 0.8)]
    assert styled.latents_sha256 != plain.latents_sha256
    faster = broll.clip("a lake", place / "faster.mp4", seconds=0.4, fps=24, **ASKED).record
    assert faster.spec.frames == 9  # at 16 a second it would be 5
    with pytest.raises(BadOption, match="say the same thing"):
        broll.clip("a lake", place / "never.mp4", seconds=1, frames=17, **ASKED)


def test_a_picture_is_kept_so_that_the_clip_can_be_repeated(place, monkeypatch):
    Image.new("RGB", (64, 32), "teal").save(place / "sea.png")
    made = broll.clip("a lake", place / "sea.mp4", model="tiny-i2v", image=place / "sea.png", seed=3, steps=2)
    assert app.run(["generate", "--like", str(made.path), "--out", "again.mp4", "--quiet"]) == 0
    assert clips.read_record(place / "again.mp4").latents_sha256 == made.record.latents_sha256


def test_what_cannot_be_is_refused_in_one_line(place, monkeypatch):
    for wrong in ({"frames": 6}, {"seed": -1}, {"model": "nowhere"}, {"image": "nothing.png"}):
        with pytest.raises(BrollError) as refused:
            broll.clip("a lake", place / "never.mp4", **ASKED | wrong)
        assert "\n" not in str(refused.value)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadOption, match="set BROLL_GROUP"):
        broll.clip("a lake", place / "never.mp4", **ASKED)
    assert list(place.iterdir()) == []


TWICE = """
import json, broll
made = [broll.clip("a lake", f"{i}.mp4", model="tiny", seed=4, steps=3).record for i in range(2)]
print(json.dumps([[one.latents_sha256, one.conditions.get("parallel")] for one in made]))
"""


@pytest.mark.slow
def test_a_group_makes_it_and_another_one_the_next(place):
    alone = broll.clip("a lake", place / "alone.mp4", **ASKED).record.latents_sha256
    ran = subprocess.run(
        [sys.executable, "-c", TWICE], env=environment(BROLL_GROUP=2), capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [[alone, "cfg=2"]] * 2
