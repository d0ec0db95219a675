"""`broll bench`: this machine measured anew, what each model takes on it, and what plans then go by."""

import json
import signal
import subprocess
import sys
import time

import pytest

from broll import catalog, nearest, outlook, pace
from broll.engine import rates
from broll.engine.config import PUBLISHED
from broll.settings import Settings

TINY = ("bench", "--model", "tiny")


def kept(settings):
    return json.loads(pace.rates_file(settings).read_text())


def test_the_rates_are_measured_anew_and_replace_what_was_kept_of_this_machine(broll):
    settings = Settings()
    (machine,) = kept(settings)
    old = {"linear": 1.0, "attention": 1.0, "convolution": 1.0, "text": 1.0, "copy": 1.0, "bus": 1.0}
    table = {machine: {"a size of long ago": old}, "another machine": {"x": old}}
    pace.rates_file(settings).write_text(json.dumps(table))
    ran = broll(*TINY, "--json")
    assert ran.status == 0, ran.err
    now = kept(settings)
    assert now["another machine"] == table["another machine"]
    assert "a size of long ago" not in now[machine]
    (row,) = ran.json["models"]
    assert row["rates"] in now[machine].values()
    assert row["rates"] == ran.json["rates"]  # the best of one


def test_plans_go_by_what_was_kept(broll):
    told = broll(*TINY, "--json").json["models"][0]
    planned = broll("plan", "a clip", "--model", "tiny", "--json").json
    assert {key: told[key] for key in planned if key not in ("nearest", "free_bytes")} == {
        key: value for key, value in planned.items() if key not in ("nearest", "free_bytes")
    }
    (settings,) = [Settings()]
    before = pace.rates_file(settings).read_text()
    assert broll("plan", "--model", "tiny").status == 0
    assert pace.rates_file(settings).read_text() == before  # nothing was measured


def test_a_row_says_what_to_expect(broll):
    ran = broll(*TINY)
    assert ran.status == 0, ran.err
    first, best, _, row = ran.out.splitlines()
    assert "of memory free" in first
    for word in ("Linears", "attention", "convolutions", "GFLOP/s", "GB/s"):
        assert word in best
    assert row.split()[:6] == ["tiny", "64x32", "0.6", "s", "3", "best"]
    assert row.endswith("  fits")
    assert "measure 1/1" in ran.err
    assert broll(*TINY, "--quiet").err == ""


def test_the_object_has_what_is_promised(broll):
    told = broll(*TINY, "--model", "tiny-i2v", "--json").json
    assert told["kind"] == "cpu"
    assert told["file"].endswith("rates.json")
    assert set(told["rates"]) == {"linear", "attention", "convolution", "text", "copy", "bus"}
    assert [row["model"] for row in told["models"]] == ["tiny", "tiny-i2v"]
    for row in told["models"]:
        assert (row["here"], row["get"], row["quality"], row["verdict"]) == (True, None, "best", "fits")
        assert row["step_seconds"] > 0


def test_a_model_that_is_not_here_says_how_to_get_it(broll, monkeypatch):
    monkeypatch.setattr(rates, "BUDGET", {"cpu": 1e7})  # the shapes are not the point here
    ran = broll("bench", "--model", "Wan2.1-VACE-1.3B")
    assert ran.status == 0, ran.err
    row = ran.out.splitlines()[-1]
    assert row.startswith("wan2.1-vace-1.3b       832x480")
    assert row.endswith("not here: broll models pull wan2.1-vace-1.3b")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("wan2.1-t2v-1.3b", [(832, 480)]),
        ("wan2.1-t2v-14b", [(1280, 720), (832, 480)]),
        ("wan2.1-i2v-14b-480p", [(832, 480)]),
    ],
)
def test_a_model_is_shown_at_its_own_size_and_the_smaller_usual_ones(name, sizes):
    assert outlook.sizes(PUBLISHED[name]) == sizes
    assert set(sizes) <= set(nearest.USUAL)


def test_all_models_are_shown_those_here_first(place):
    offers, odd = outlook.offers(Settings(), ())
    assert odd == []
    names = list(dict.fromkeys(offer.config.name for offer in offers))
    here = list(catalog.installed(Settings()))
    assert names == here + [name for name in PUBLISHED if name not in here]


def test_a_broken_model_is_a_line_and_the_others_are_shown(place, tmp_path, monkeypatch):
    models = tmp_path / "models"
    (models / "broken" / "transformer").mkdir(parents=True)
    (models / "broken" / "model_index.json").write_text("{}")
    (models / "broken" / "transformer" / "config.json").write_text("{}")
    monkeypatch.setenv("BROLL_MODELS", str(models))
    offers, odd = outlook.offers(Settings(), ())
    assert [line.partition(":")[0] for line in odd] == ["broken"]
    assert {offer.config.name for offer in offers} >= set(PUBLISHED)


def test_what_several_sizes_share_is_measured_once(place):
    known = {}
    model = outlook.of_model(Settings(), "tiny")[0]
    from broll import wiring

    where = catalog.device()
    how = wiring.precision(model.config, where)
    first = rates.measure(model.config, how, where, 24, 2048, known)
    assert rates.measure(model.config, how, where, 24, 2048, known) == first
    larger = rates.measure(model.config, how, where, 240, 2048, known)
    assert (larger.convolution, larger.copy, larger.text) == (first.convolution, first.copy, first.text)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("bench", "--model", "nothing"), "unknown_model"),
        (("bench", "--json", "calibrate", "--model", "tiny"), "bad_option"),
        (("bench", "--model"), "bad_option"),
    ],
)
def test_what_cannot_be_measured_is_one_line(broll, words, code):
    ran = broll(*words)
    assert ran.status != 0
    assert f"error [{code}]" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_rates_that_cannot_be_kept_are_an_error(broll, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BROLL_DATA", str(tmp_path / "file"))
    ran = broll(*TINY)
    assert ran.status == 5
    assert "error [output_error]" in ran.err


def test_stopped_it_leaves_the_rates_as_they_were(place):
    settings = Settings()
    before = pace.rates_file(settings).read_bytes()
    command = [sys.executable, "-m", "broll", "bench"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "measure 1/" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        rest = process.stderr.read()
    assert time.monotonic() - begin < 20
    assert process.returncode == 130
    assert rest.splitlines()[-1].endswith("stopped; the rates that were kept are as they were")
    assert pace.rates_file(settings).read_bytes() == before
    assert [path for path in settings.data.iterdir() if path.name.endswith(".part")] == []


def test_a_new_size_of_a_model_that_was_seen_is_not_measured(broll, monkeypatch):
    settings = Settings()
    timings = {"tiny": {"denoise": 1e9, "decode": 1e9}}
    before = pace.rates_file(settings).read_text()
    (settings.data / "timings.json").write_text(json.dumps(timings))
    larger = ("plan", "--model", "tiny", "--size", "64x64", "--frames", 33)
    assert broll(*larger, "--json").json["time_source"] == "seen"
    assert pace.rates_file(settings).read_text() == before
    (settings.data / "timings.json").unlink()
    assert broll(*larger).status == 0
    assert pace.rates_file(settings).read_text() != before
