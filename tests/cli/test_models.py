"""`broll models`: pulled from a hub that misbehaves, added, shown, checked, removed; and nothing else is touched."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from broll.engine import load
from broll.engine.config import PUBLISHED
from tests import checkpoints, formats
from tests import hub as hubs

ROOT = Path(__file__).parents[2]
LARGE = 24_000_000  # bytes: huggingface_hub writes ten million at a time


@pytest.fixture
def models(place, tmp_path, monkeypatch):
    """An empty folder of models."""
    folder = tmp_path / "models"
    monkeypatch.setenv("BROLL_MODELS", str(folder))
    return folder


@pytest.fixture
def hub(monkeypatch, tiny_models):
    with hubs.running() as running:
        running.put("some/Tiny", tiny_models / "tiny")
        running.repositories["some/Tiny"] |= {"README.md": b"#", "assets/a.png": b"png"}
        hubs.use(running, monkeypatch)
        yield running


@pytest.fixture
def start(hub, models, tmp_path):
    """A process of its own, which reads HF_ENDPOINT itself."""

    begun = []

    def begin(*words, **more):
        process = subprocess.Popen(
            [sys.executable, "-m", "broll", "models", *map(str, words)],
            env=os.environ | hub.environment(tmp_path / "hf") | {"PYTHONPATH": str(ROOT)} | more,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        begun.append(process)
        return process

    yield begin
    for process in begun:
        if process.returncode is None:
            process.kill()
            process.communicate()


@pytest.fixture
def run(start):
    def finish(*words, **more):
        process = start(*words, **more)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return finish


def code_of(ran):
    status, out, err = ran
    assert "Traceback" not in err
    return status, json.loads(out)["error"]["code"]


def test_a_pulled_model_is_described_listed_whole_and_makes_a_clip(run, hub, models, broll):
    status, out, err = run("pull", "some/Tiny", "--json")
    assert status == 0, err
    about = json.loads(out)
    assert (about["name"], about["task"], about["layout"]) == ("Tiny", "t2v", "diffusers")
    assert (about["license"], about["sources"]) == ("apache-2.0", [f"some/Tiny@{hubs.COMMIT}"])
    assert about["fits"]
    assert not (models / "Tiny" / "README.md").exists()
    assert not any("assets" in path for path in hub.fetched())
    assert hub.strange == []
    assert sorted(path.name for path in models.iterdir()) == ["Tiny"]
    row = next(row for row in broll("models", "list", "--json").json["models"] if row["name"] == "Tiny")
    assert (row["here"], row["license"]) == (True, "apache-2.0")
    assert broll("models", "verify", "Tiny").out == "Tiny is whole, by its bytes\n"
    assert broll("generate", "a lake", "--model", "Tiny", "--out", "lake.mp4", "-q").status == 0


def test_what_is_here_already_is_not_fetched_again(broll, hub, models):
    assert broll("models", "pull", "some/Tiny").status == 0
    hub.asked.clear()
    ran = broll("models", "pull", "some/Tiny", "--json")
    assert (ran.status, ran.json["already"], hub.asked) == (0, True, [])


def test_another_thing_of_that_name_is_not_replaced(broll, hub, models):
    (models / "Tiny").mkdir(parents=True)
    (models / "Tiny" / "mine").write_text("mine")
    ran = broll("models", "pull", "some/Tiny")
    assert (ran.status, "is there already" in ran.err, hub.asked) == (2, True, [])
    assert (models / "Tiny" / "mine").read_text() == "mine"


def largest(folder):
    sizes = [0]
    for file in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it is whole, and was moved
            sizes.append(file.stat().st_size)
    return max(sizes)


def test_a_killed_pull_is_no_model_and_the_next_one_goes_on(start, run, hub, models, broll):
    path = "transformer/diffusion_pytorch_model-00001-of-00001.safetensors"
    hub.repositories["some/Tiny"][path] = random.Random(1).randbytes(LARGE)
    hub.stall[path] = 12_000_000
    process = start("pull", "some/Tiny")
    partial = models / ".Tiny.part" / ".fetching"
    until = time.monotonic() + 60
    while largest(partial) < 10_000_000:
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (models / "Tiny").exists()
    table = broll("models", "list", "--json").json["models"]
    assert next(row for row in table if row["name"] == "Tiny")["begun_bytes"] >= 10_000_000
    assert broll("generate", "a lake", "--model", "Tiny").status == 2  # unknown
    hub.stall.clear()
    hub.asked.clear()
    status, _, err = run("pull", "some/Tiny")
    assert (models / "Tiny" / path).read_bytes() == hub.repositories["some/Tiny"][path]
    assert [asked for file, asked in hub.asked if file == path] == ["bytes=10485760-"]
    assert status in (0, 3), err  # whole; but random bytes are no shard


def test_two_pulls_of_one_model_do_not_write_into_each_other(start, broll, hub, models):
    hub.stall["vae/diffusion_pytorch_model.safetensors"] = 10
    first = start("pull", "some/Tiny")
    while not (models / ".Tiny.part" / ".fetching").exists():
        assert first.poll() is None
        time.sleep(0.05)
    ran = broll("models", "pull", "some/Tiny")
    assert (ran.status, "another broll is pulling Tiny" in ran.err) == (2, True)
    hub.stall.clear()
    hub.go_on.set()
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err


def test_wrong_bytes_are_named_and_nothing_is_installed(broll, hub, models):
    hub.corrupt.add("vae/diffusion_pytorch_model.safetensors")
    ran = broll("models", "pull", "some/Tiny", "--json")
    assert (ran.status, ran.json["error"]["code"]) == (3, "bad_download")
    assert "vae/diffusion_pytorch_model.safetensors" in ran.err
    assert not (models / "Tiny").exists()


def test_refusals_are_one_line_with_a_code(broll, hub, models):
    hub.repositories |= {"some/gated": {}, "some/bare": {"model.gguf": b"x"}}
    hub.gated.add("some/gated")
    hub.sizes["vae/diffusion_pytorch_model.safetensors"] = 10**17
    cases = {
        ("pull", "some/none"): (3, "hub_not_found"),
        ("pull", "some/gated"): (3, "hub_refused"),
        ("pull", "some/bare"): (3, "bad_checkpoint"),
        ("pull", "some/Tiny"): (5, "output_error"),
        ("pull", "some/Tiny", "--revision", "none"): (3, "hub_not_found"),
        ("pull", "nano"): (2, "bad_option"),
        ("pull", "wan9"): (2, "bad_option"),
        ("pull", "wan2.1-t2v-14b", "--quant", "q2"): (2, "bad_option"),
        ("pull", "wan2.1-vace-1.3b", "--quant", "q8"): (2, "bad_option"),
        ("pull", "wan2.1-t2v-14b", "--quant", "q8", "--layout", "original"): (2, "bad_option"),
        ("pull", "some/Tiny", "--layout", "odd"): (2, "bad_option"),
    }
    for words, expected in cases.items():
        ran = broll("models", *words, "--json")
        assert (ran.status, ran.json["error"]["code"]) == expected, words
        assert ran.err.count("\n") <= 2, ran.err  # what will be done, and what went wrong
    assert hub.asked == []


def test_offline_nothing_is_asked(run, hub, models):
    status, out, err = run("pull", "some/Tiny", "--json", HF_HUB_OFFLINE="1")
    assert code_of((status, out, err)) == (3, "hub_unreachable")
    assert "HF_HUB_OFFLINE" in err


def test_a_private_repository_is_read_with_a_token(start, broll, hub, models):
    hub.private["some/Tiny"] = "hf_secret"
    assert broll("models", "pull", "some/Tiny", "--json").json["error"]["code"] == "hub_not_found"
    process = start("pull", "some/Tiny", HF_TOKEN="hf_secret")
    while not hub.asked:  # it may read
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    assert "hf_secret" not in "".join(process.communicate())


@pytest.fixture
def quantized(hub, tmp_path, monkeypatch):
    """The repositories of wan2.1-t2v-14b's q4, with tiny weights under the real names."""
    config = dataclasses.replace(PUBLISHED["wan2.1-t2v-14b"], transformer=formats.NUMBERS)
    monkeypatch.setitem(PUBLISHED, "wan2.1-t2v-14b", config)
    transformer = formats.transformer_file(tmp_path / "made", "gguf-Q4_K").read_bytes()
    text = formats.text_file(tmp_path / "made", "llama-Q8_0").read_bytes()
    hub.repositories["city96/Wan2.1-T2V-14B-gguf"] = {
        "wan2.1-t2v-14b-Q4_K_M.gguf": transformer, "wan2.1-t2v-14b-Q8_0.gguf": b"other",
    }  # fmt: skip
    hub.repositories["city96/umt5-xxl-encoder-gguf"] = {"umt5-xxl-encoder-Q4_K_M.gguf": text}
    original = tmp_path / "original"
    checkpoints.tokenizer().save_pretrained(original / "google" / "umt5-xxl")
    torch.save(formats.official_vae(), original / "Wan2.1_VAE.pth")
    (original / "diffusion_pytorch_model.safetensors").write_bytes(b"too large to be fetched")
    hub.put("Wan-AI/Wan2.1-T2V-14B", original)
    return hub


