"""A prompt becomes a file; the file says how; and the same again is the same."""

import json
import re
import shutil

import pytest

MODEL = ("--model", "tiny")


@pytest.mark.parametrize("form", ["mp4", "webm", "gif"])
def test_makes_a_clip_in_every_format(broll, place, form):
    from broll.media.video_file import probe

    ran = broll("generate", "a lake, pan left", *MODEL, "--seed", 3, "--out", f"lake.{form}")
    assert ran.status == 0, ran.err
    info = probe(place / f"lake.{form}")
    assert (info.width, info.height, info.frames) == (64, 32, 9)
    assert ran.out.startswith(f"lake.{form}  seed 3")


def test_says_what_it_will_do_and_how_far_it_is(broll):
    ran = broll("generate", "a lake", *MODEL, "--seed", 3)
    assert "tiny: 64x32, 9 frames (0.6 s), 3 steps, guidance 4, seed 3" in ran.err
    for stage in ("loading tiny", "text", "denoise 1/3", "denoise 3/3", "decode 9/9", " left"):
        assert stage in ran.err
    assert "of memory" in ran.err


def test_quiet_says_only_the_result(broll):
    ran = broll("generate", "a lake", *MODEL, "--quiet")
    assert ran.err == ""
    assert len(ran.out.splitlines()) == 1


def test_json_is_one_object_and_alone_on_stdout(broll, place):
    ran = broll("generate", "a lake", *MODEL, "--json", "--poster", "--sheet")
    assert set(ran.json) >= {"file", "seed", "seconds", "latents_sha256", "spec", "poster", "sheet"}
    for name in ("file", "poster", "sheet"):
        assert (place / ran.json[name]).stat().st_size > 0
    assert ran.json["spec"]["seed"] == ran.json["seed"]


def test_a_name_is_made_from_the_prompt_and_never_overwrites(broll, place):
    names = [
        broll("generate", "A Lake, at NIGHT!", *MODEL, "--seed", 7, "--json").json["file"] for _ in range(2)
    ]
    assert names == ["a-lake-at-night-7.mp4", "a-lake-at-night-7-2.mp4"]


def test_seconds_become_the_nearest_possible_length_and_that_is_said(broll):
    ran = broll("generate", "a lake", *MODEL, "--seconds", "0.7", "--json")
    assert ran.json["spec"]["frames"] == 13
    assert "0.7 s is not a length" in ran.err
    ran = broll("generate", "a lake", *MODEL, "--seconds", "0.5", "--json")
    assert ran.json["spec"]["frames"] == 9
    assert "not a length" not in ran.err


def test_seconds_are_counted_at_the_models_own_rate(broll, place, tiny_models, monkeypatch):
    shutil.copytree(tiny_models / "tiny", place / "models" / "fast")
    about = json.loads((place / "models" / "fast" / "broll.json").read_text())
    about["defaults"]["fps"] = 24
    (place / "models" / "fast" / "broll.json").write_text(json.dumps(about))
    monkeypatch.setenv("BROLL_MODELS", str(place / "models"))
    asked = ("a lake", "--model", "fast", "--seconds", "0.4", "--json")
    assert (
        broll("generate", *asked, "--steps", "2").json["spec"]["frames"] == 9
    )  # at 16 a second it would be 5
    assert broll("plan", *asked).json["frames"] == 9


def test_like_repeats_a_clip_bit_for_bit(broll):
    first = broll(
        "generate", "a lake", *MODEL, "--sampler", "dpm++", "--steps", 4, "--shift", 2, "--json"
    ).json
    again = broll("generate", "--like", first["file"], "--json").json
    assert again["latents_sha256"] == first["latents_sha256"]
    assert again["spec"] == first["spec"]
    assert again["file"] != first["file"]
    other = broll("generate", "--like", first["file"], "--seed", first["seed"] + 1, "--json").json
    assert other["latents_sha256"] != first["latents_sha256"]
    assert other["spec"] == first["spec"] | {"seed": first["seed"] + 1}


