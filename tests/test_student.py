"""Quality draft on a model that brings a student: a LoRA of its own that makes do with few steps and no guidance."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from broll import catalog, clips, loras, wiring
from broll.call import clip
from broll.cli import app
from broll.engine import magnitudes, pipeline, step_cache
from broll.engine.config import Ratios
from broll.settings import Settings
from broll.spec import parse
from tests import checkpoints
from tests import loras as files
from tests.live import finished, live

DRAFT = ("generate", "a lake", "--model", "small", "--quality", "draft", "--seed", 1, "--json")
WANTS = {"steps": "2", "guidance": "1.0", "shift": "4.0", "sampler": "euler", "grid": "distilled"}
SAID = "quality draft: small-student makes it in 2 steps without guidance"
RATIOS = Ratios((1.0, *[0.99] * 13), (1.0, *[0.98] * 13), "made up")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`small` brings a student and has been measured; `plain` brings none; `film` is a LoRA of the user's."""
    place = tmp_path_factory.mktemp("taught")
    for name in ("small", "plain"):
        checkpoints.diffusers_folder(place / name, "ti2v")
        (place / name / magnitudes.NAME).write_text(magnitudes.written(RATIOS))
    settings = Settings(models=place)
    model = catalog.find(settings, "small")
    transformer = wiring.load(model, wiring.describe(model)).transformer
    for path, seed in ((place / "small" / "loras" / "small-student", 7), (place / "loras" / "film", 8)):
        path.parent.mkdir()
        files.save(files.pairs(transformer, r"^blocks\.", seed), "comfy", path.with_suffix(".safetensors"))
    own = place / "small" / "loras" / "small-student.safetensors"
    save_file(load_file(own), own, {f"broll.{name}": value for name, value in WANTS.items()})
    return place


@pytest.fixture
def broll(folder, place, monkeypatch, capsys):
    monkeypatch.setenv("BROLL_MODELS", str(folder))

    def run(*words):
        capsys.readouterr()
        status = app.run([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def draft(broll):
    status, out, err = broll(*DRAFT)
    assert status == 0, err
    return json.loads(out), err


def test_a_draft_is_made_by_the_student_and_one_line_says_so(draft):
    made, err = draft
    spec = made["spec"]
    assert [lora["name"] for lora in spec["loras"]] == ["small-student"]
    assert {name: str(spec[name]) for name in WANTS} == WANTS
    assert [line for line in err.splitlines() if "student" in line] == [f"broll: {SAID}"]
    assert "its LoRA" not in err
    record = clips.read_record(clips.Path(made["file"]))
    assert "skipped" not in record.conditions or not record.conditions["skipped"]
    assert any(name.startswith("lora small-student 1 ") for name in record.weights)


def test_the_draft_is_that_of_the_same_lora_asked_for_by_name(broll, draft):
    words = ("generate", "a lake", "--model", "small", "--lora", "small-student", "--seed", 1, "--json")
    assert json.loads(broll(*words)[1])["latents_sha256"] == draft[0]["latents_sha256"]


def test_like_repeats_a_draft_and_says_again_what_made_it(broll, draft):
    _, out, err = broll("generate", "--like", draft[0]["file"], "--json")
    assert json.loads(out)["latents_sha256"] == draft[0]["latents_sha256"]
    assert json.loads(out)["spec"] == draft[0]["spec"]
    assert SAID in err


def test_a_draft_repeated_in_another_quality_or_by_another_model_is_without_its_student(broll, draft):
    best = json.loads(broll("generate", "--like", draft[0]["file"], "--quality", "best", "--json")[1])
    plain = json.loads(broll("generate", "a lake", "--model", "small", "--seed", 1, "--json")[1])
    assert best["latents_sha256"] == plain["latents_sha256"]
    assert best["spec"] == plain["spec"] | {"quality": "best"}
    words = ("generate", "--like", draft[0]["file"], "--model", "plain", "--steps", 14, "--json")
    other = json.loads(broll(*words)[1])
    assert "loras" not in other["spec"] or not other["spec"]["loras"]
    assert other["spec"]["guidance"] == 4.0


@pytest.mark.parametrize("stepped", [("--steps", 14), ("--steps", 14, "--step-cache", "magcache")])
def test_who_says_how_the_clip_is_stepped_gets_steps_that_are_skipped(broll, stepped):
    status, out, err = broll(*DRAFT, *stepped)
    assert status == 0
    assert not json.loads(out)["spec"].get("loras")
    assert "quality draft: 5 of 14 steps are computed" in err


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 3},
        {"guidance": 5.0},
        {"guidance_until": 0.5},
        {"step_cache": "magcache"},
        {"quality": "best"},
    ],
)
def test_there_is_no_student_where_steps_or_guidance_are_asked_for(folder, fields):
    asked = parse(**{"model": "small", "prompt": "a lake", "quality": "draft"} | fields)
    assert loras.fitted(asked, Settings(models=folder), {})[0] == asked