def test_a_quantized_model_takes_its_parts_from_several_places_and_loads(broll, quantized, models):
    ran = broll("models", "pull", "wan2.1-t2v-14b", "--quant", "q4", "--json")
    assert ran.status == 0, ran.err
    about = ran.json
    assert (about["name"], about["task"], about["layout"]) == ("wan2.1-t2v-14b-q4", "t2v", "mixed")
    assert len(about["sources"]) == 3
    kinds = {part["part"]: set(part["bytes"]) for part in about["parts"]}
    assert "Q4_K" in kinds["transformer"]
    assert "Q8_0" in kinds["text_encoder"]
    assert about["defaults"] == {"size": [1280, 720], "frames": 81, "steps": 50}
    assert "diffusion_pytorch_model.safetensors" not in quantized.fetched()
    parts = load.load(models / "wan2.1-t2v-14b-q4", "wan2.1-t2v-14b-q4")
    assert parts.config.text == formats.TEXT
    assert broll("models", "verify", "wan2.1-t2v-14b-q4").status == 0


def test_a_quantized_part_that_the_hub_lacks_is_named(broll, quantized, models):
    del quantized.repositories["Wan-AI/Wan2.1-T2V-14B"]["Wan2.1_VAE.pth"]
    ran = broll("models", "pull", "wan2.1-t2v-14b", "--quant", "q4")
    assert (ran.status, "has no Wan2.1_VAE.pth" in ran.err, quantized.asked) == (3, True, [])


