"""LoRAs on the command line, in specs, in jobs: by name, with what they want, and gone again afterwards."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from broll import catalog, clips, loras, takes, wiring
from broll.cli import app
from broll.clips import Clip
from broll.engine import pipeline
from broll.engine.sampler import Step
from broll.errors import BadOption, ModelMissing
from broll.events import Work
from broll.renderer import Flag, Renderer
from broll.settings import Settings
from broll.spec import parse
from tests import formats
from tests import loras as files


@pytest.fixture(scope="module")
def models(tiny_models, tmp_path_factory):
    """`tiny`, and three LoRAs: one plain, one distilled by its name, and one that nobody can read."""
    folder = tmp_path_factory.mktemp("with-loras")
    shutil.copytree(tiny_models / "tiny", folder / "tiny")
    parts = wiring.load(
        catalog.find(Settings(models=folder), "tiny"),
        wiring.describe(catalog.find(Settings(models=folder), "tiny")),
    )
    place = folder / "loras"
    place.mkdir()
    made = files.pairs(parts.transformer)
    files.save(made, "comfy", place / "film.safetensors")
    files.save(files.pairs(parts.transformer, seed=8), "kohya", place / "lightx2v-4step.safetensors")
    (place / "broken.safetensors").write_bytes(b"nonsense")
    return folder


@pytest.fixture
def settings(models, tmp_path):
    return Settings(models=models, data=tmp_path / "data", threads=1)


@pytest.fixture
def here(models, monkeypatch, tmp_path):
    monkeypatch.setenv("BROLL_MODELS", str(models))
    monkeypatch.setenv("BROLL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BROLL_THREADS", "1")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "weight", "steps"),
    [
        ("film", "film", None, None),
        ("film:0.8", "film", 0.8, None),
        ("/a/b c.safetensors:-1:1-10", "/a/b c.safetensors", -1.0, (1, 10)),
        ("C:/x.safetensors", "C:/x.safetensors", None, None),
        ("odd:name", "odd:name", None, None),
    ],
)
def test_what_is_typed_is_understood(text, name, weight, steps):
    assert loras.parse(text) == loras.Asked(name, weight, steps)


def test_a_name_or_a_path_becomes_a_digest_and_never_a_path(settings, models):
    uses, places = loras.wanted(settings, [loras.Asked("film", 0.5, (2, 3))])
    assert (uses[0].name, uses[0].weight, uses[0].first, uses[0].last) == ("film", 0.5, 1, 2)
    assert places == {uses[0].sha256: models / "loras" / "film.safetensors"}
    path = models / "loras" / "film.safetensors"
    assert loras.wanted(settings, [loras.Asked(str(path))], paths=True)[0][0].sha256 == uses[0].sha256
    with pytest.raises(ModelMissing, match="broken, film, lightx2v-4step"):
        loras.wanted(settings, [loras.Asked(str(path))])


def test_a_distilled_one_sets_what_the_user_left_open(settings):
    uses, places = loras.wanted(settings, [loras.Asked("lightx2v-4step")])
    spec, told = loras.fitted(
        parse(model="tiny", prompt="a lake", loras=uses, negative_prompt="blur"), settings, places
    )
    assert (spec.steps, spec.guidance, spec.sampler, spec.grid) == (4, 1.0, "euler", "distilled")
    assert "steps 4" in told
    assert "no effect" in told
    spec, told = loras.fitted(parse(model="tiny", prompt="a lake", loras=uses, steps=9), settings, places)
    assert spec.steps == 9


def clip_of(models, settings, out, **fields):
    model = catalog.find(settings, "tiny")
    config = wiring.describe(model)
    spec = pipeline.resolve(parse(**{"model": "tiny", "prompt": "a lake", "seed": 1} | fields), config)
    parts, _ = loras.on(wiring.load(model, config), spec, settings)
    *_, made = takes.make(spec, parts, out, format="mp4")
    assert isinstance(made, Clip)
    return made.record


def test_a_lora_changes_the_clip_its_record_names_it_and_another_file_is_refused(models, settings, tmp_path):
    plain = clip_of(models, settings, tmp_path / "plain.mp4")
    uses, _ = loras.wanted(settings, [loras.Asked("film")])
    styled = clip_of(models, settings, tmp_path / "styled.mp4", loras=uses)
    assert styled.latents_sha256 != plain.latents_sha256
    assert clips.read_record(tmp_path / "styled.mp4").spec.loras == uses
    assert any(name.startswith("lora film 1 ") for name in styled.weights)
    other = [uses[0].model_copy(update={"sha256": "0" * 64})]
    with pytest.raises(ModelMissing, match="another one"):
        clip_of(models, settings, tmp_path / "other.mp4", loras=other)


def test_a_warm_renderer_forgets_the_lora_of_the_job_before(models, settings):
    renderer = Renderer(settings)

    def made(**fields):
        config = wiring.describe(catalog.find(settings, "tiny"))
        spec = pipeline.resolve(parse(**{"model": "tiny", "prompt": "a lake", "seed": 1} | fields), config)
        *_, last = renderer.run(Work("job", "tiny", spec.model_dump_json(exclude_none=True)), Flag())
        return json.loads(last.record)["latents_sha256"]

    uses, _ = loras.wanted(settings, [loras.Asked("film", 2.0)])
    before = made()
    assert made(loras=uses) != before
    assert made() == before


def test_on_the_command_line(here, models, capsys):

    def broll(*words):
        capsys.readouterr()
        return app.run(["generate", *map(str, words)]), *capsys.readouterr()

    status, out, err = broll("a lake", "--model", "tiny", "--seed", 1, "--lora", "lightx2v-4step", "--json")
    told = json.loads(out)
    assert (status, told["spec"]["steps"], told["spec"]["guidance"]) == (0, 4, 1.0)
    assert "as its LoRA wants" in err
    status, out, _ = broll("--like", told["file"], "--json")
    assert json.loads(out)["latents_sha256"] == told["latents_sha256"]
    refused = {"nothing": "model_missing", "broken": "bad_checkpoint", "film:99": "bad_option"}
    refused |= {"film:1:0-3": "bad_option", "film:1:3-2": "bad_option"}
    for bad, code in refused.items():
        status, _, err = broll("a lake", "--model", "tiny", "--lora", bad)
        assert status != 0
        assert f"[{code}]" in err, err


def test_merged_on_the_command_line(here, models, capsys):

    def broll(*words):
        capsys.readouterr()
        return app.run(["generate", "a lake", "--model", "tiny", "--seed", "1", *words]), *capsys.readouterr()

    status, out, _ = broll("--lora", "film", "--merge-loras", "--json")
    merged = json.loads(out)
    assert status == 0
    assert "lora film 1 merged" in clips.read_record(Path(merged["file"])).weights
    status, out, err = broll("--like", merged["file"], "--json")
    beside = json.loads(out)
    assert (status, "other weights" in err) == (0, False)
    assert "lora film 1 None-None" in clips.read_record(Path(beside["file"])).weights
    for words, why in (
        (["--merge-loras"], "no LoRA to merge"),
        (["--lora", "film:1:1-2", "--merge-loras"], "some steps only"),
        (["--server", "http://127.0.0.1:1", "--lora", "film", "--merge-loras"], "the setting merge_loras"),
    ):
        status, _, err = broll(*words)
        assert (status, why in err) == (2, True), err


def test_into_quantized_weights_nothing_is_merged(tmp_path):
    formats.comfy_folder(tmp_path / "mix", "gguf-Q8_0")
    (tmp_path / "loras").mkdir()
    files.save(files.pairs(formats.transformer()), "comfy", tmp_path / "loras" / "film.safetensors")
    settings = Settings(models=tmp_path)
    model = catalog.find(settings, "mix")
    spec = parse(model="mix", prompt="a lake", loras=loras.wanted(settings, [loras.Asked("film")])[0])
    assert not loras.mergeable(model, spec)
    with pytest.raises(BadOption, match="kept as Q8_0"):
        loras.merged(model, wiring.describe(model), spec, settings, settings.loading())


def test_what_merging_leaves_out_is_said(models, settings):
    model = catalog.find(settings, "tiny")
    config = wiring.describe(model)
    transformer = wiring.load(model, config).transformer
    files.save(
        files.pairs(transformer),
        "comfy",
        models / "loras" / "odd.safetensors",
        {"nothing.alpha": torch.ones(1)},
    )
    try:
        spec = parse(model="tiny", prompt="a lake", loras=loras.wanted(settings, [loras.Asked("odd")])[0])
        _, beside = loras.on(wiring.load(model, config), spec, settings)
        _, merged = loras.merged(model, config, spec, settings, settings.loading())
    finally:
        (models / "loras" / "odd.safetensors").unlink()
    assert merged == beside
    assert len(merged) == 1
    assert "nothing.alpha" in merged[0]


def test_a_negative_prompt_at_guidance_1_is_said_to_have_no_effect(here, capsys):

    words = ["generate", "a lake", "--model", "tiny", "--seed", "1", "--negative", "blur", "--guidance", "1"]
    assert app.run(words) == 0
    assert "at guidance 1 a negative prompt has no effect" in capsys.readouterr().err


def test_a_clip_with_a_lora_from_a_path_goes_on_where_it_is_said_to_lie(models, here, tmp_path, capsys):
    here_too = Settings()
    shutil.copy(models / "loras" / "film.safetensors", tmp_path / "my film.safetensors")
    uses, places = loras.wanted(here_too, [loras.Asked(str(tmp_path / "my film.safetensors"))], paths=True)
    model = catalog.find(here_too, "tiny")
    config = wiring.describe(model)
    spec = pipeline.resolve(parse(model="tiny", prompt="a lake", seed=3, loras=uses), config)
    parts, _ = loras.on(wiring.load(model, config), spec, here_too, places)
    first, *_, whole = [step for step in pipeline.generate(spec, parts) if isinstance(step, Step)]
    begun = tmp_path / "x.mp4.snapshot"

    def broll(*words):
        wiring.save_snapshot(begun, spec, parts, first)
        capsys.readouterr()
        return app.run(
            ["generate", "--resume", str(begun), "--json", "--force", *words]
        ), *capsys.readouterr()

    status, _, err = broll()
    assert (status, "there is no LoRA 'my-film'" in err) == (3, True), err
    status, _, err = broll("--lora", "lightx2v-4step")
    assert (status, "can only say where they are" in err) == (2, True), err
    status, out, err = broll("--lora", str(tmp_path / "my film.safetensors"))
    assert status == 0, err
    assert json.loads(out)["latents_sha256"] == pipeline.digest(whole.x)


def test_loras_are_listed_and_shown(here, models, capsys):

    def broll(*words):
        capsys.readouterr()
        return app.run(["loras", *map(str, words)]), *capsys.readouterr()

    status, out, _ = broll("list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0
    brought = {"nano-student"} if catalog.embedded_nano() else set()
    assert set(lines) == {"broken", "film", "lightx2v-4step"} | brought
    assert "cannot be used" in lines["broken"]
    assert "ComfyUI, rank 3, " in lines["film"]
    assert "kohya" in lines["lightx2v-4step"] and "steps 4" in lines["lightx2v-4step"]
    rows = {row["name"]: row for row in json.loads(broll("list", "--json")[1])["loras"]}
    assert rows["film"]["wants"] is None and rows["film"]["ranks"] == [3]
    assert rows["lightx2v-4step"]["wants"]["grid"] == "distilled"
    assert "error" in rows["broken"]
    status, out, _ = broll("show", "lightx2v-4step")
    assert status == 0 and "negative prompt has no effect" in out
    assert re.search(r"^tiny +changes \d+ places$", out, re.MULTILINE)
    assert re.search(r"^wan2.1-t2v-14b +no: .*this model has", out, re.MULTILINE)
    row = json.loads(broll("show", models / "loras" / "film.safetensors", "--json")[1])
    assert row["fits"]["tiny"]["unused"] == [] and "refused" in row["fits"]["wan2.1-t2v-1.3b"]
    assert row["sha256"] == loras.digest(models / "loras" / "film.safetensors")
    assert broll("show", "nothing")[0] == 3
    assert broll("show", "broken")[0] == 3


def test_two_distilled_ones_that_disagree_must_be_told_apart(settings, models):
    (models / "loras" / "causvid.safetensors").write_bytes(
        (models / "loras" / "film.safetensors").read_bytes()
    )
    try:
        uses, places = loras.wanted(settings, [loras.Asked("lightx2v-4step"), loras.Asked("causvid")])
        assert uses[1].weight == 0.3
        with pytest.raises(BadOption, match="--steps"):
            loras.fitted(parse(model="tiny", prompt="a lake", loras=uses), settings, places)
    finally:
        (models / "loras" / "causvid.safetensors").unlink()