def test_like_says_when_the_weights_are_others(broll, tmp_path):
    from tests import checkpoints

    first = broll("generate", "a lake", *MODEL, "--json").json
    folder = checkpoints.diffusers_folder(tmp_path / "mine" / "tiny")
    assert (
        "warning: that clip was made with other weights" not in broll("generate", "--like", first["file"]).err
    )
    from safetensors.torch import load_file, save_file

    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(path).items()}, path)
    ran = broll("generate", "--like", first["file"], "--model", folder)
    assert ran.status == 0
    assert "warning: that clip was made with other weights" in ran.err


def test_a_picture_starts_a_clip_keeps_its_aspect_and_is_found_again(broll, picture):
    first = broll("generate", "a lake", "--image", picture, "--json").json
    assert first["spec"]["model"] == "tiny-i2v"  # the best model present for pictures
    assert (first["spec"]["width"], first["spec"]["height"]) == (64, 32)
    picture.unlink()
    again = broll("generate", "--like", first["file"], "--json").json
    assert again["latents_sha256"] == first["latents_sha256"]


def test_two_pictures_are_the_first_and_the_last(broll, picture):
    ran = broll(
        "generate",
        "a lake",
        "--image",
        picture,
        "--last-image",
        picture,
        "--json",
        "--preprocessing",
        "diffusers",
    )
    assert ran.json["spec"]["model"] == "tiny-flf2v"
    assert ran.json["spec"]["preprocessing"] == "diffusers"


def test_a_model_may_be_a_folder(broll, tiny_models):
    assert broll("generate", "a lake", "--model", tiny_models / "tiny").status == 0


def test_what_was_done_to_the_weights_is_shown_whole(broll):
    made = broll("generate", "a lake", *MODEL, "--int8", "--json").json
    assert re.search(r"int8 \d+ matrices to (127|63)\n", broll("inspect", made["file"]).out)


def test_the_second_forecast_is_from_what_was_seen(broll, monkeypatch):
    monkeypatch.setattr("broll.pace.LONG", 0.0)
    assert "measured rates" in broll("generate", "a lake", *MODEL).err
    assert "as seen here before" in broll("generate", "a lake", *MODEL).err


def begin(out):
    """A snapshot after the first step, as Ctrl-C leaves it: `wiring` without the command line."""
    from broll import catalog, clips, wiring
    from broll.engine import pipeline
    from broll.settings import Settings
    from broll.spec import parse

    settings = Settings()
    wiring.use_threads(settings)
    model = catalog.find(settings, "tiny")
    config = wiring.describe(model)
    spec = pipeline.resolve(parse(model="tiny", prompt="a lake", seed=3), config)
    parts = wiring.load(model, config)
    events = clips.make_clip(spec, parts, out, format="webm")
    step = next(events)
    events.close()
    wiring.save_snapshot(out.with_name(out.name + ".snapshot"), spec, parts, step)


def test_what_was_begun_elsewhere_is_marked(broll, place):
    from broll.engine import snapshot

    begin(place / "x.webm")
    assert [path.name for path in place.iterdir()] == ["x.webm.snapshot"]
    begun = snapshot.load(place / "x.webm.snapshot")
    begun.conditions["device"] = "another"
    snapshot.save(place / "x.webm.snapshot", begun)
    ran = broll("generate", "--resume", "x.webm.snapshot", "--json")
    assert "warning: begun under other conditions (device)" in ran.err
    assert ran.json["resumed_elsewhere"]
    assert broll("inspect", "x.webm", "--json").json["resumed_elsewhere"]


def test_inspect_gives_back_the_spec(broll):
    made = broll("generate", "a lake \u6e56", *MODEL, "--json").json
    told = broll("inspect", made["file"], "--json").json
    assert told["spec"] == made["spec"]
    assert told["latents_sha256"] == made["latents_sha256"]
    assert told["video"]["frames"] == 9
    assert "a lake \u6e56" in broll("inspect", made["file"]).out