# --- checking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["another byte", "cut short", "missing"])
def test_damage_is_found_by_the_record(how, broll, hub, models):
    broll("models", "pull", "some/Tiny")
    file = models / "Tiny" / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(data if how == "another byte" else data[:-3])
    ran = broll("models", "verify", "Tiny", "--json")
    assert ran.status == 1
    assert [one["path"] for one in ran.json["problems"]] == ["vae/diffusion_pytorch_model.safetensors"]
    assert "damaged  vae/diffusion_pytorch_model.safetensors" in broll("models", "verify", "Tiny").out


def test_without_a_record_names_and_shapes_are_checked(broll, models, tiny_models):
    shutil.copytree(tiny_models / "tiny-i2v", models / "own")
    assert broll("models", "verify", "own").out == "own is whole, by its names and shapes\n"
    tensors = checkpoints.diffusers_names("i2v")
    wrong = sorted(tensors)[3]
    tensors[wrong] = tensors[wrong][..., :1].repeat(*[1] * (tensors[wrong].dim() - 1), 7).contiguous()
    save_file(tensors, models / "own" / "transformer" / "diffusion_pytorch_model.safetensors")
    ran = broll("models", "verify", "own")
    assert (ran.status, wrong in ran.out) == (1, True)


def test_a_record_that_points_outside_is_refused(broll, hub, models):
    broll("models", "pull", "some/Tiny")
    file = models / "Tiny" / "broll-files.json"
    record = json.loads(file.read_text())
    record["files"]["../../x"] = next(iter(record["files"].values()))
    file.write_text(json.dumps(record))
    ran = broll("models", "verify", "Tiny")
    assert (ran.status, "no path inside its folder" in ran.err) == (3, True)
    assert broll("models", "list").status == 0


