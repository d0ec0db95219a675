"""Clips from text or from a first picture by one model: which model is taken, and what is said of it."""

import json
import shutil

import pytest
from PIL import Image

import broll
from broll import catalog, clips
from broll.settings import Settings
from tests import checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models: `starts` makes clips from text or from a picture; and only that."""
    place = tmp_path_factory.mktemp("starting")
    checkpoints.diffusers_folder(place / "starts", "ti2v")
    return place


@pytest.fixture
def alone(broll, folder, monkeypatch):
    """The command line where no other model is; the real nano is one, where it is installed."""
    monkeypatch.setenv("BROLL_MODELS", str(folder))
    return broll


def test_with_a_picture_a_model_for_both_is_taken_only_where_none_is_for_pictures(
    tmp_path, folder, tiny_models
):
    settings = Settings(models=tmp_path, data=tmp_path)
    shutil.copytree(folder / "starts", tmp_path / "starts")
    assert catalog.best(settings, "i2v").task == "ti2v"
    shutil.copytree(tiny_models / "tiny-i2v", tmp_path / "z-from-pictures")
    assert catalog.best(settings, "i2v").name == "z-from-pictures"


def test_able_models_are_those_of_the_first_kind_that_is_there_in_their_order():
    here = {"film": "vace", "start": "ti2v", "text": "t2v", "picture": "i2v"}
    assert catalog.able(here, "t2v") == ["start", "text"]
    assert catalog.able(here, "i2v") == ["picture"]
    assert catalog.able({"start": "ti2v", "text": "t2v"}, "i2v") == ["start"]
    assert catalog.able({"film": "vace"}, "t2v") == ["film"]
    assert catalog.able(here, "flf2v") == []


def test_every_model_that_is_here_bears_the_name_it_is_found_under(alone):
    here = catalog.installed(Settings())
    assert "starts" in here
    assert [model.name for model in here.values()] == list(here)


def test_where_no_model_starts_from_a_picture_both_ways_to_get_one_are_said():
    said = str(catalog.missing("i2v"))
    assert 'pip install "broll[nano]"' in said
    assert "broll models pull wan2.1-i2v-14b-480p" in said
    assert "wan2.1" not in str(catalog.missing("t2v"))


def test_a_picture_starts_the_clip_and_like_and_an_other_one_do_too(alone, picture, tmp_path):
    ask = ("--model", "starts", "--json")
    first = alone("generate", "a lake", "--image", picture, "--seed", 3, *ask).json
    assert (first["spec"]["width"], first["spec"]["height"]) == (64, 32)
    again = alone("generate", "--like", first["file"], "--json").json
    assert (again["spec"], again["latents_sha256"]) == (first["spec"], first["latents_sha256"])
    tall = tmp_path / "tall.png"
    Image.new("RGB", (50, 100), "red").save(tall)
    other = alone("generate", "--like", first["file"], "--image", tall, "--json").json
    assert other["spec"]["image"] != first["spec"]["image"]
    text = alone("generate", "a lake", "--seed", 3, *ask).json
    assert "image" not in text["spec"]
    assert text["latents_sha256"] != first["latents_sha256"]


def test_a_clip_from_a_picture_goes_on_from_a_snapshot(alone, picture, place):
    from broll import wiring
    from broll.cli.request import prepare
    from broll.cli.typed import Options

    whole = alone("generate", "a lake", "--image", picture, "--model", "starts", "--seed", 3, "--json").json
    job = prepare(Options(prompt="a lake", image=picture, model="starts", seed=3), Settings())
    parts = wiring.load(job.model, job.config)
    events = clips.make_clip(job.spec, parts, place / "x.mp4", format="mp4", pictures=job.pictures)
    step = next(events)
    events.close()
    wiring.save_snapshot(place / "x.mp4.snapshot", job.spec, parts, step)
    gone_on = alone("generate", "--resume", "x.mp4.snapshot", "--json").json
    assert gone_on["latents_sha256"] == whole["latents_sha256"]
    assert not gone_on["resumed_elsewhere"]


def test_a_last_picture_is_refused_in_one_line(alone, picture):
    ran = alone("generate", "a lake", "--model", "starts", "--image", picture, "--last-image", picture)
    assert (ran.status, ran.err.count("error [")) == (2, 1)
    assert "[wrong_task]: starts takes no last picture; for --last-image use wan2.1-flf2v-14b" in ran.err


def test_models_list_and_show_say_what_it_starts_from(alone):
    row = next(r for r in alone("models", "list", "--json").json["models"] if r["name"] == "starts")
    assert row["does"] == "text to video, or first picture and text to video"
    shown = alone("models", "show", "starts", "--json").json
    assert (shown["task"], shown["does"]) == ("ti2v", row["does"])


def test_a_model_that_was_added_by_name_still_starts_from_a_picture(
    alone, folder, tmp_path, picture, monkeypatch
):
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setenv("BROLL_MODELS", str(models))
    assert alone("models", "add", "mine", folder / "starts", "--json").json["task"] == "ti2v"
    assert alone("generate", "a lake", "--model", "mine", "--image", picture).status == 0


def test_a_plan_with_a_picture_is_that_of_the_clip_from_it(alone, tmp_path):
    square = tmp_path / "square.png"
    Image.new("RGB", (80, 80)).save(square)
    text = alone("plan", "a lake", "--model", "starts", "--json").json
    made = alone("plan", "a lake", "--model", "starts", "--image", square, "--json").json
    assert [stage["name"] for stage in text["stages"]] == ["text", "denoise", "decode"]
    assert [stage["name"] for stage in made["stages"]] == ["text", "image", "denoise", "decode"]
    assert (text["size"], made["size"]) == ("64x32", "32x32")


def test_the_coach_knows_that_the_picture_shows_the_rest(alone, picture):
    from broll import coaching, wiring
    from broll.spec import Artifact, parse

    config = wiring.describe(catalog.find(Settings(), "starts"))
    asked = parse(model="starts", prompt="a lake")
    assert coaching.context(config, asked, Settings()).task == "t2v"
    begun = asked.model_copy(update={"image": Artifact.of(b"x")})
    assert coaching.context(config, begun, Settings()).task == "i2v"


@pytest.mark.parametrize("said", ["i2v", "film", 7, ["ti2v"]])
def test_what_its_tensors_cannot_be_is_refused(alone, tmp_path, folder, said):
    shutil.copytree(folder / "starts", tmp_path / "odd")
    about = json.loads((tmp_path / "odd" / "broll.json").read_text())
    (tmp_path / "odd" / "broll.json").write_text(json.dumps(about | {"task": said}))
    ran = alone("generate", "a lake", "--model", tmp_path / "odd")
    assert (ran.status, "[bad_checkpoint]" in ran.err, "t2v or ti2v" in ran.err) == (3, True, True), ran.err


def test_the_original_layouts_ti2v_is_wan_2_2s_and_no_model_here(tmp_path):
    checkpoints.original_folder(tmp_path / "five-b")
    numbers = json.loads((tmp_path / "five-b" / "config.json").read_text())
    checkpoints.write_json(tmp_path / "five-b" / "config.json", numbers | {"model_type": "ti2v"})
    assert "five-b" not in catalog.installed(Settings(models=tmp_path, data=tmp_path))


def test_clip_takes_pictures_by_their_paths(place, folder, picture, monkeypatch):
    monkeypatch.setenv("BROLL_MODELS", str(folder))
    made = broll.clip("a lake", place / "x.mp4", model="starts", image=picture, seed=3)
    assert made.record.spec.image is not None
    assert (made.record.spec.width, made.record.spec.height) == (64, 32)
