"""`benchmarks/levers.py`: what it makes of its rows, and that it runs on a small model."""

import json
import sys
from xml.etree import ElementTree as ET

import pytest

from benchmarks import levers, plots


def row(lever, prompt, seconds, psnr, camera="pan left", **fields):
    asked = {"camera": "pan left", "scene": "lake"} | ({"light": "night"} if prompt == "b" else {})
    measured = {"camera": camera, "scene": "lake", "light": "noon", "speed": "slow", "style": "plain"}
    given = {"lever": lever, "prompt": prompt, "seconds": seconds, "psnr": psnr, "ssim": 0.9, "forwards": 40}
    return given | {"pairs": 1.0, "asked": asked, "measured": measured} | fields


@pytest.fixture
def rows():
    inf = float("inf")
    return [
        row("exact", "a", 10.0, inf),
        row("quality standard", "a", 5.0, 30.0),
        row("guidance until 0.5", "a", 8.0, 25.0, camera="static"),
        row("exact", "b", 20.0, inf),
        row("quality standard", "b", 12.0, 34.0),
        row("guidance until 0.5", "b", 15.0, 27.0),
    ]


def test_time_saved_is_that_of_each_turn_and_adherence_is_judged_by_what_was_asked(rows):
    found = levers.summary(rows)
    assert found["quality standard"]["saved"] == pytest.approx((0.5 + 0.4) / 2)
    assert found["quality standard"]["psnr"] == 32.0
    assert found["exact"]["hits"] == {"camera": (2, 2), "light": (0, 1), "scene": (2, 2)}
    assert found["exact"]["adherence"] == 4 / 5
    assert found["guidance until 0.5"]["adherence"] == 3 / 5


def test_the_table_has_a_row_for_every_lever_as_wide_as_its_head(rows):
    lines = levers.table(levers.summary(rows)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| exact | 40 | 100% | 15.0 | 0% | the same | 1 | 2/2 | 0/1 | 2/2 | 80% |" in lines


def test_the_plot_shows_every_lever_once_and_no_label_covers_another(rows):
    tree = ET.fromstring(levers.plot(levers.summary(rows)))
    assert len(tree.findall("{*}circle")) == 2
    labels = [each.text for each in tree.findall("{*}text") if "%" in (each.text or "")]
    assert {"quality standard: 80%", "guidance until 0.5: 60%"} <= set(labels)


def test_labels_of_points_in_one_place_are_moved_apart():
    points = [plots.Point(1, 1, f"point {i}", "all") for i in range(4)]
    axis = plots.Axis("", 0, 2, 1)
    tree = ET.fromstring(plots.scatter(points, axis, axis))
    ys = [float(each.get("y")) for each in tree.findall("{*}text") if (each.text or "").startswith("point")]
    assert len(ys) == 4
    assert min(b - a for a, b in zip(sorted(ys), sorted(ys)[1:], strict=False)) >= plots.LINE


def test_it_runs_on_a_small_model_and_shows_the_same_table_again(place, monkeypatch, capsys):
    chosen = ["--levers", "guidance until 0.5", "sparsity 0.5", "int8"]
    words = ["--model", "tiny", "--prompts", "1", *chosen, "--json", "rows.json", "--plot", "plot.svg"]
    monkeypatch.setattr(sys, "argv", ["levers", *words])
    levers.main()
    printed = capsys.readouterr().out
    made = json.loads((place / "rows.json").read_text())
    assert [one["lever"] for one in made] == ["exact", "guidance until 0.5", "sparsity 0.5", "int8"]
    assert [one["forwards"] for one in made] == [6, 5, 6, 6]
    assert made[3]["psnr"] < float("inf")  # rounded
    monkeypatch.setattr(sys, "argv", ["levers", "--show", "rows.json"])
    levers.main()
    assert capsys.readouterr().out == printed
    assert ET.parse(place / "plot.svg").getroot().tag.endswith("svg")