# --- one's own --------------------------------------------------------------------------------------------


def test_a_folder_elsewhere_gets_a_name_and_only_the_name_is_removed(broll, models, tiny_models, tmp_path):
    own = shutil.copytree(tiny_models / "tiny", tmp_path / "elsewhere")
    before = hubs_files(own)
    ran = broll("models", "add", "mine", own, "--json")
    assert (ran.status, ran.json["task"]) == (0, "t2v"), ran.err
    assert broll("generate", "a lake", "--model", "mine", "-q").status == 0
    assert broll("models", "remove", "mine", "--yes").status == 0
    assert hubs_files(own) == before
    assert list(models.iterdir()) == []


def hubs_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_single_file_gets_a_name_with_the_other_parts(task, broll, models, tmp_path):
    folder = formats.comfy_folder(tmp_path / "comfy", "gguf-Q8_0", task)
    (folder / "model.toml").unlink()
    file = next((folder / "diffusion_models").iterdir())
    words = ["--vae", folder / "vae" / "wan_2.1_vae.safetensors", "--tokenizer", folder / "tokenizer"]
    words += ["--text-encoder", next((folder / "text_encoders").iterdir())]
    if task == "i2v":
        ran = broll("models", "add", "mine", file, *words)
        assert (ran.status, "--image-encoder" in ran.err) == (2, True)
        words += ["--image-encoder", folder / "clip_vision" / "clip_vision_h.safetensors"]
    ran = broll("models", "add", "mine", file, *words)
    assert ran.status == 0, ran.err
    assert "Q8_0" in ran.out
    row = next(row for row in broll("models", "list", "--json").json["models"] if row["name"] == "mine")
    assert row["does"] == {"t2v": "text to video", "i2v": "first picture and text to video"}[task]
    assert broll("models", "verify", "mine").out == "mine is whole, by its names and shapes\n"
    load.load(models / "mine", "mine")
    broll("models", "remove", "mine", "--yes")
    assert file.exists()
    assert list(models.iterdir()) == []


def test_what_cannot_be_added_is_refused_and_leaves_nothing(broll, models, tiny_models, tmp_path):
    file = formats.transformer_file(tmp_path / "files", "single")
    text = formats.text_file(tmp_path / "files", "fp16")
    own = tiny_models / "tiny"
    for words, status, said in [
        (("mine", tmp_path / "none"), 2, "there is no"),
        (("mine", tmp_path), 3, "no checkpoint"),
        (("mine", file), 2, "--vae"),
        (("mine", text, "--vae", own), 3, "holds a text encoder"),
        (("wan2.1-t2v-14b", own), 2, "a model that broll knows"),
        (("nano", own), 2, "a model that broll knows"),
        (("loras", own), 2, "no model's name"),
        (("../x", own), 2, "no model's name"),
        ((".x", own), 2, "no model's name"),
        (("mine", file, "--vae", own, "--text-encoder", own, "--tokenizer", own, "--defaults-of", "x"), 2, "x"),
    ]:  # fmt: skip
        ran = broll("models", "add", *words)
        assert (ran.status, said in ran.err) == (status, True), (words, ran.err)
    assert not models.exists() or list(models.iterdir()) == []


