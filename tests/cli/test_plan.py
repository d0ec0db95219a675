"""`broll plan`, and the same plan in `generate` and `doctor`."""

import json

import pytest

MODEL = ("--model", "tiny")


def test_a_plan_says_seconds_and_memory_of_every_stage_and_makes_nothing(broll, place):
    ran = broll("plan", "a lake, pan left", *MODEL)
    assert ran.status == 0, ran.err
    for word in ("tiny: 64x32, 9 frames (0.6 s), 3 steps", "text", "denoise", "decode", "FLOP", "fits"):
        assert word in ran.out
    assert list(place.iterdir()) == []


def test_a_plan_in_json_has_money_if_an_hour_has_a_price(broll, monkeypatch):
    told = broll("plan", *MODEL, "--gpu-hour", 2, "--json").json
    assert [stage["name"] for stage in told["stages"]] == ["text", "denoise", "decode"]
    assert told["fits"] is True
    assert told["nearest"] == []
    assert told["money"] == pytest.approx(told["seconds"] / 1800, abs=1e-4)
    assert told["time_source"] == "measured"
    assert broll("plan", *MODEL, "--json").json["money"] is None
    monkeypatch.setenv("BROLL_GPU_HOUR", "3600")
    assert broll("plan", *MODEL, "--json").json["money"] == pytest.approx(told["seconds"], rel=0.9, abs=0.1)


@pytest.mark.parametrize("device", [(), ("--device", "4090")])
def test_weights_that_will_be_rounded_are_planned_so(device, broll, monkeypatch):
    before = broll("plan", *MODEL, *device, "--json").json["weight_bytes"]
    shown = broll("models", "show", "tiny", "--json").json["memory_bytes"]
    monkeypatch.setenv("BROLL_INT8", "1")
    assert broll("plan", *MODEL, *device, "--json").json["weight_bytes"] < before
    assert broll("models", "show", "tiny", "--json").json["memory_bytes"] < shown


def test_levers_are_planned_as_they_would_be_made(broll):
    dense, sparse = (
        broll("plan", *MODEL, "--frames", 81, *more, "--json").json for more in ((), ("--sparsity", 0.7))
    )
    denoise = [plan["stages"][1]["flops"] for plan in (dense, sparse)]
    assert denoise[1] < denoise[0]
    assert broll("plan", *MODEL, "--offload", "on", "--json").json["on"] == ["block_streaming"]
    assert broll("plan", *MODEL, "--int8", "--json").json["weight_bytes"] < dense["weight_bytes"]


def test_takes_multiply(broll):
    one = broll("plan", *MODEL, "--json").json["seconds"]
    assert broll("plan", *MODEL, "--takes", 4, "--json").json["seconds"] == pytest.approx(4 * one, abs=0.01)


@pytest.mark.slow
def test_a_published_model_is_planned_for_a_card_though_neither_is_here(broll, monkeypatch):
    words = ("plan", "--model", "Wan2.1-I2V-14B-720P", "--device", "rtx 4090", "--frames", 81)
    assert "switched on: block streaming" in broll(*words).out
    monkeypatch.setenv("BROLL_OFFLOAD", "off")
    ran = broll(*words)
    assert ran.status == 0, ran.err
    assert "does not fit" in ran.out
    assert "81 frames at 1280x720 do not fit" in ran.out.splitlines()[-1]
    assert "with block streaming 81 frames at 1280x720 fit" in ran.out.splitlines()[-1]
    assert "a guess from the card's data sheet" in ran.out
    told = broll("plan", "--model", "wan2.1-t2v-1.3b", "--device", "H100", "--json").json
    assert told["fits"]
    assert told["time_source"] == "guessed"
    assert told["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--device", "Voodoo"), "bad_option"),
        (("--size", "64"), "bad_option"),
        (("--frames", 10), "unsupported_shape"),
        (("--frames", 9, "--seconds", 1), "bad_option"),
        (("--model", "nothing"), "unknown_model"),
        (("--takes", 0), "bad_option"),
        (("--gpu-hour", -1), "bad_option"),
    ],
)
def test_what_cannot_be_planned_is_one_line(broll, words, code):
    ran = broll("plan", *MODEL, *words) if "--model" not in words else broll("plan", *words)
    assert ran.status != 0
    assert f"error [{code}]" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_doctor_says_what_fits_here_and_how_fast_this_machine_is(broll):
    found = json.loads(broll("doctor", "--json").out)["checks"]
    plans = [check["detail"] for check in found if check["name"] == "plan"]
    assert any(detail.startswith("tiny: 9 frames at 64x32 in ") for detail in plans)
    assert any("GFLOP/s" in check["detail"] for check in found if check["name"] == "rate")


def test_generate_warns_of_a_clip_that_does_not_fit_and_says_what_does(broll, place, monkeypatch):
    monkeypatch.setenv("BROLL_MEMORY_MB", "1")
    ran = broll("generate", "a lake", *MODEL, "--seed", 3)
    assert ran.status == 0
    assert "warning: this needs about" in ran.err
    assert "do not fit" in ran.err