def test_what_a_file_says_is_not_trusted(broll, place):
    import numpy as np

    from broll.media.video_file import VideoWriter

    made = broll("generate", "a lake", *MODEL, "--json").json
    record = broll("inspect", made["file"], "--json").json
    record["spec"]["prompt"] = "\x1b[2J a screen wiped"

    def write(text: str) -> None:
        with VideoWriter(place / "x.mp4", width=64, height=32, fps=16, format="mp4", metadata=text) as video:
            video.write(np.zeros((1, 32, 64, 3), np.uint8))

    write(json.dumps(record))
    assert "\x1b" not in broll("inspect", "x.mp4").out
    for text in ("{}", "[1]", "no json", json.dumps(record | {"spec": {"model": "m", "prompt": ""}})):
        write(text)
        ran = broll("inspect", "x.mp4")
        assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert "[bad_option]" in ran.err


def test_models_list_says_what_is_here_and_how_to_get_the_rest(broll, tiny_models):
    table = {row["name"]: row for row in broll("models", "list", "--json").json["models"]}
    assert table["tiny"]["here"]
    assert table["tiny"]["path"] == str(tiny_models / "tiny")
    assert not table["wan2.1-t2v-14b"]["here"]
    assert "broll models pull wan2.1-t2v-14b" in broll("models", "list").out


@pytest.mark.parametrize("name", ["Wan2.1-T2V-1.3B", "wan2.1-t2v-1.3b-diffusers", "WAN2.1-T2V-1.3B"])
def test_a_published_model_is_found_under_its_repositorys_name(tmp_path, name):
    from broll import catalog
    from broll.settings import Settings

    (tmp_path / name).mkdir()
    (tmp_path / name / "model_index.json").write_text("{}")
    found = catalog.find(Settings(models=tmp_path, data=tmp_path), "wan2.1-t2v-1.3b")
    assert found.folder == tmp_path / name


def test_doctor_says_what_works(broll):
    ran = broll("doctor", "--json")
    assert ran.status == 0
    assert ran.json["works"]
    checks = {check["name"]: check for check in ran.json["checks"]}
    assert {"python", "broll", "torch", "cpu", "memory", "models", "data", "weights", "codec"} <= set(checks)
    assert all(check["advice"] for check in checks.values() if check["status"] != "ok")


def test_doctor_fails_where_nothing_can_be_generated(broll, tmp_path, monkeypatch):
    from broll import catalog

    monkeypatch.setenv("BROLL_MODELS", str(tmp_path / "none"))
    if catalog.embedded_nano() is None:
        ran = broll("doctor")
        assert ran.status == 1
        assert 'pip install "broll[nano]"' in ran.out


def test_streamed_blocks_make_the_same_clip_and_the_record_says_so(broll):
    made = {
        how: broll(
            "generate", "a lake", *MODEL, "--seed", 3, "--offload", how, "--json", "--out", f"{how}.mp4"
        )
        for how in ("on", "off")
    }
    assert "switched on: block streaming" in made["on"].err
    assert "switched on" not in made["off"].err
    records = {how: broll("inspect", ran.json["file"], "--json").json for how, ran in made.items()}
    assert [records[how]["levers"] for how in ("on", "off")] == [["block_streaming"], []]
    assert records["on"]["latents_sha256"] == records["off"]["latents_sha256"]
    assert records["on"]["conditions"] == records["off"]["conditions"]


def test_a_streamed_clip_goes_on_without_streaming_and_is_not_marked(broll, place, monkeypatch):
    monkeypatch.setenv("BROLL_OFFLOAD", "on")
    first = broll("generate", "a lake", *MODEL, "--seed", 3, "--json").json
    assert broll("inspect", first["file"], "--json").json["levers"] == ["block_streaming"]
    monkeypatch.setenv("BROLL_OFFLOAD", "off")
    again = broll("generate", "--like", first["file"], "--json").json
    assert again["latents_sha256"] == first["latents_sha256"]
    assert again["resumed_elsewhere"] is False