# --- removing ---------------------------------------------------------------------------------------------


def test_removing_asks_unless_told_not_to(broll, hub, models):
    broll("models", "pull", "some/Tiny")
    ran = broll("models", "remove", "Tiny")
    assert (ran.status, "say --yes" in ran.err, (models / "Tiny").exists()) == (2, True, True)
    ran = broll("models", "remove", "Tiny", "--yes", "--json")
    assert (ran.json["removed"], list(models.iterdir())) == ([str(models / "Tiny")], [])


def test_a_name_whose_folder_is_gone_can_be_removed(broll, models, tiny_models, tmp_path):
    own = shutil.copytree(tiny_models / "tiny", tmp_path / "elsewhere")
    assert broll("models", "add", "mine", own).status == 0
    shutil.rmtree(own)
    assert broll("models", "add", "mine", tiny_models / "tiny").status == 2
    assert broll("models", "remove", "mine", "--yes").status == 0
    assert list(models.iterdir()) == []


def test_links_inside_are_not_followed(broll, models, tiny_models, tmp_path):
    shutil.copytree(tiny_models / "tiny", models / "own")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (models / "own" / "way-out").symlink_to(outside, target_is_directory=True)
    assert broll("models", "remove", "own", "--yes").status == 0
    assert (outside / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", ["..", "/", "own/transformer", "nano", "none", "loras"])
def test_only_entries_of_the_folder_are_removed(name, broll, models, tiny_models):
    shutil.copytree(tiny_models / "tiny", models / "own")
    (models / "loras").mkdir()
    ran = broll("models", "remove", name, "--yes")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert sorted(path.name for path in models.iterdir()) == ["loras", "own"]


def test_a_download_that_was_begun_can_be_removed(broll, hub, models):
    hub.corrupt.add("vae/diffusion_pytorch_model.safetensors")
    broll("models", "pull", "some/Tiny")
    assert (models / ".Tiny.part").exists()
    assert broll("models", "remove", "Tiny", "--yes").status == 0
    assert list(models.iterdir()) == []


# --- showing ----------------------------------------------------------------------------------------------


def test_show_says_what_could_be_had_of_a_model_that_is_not_here(broll):
    told = broll("models", "show", "Wan2.1-T2V-14B")
    assert told.status == 0
    for words in ("not on this machine", "Wan-AI/Wan2.1-T2V-14B", "Apache-2.0", "--quant q4", "GB free here"):
        assert words in told.out
    assert "broll models pull wan2.1-t2v-14b" in told.out
    row = broll("models", "show", "wan2.1-t2v-14b", "--json").json
    assert (row["here"], row["name"], row["free_bytes"] > 0) == (False, "wan2.1-t2v-14b", True)


def test_show_says_parts_forms_bytes_and_whether_it_fits(broll, tiny_models):
    about = broll("models", "show", "tiny", "--json").json
    assert {part["part"] for part in about["parts"]} == {"transformer", "vae", "text_encoder"}
    assert all(set(part["bytes"]) == {"F32"} for part in about["parts"])
    assert about["fits"] is True
    assert about["sources"] == []
    text = broll("models", "show", "tiny").out
    assert "not downloaded by broll" in text
    assert "weights take" in text


def test_list_says_what_can_be_had_and_how(broll, models):
    table = {row["name"]: row for row in broll("models", "list", "--json").json["models"]}
    row = table["wan2.1-t2v-14b"]
    assert (row["license"], row["get"], row["here"]) == (
        "Apache-2.0",
        "broll models pull wan2.1-t2v-14b",
        False,
    )
    assert set(row["quants"]) == {"fp8", "q8", "q4"}
    assert "broll models pull wan2.1-t2v-14b  (--quant: fp8" in broll("models", "list").out