def test_a_lora_that_is_asked_for_comes_before_the_student_and_that_is_said(broll):
    status, out, err = broll(*DRAFT, "--lora", "film")
    assert status == 0
    assert [lora["name"] for lora in json.loads(out)["spec"]["loras"]] == ["film"]
    assert "its own LoRA for quality draft (small-student) is left out: another one was asked for" in err


def test_a_model_without_a_student_skips_steps_as_ever(broll):
    words = ("--model", "plain", "--quality", "draft", "--steps", 14, "--json")
    _, out, err = broll("generate", "a lake", *words)
    assert not json.loads(out)["spec"].get("loras")
    assert "5 of 14 steps" in err


def test_a_draft_can_be_merged_and_its_negative_prompt_is_said_to_have_no_effect(broll):
    status, out, err = broll(*DRAFT, "--merge-loras", "--negative", "blur")
    assert status == 0, err
    assert "lora small-student 1 merged" in clips.read_record(clips.Path(json.loads(out)["file"])).weights
    assert "at guidance 1 a negative prompt has no effect" in err


def test_a_draft_from_a_picture_starts_from_it(broll, tmp_path, folder):
    from PIL import Image

    Image.linear_gradient("L").resize((64, 32)).convert("RGB").save(tmp_path / "a.png")
    status, out, err = broll(*DRAFT, "--image", tmp_path / "a.png")
    assert status == 0, err
    assert json.loads(out)["spec"]["image"]
    assert SAID in err


def test_a_plan_counts_the_students_steps(broll):
    status, out, _ = broll("plan", "a lake", "--model", "small", "--quality", "draft")
    assert status == 0
    assert "2 steps, guidance 1" in out
    assert SAID in out
    told = json.loads(broll("plan", "a lake", "--model", "small", "--quality", "draft", "--json")[1])
    whole = json.loads(broll("plan", "a lake", "--model", "small", "--json")[1])
    flops = [next(s["flops"] for s in plan["stages"] if s["name"] == "denoise") for plan in (told, whole)]
    assert flops[0] == pytest.approx(flops[1] * 2 / 6)  # two steps without guidance, not three with it


def test_loras_are_listed_with_those_that_models_bring(broll):
    rows = {row["name"]: row for row in json.loads(broll("loras", "list", "--json")[1])["loras"]}
    assert {"film", "small-student"} <= set(rows)
    assert rows["small-student"]["wants"]["steps"] == 2
    status, out, _ = broll("loras", "show", "small-student")
    assert status == 0
    assert "the header of" in out
    assert "small-student.safetensors" in out


def test_the_python_call_makes_a_draft_too(folder, place, monkeypatch):
    monkeypatch.setenv("BROLL_MODELS", str(folder))
    made = clip("a lake", place / "x.mp4", model="small", seed=1, quality="draft")
    assert made.record.spec.student is not None
    assert made.record.spec.steps == 2


def test_over_http_a_draft_is_planned_made_and_retaken_by_the_student(folder, tmp_path):
    ask = {"prompt": "a lake", "model": "small", "seed": 1, "quality": "draft"}
    with live(folder, tmp_path / "service", offer=["small"]) as service, service.client() as client:
        told = client.post("/v1/video/estimate", json=ask).raise_for_status().json()
        whole = client.post("/v1/video/estimate", json=ask | {"quality": "best"}).raise_for_status().json()
        assert SAID in told["notes"]
        assert told["seconds_s"] < whole["seconds_s"]
        made = client.post("/v1/video/generate", json=ask).raise_for_status().json()
        job = finished(client, made["job_id"])
        assert job["status"] == "completed", job
        assert [lora["name"] for lora in job["spec"]["loras"]] == ["small-student"]
        other = ask | {"loras": [{"name": "film"}]}
        mine = client.post("/v1/video/generate", json=other).raise_for_status().json()
        assert any("(small-student) is left out" in note for note in mine["notes"])


def test_the_student_of_quality_draft_equals_its_slow_twin(folder):
    """The steps by hand, with its matrices added to the weights."""
    settings = Settings(models=folder, threads=1)
    model = catalog.find(settings, "small")
    config = wiring.describe(model)
    asked, _ = loras.fitted(parse(model="small", prompt="a lake", seed=1, quality="draft"), settings, {})
    spec = pipeline.resolve(asked, config)
    assert not step_cache.skips_any(spec)
    parts, _ = loras.on(wiring.load(model, config), spec, settings)
    steps = [event for event in pipeline.generate(spec, parts) if isinstance(event, pipeline.Step)]
    twin = wiring.load(model, config)
    state = files.by_hand(twin.transformer, files.pairs(twin.transformer, r"^blocks\.", 7))
    twin.transformer.load_state_dict(state)
    text = pipeline.condition(spec, twin, {}).positive
    grid = pipeline.Grid(3, 2, 4)
    context = twin.transformer.context(grid, text.features, text_bias=text.bias)
    x, levels = pipeline.noise(grid, 16, 1), (1.0, 4 * 0.5 / (1 + 3 * 0.5), 0.0)
    with torch.no_grad():
        for s, t in zip(levels, levels[1:], strict=False):
            x = x + (t - s) * twin.transformer(x, torch.tensor([1000 * s]), context)
    assert (x - steps[-1].x).abs().max() < 1e-4
