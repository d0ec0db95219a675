"""Each refusal is one clear line with a code and a status, and leaves nothing behind."""

import json
import resource
import shutil
from contextlib import contextmanager

import pytest

GOOD = ("generate", "a lake", "--model", "tiny")

# What is typed, its code, its exit status, and a word of the message.
CASES = {
    "frames not 4k+1": ((*GOOD, "--frames", 10), "unsupported_shape", 2, "9 or 13"),
    "too many frames": ((*GOOD, "--frames", 100_001), "bad_option", 2, "frames"),
    "no frames": ((*GOOD, "--frames", 0), "bad_option", 2, "frames"),
    "size not a multiple": ((*GOOD, "--size", "70x32"), "unsupported_shape", 2, "64x32"),
    "size too large": ((*GOOD, "--size", "640x640"), "unsupported_shape", 2, "too large"),
    "malformed size": ((*GOOD, "--size", "64by32"), "bad_option", 2, "WIDTHxHEIGHT"),
    "empty prompt": (("generate", "  ", "--model", "tiny"), "bad_prompt", 2, "empty"),
    "no prompt": (("generate", "--model", "tiny"), "bad_prompt", 2, "no prompt"),
    "over-long prompt": (("generate", "x" * 20_000, "--model", "tiny"), "bad_prompt", 2, "10000"),
    "prompt of too many tokens": (("generate", "x" * 600, "--model", "tiny"), "bad_prompt", 2, "512"),
    "NUL in the prompt": (("generate", "a\0b", "--model", "tiny"), "bad_prompt", 2, "NUL"),
    "lone surrogate": (("generate", "a\ud800", "--model", "tiny"), "bad_prompt", 2, "surrogate"),
    "lone surrogate in --negative": ((*GOOD, "--negative", "a\udc80"), "bad_prompt", 2, "surrogate"),
    "unknown model": (("generate", "a lake", "--model", "wan9"), "unknown_model", 2, "tiny"),
    "model with an odd name": (("generate", "a lake", "--model", "\udc80\0"), "bad_option", 2, "model"),
    "model not here": (("generate", "x", "--model", "wan2.1-t2v-1.3b"), "model_missing", 3, "broll models pull"),
    "a folder that is no model": (("generate", "x", "--model", "/"), "bad_checkpoint", 3, "no checkpoint"),
    "image model without one": (("generate", "a lake", "--model", "tiny-i2v"), "wrong_task", 2, "--image"),
    "one image": (("generate", "x", "--model", "tiny-flf2v", "--image", "IMAGE"), "wrong_task", 2, "last"),
    "image for a text model": ((*GOOD, "--image", "IMAGE"), "wrong_task", 2, "text alone"),
    "last image alone": ((*GOOD, "--last-image", "IMAGE"), "bad_option", 2, "--image"),
    "no such image": (("generate", "a lake", "--image", "none.jpg"), "bad_image", 2, "none.jpg"),
    "no image": (("generate", "a lake", "--image", "TEXT"), "bad_image", 2, "not a picture"),
    "both lengths": ((*GOOD, "--frames", 9, "--seconds", 1), "bad_option", 2, "--seconds"),
    "endless": ((*GOOD, "--seconds", "inf"), "bad_option", 2, "--seconds"),
    "NaN seconds": ((*GOOD, "--seconds", "nan"), "bad_option", 2, "--seconds"),
    "NaN guidance": ((*GOOD, "--guidance", "nan"), "bad_option", 2, "finite"),
    "no steps": ((*GOOD, "--steps", 0), "bad_option", 2, "steps"),
    "negative seed": ((*GOOD, "--seed", -1), "bad_option", 2, "seed"),
    "no number": ((*GOOD, "--steps", "many"), "bad_option", 2, "integer"),
    "unknown sampler": ((*GOOD, "--sampler", "ddim"), "bad_option", 2, "unipc"),
    "nothing left to attend": ((*GOOD, "--sparsity", 1), "bad_option", 2, "0.9"),
    "unknown kernel": ((*GOOD, "--attention", "fast"), "bad_option", 2, "auto, sdpa"),
    "kernel not possible here": ((*GOOD, "--attention", "sage"), "bad_option", 2, "sage is not possible here"),
    "no such precision": ((*GOOD, "--vae-precision", "fp8"), "bad_option", 2, "auto, float32, bfloat16"),
    "int8 and streamed": ((*GOOD, "--int8", "--offload", "on"), "bad_option", 2, "exclude each other"),
    "neither on nor off": ((*GOOD, "--compile", "yes"), "bad_option", 2, "possible are auto, on and off"),
    "unknown option": ((*GOOD, "--fast"), "bad_option", 2, "--fast"),
    "unknown format": ((*GOOD, "--format", "avi"), "bad_option", 2, "mp4"),
    "unknown ending": ((*GOOD, "--out", "x.avi"), "bad_option", 2, "mp4"),
    "no such folder": ((*GOOD, "--out", "none/x.mp4"), "output_error", 5, "none"),
    "a device": ((*GOOD, "--out", "/dev/full", "--format", "mp4"), "output_error", 5, "/dev/full"),
    "not writable": ((*GOOD, "--out", "/proc/x.mp4"), "output_error", 5, "/proc"),
    "no snapshot there": (("generate", "--resume", "none.snapshot"), "bad_snapshot", 3, "none.snapshot"),
    "no snapshot": (("generate", "--resume", "TEXT"), "bad_snapshot", 3, "not a snapshot"),
    "resume and change": (("generate", "other", "--resume", "TEXT"), "bad_option", 2, "the prompt"),
    "resume and like": (("generate", "--like", "TEXT", "--resume", "TEXT"), "bad_option", 2, "--like"),
    "like what is no clip": (("generate", "--like", "TEXT"), "bad_option", 2, "TEXT"),
    "inspect what is no clip": (("inspect", "TEXT"), "bad_option", 2, "TEXT"),
    "inspect nothing": (("inspect", "none.mp4"), "bad_option", 2, "none.mp4"),
    "ending and format": ((*GOOD, "--out", "x.gif", "--format", "mp4"), "bad_option", 2, "leave one of them out"),
    "no prompt to check": (("prompt", "check"), "bad_option", 2, "Missing argument"),
    "no weight of a LoRA": ((*GOOD, "--lora", "film:much"), "model_missing", 3, "the weight: film:0.8"),
    "no such rule": (("prompt", "explain", "NOPE-1"), "bad_option", 2, "CAM-1"),
    "half a seed": ((*GOOD, "--seed", "1.5"), "bad_option", 2, "--seed"),
    "a key that has ended": (("keys", "create", "x", "--expires-days", "-1"), "bad_option", 2, "--expires-days"),
    "offload": ((*GOOD, "--offload", "maybe"), "bad_option", 2, "possible are auto, on and off"),
    "offload on a server": ((*GOOD, "--offload", "on", "--server", "http://127.0.0.1:1"), "bad_option", 2, "offload"),
    "merged and streamed": (
        (*GOOD, "--offload", "on", "--merge-loras"), "bad_option", 2, "--offload auto or off",
    ),
    "unknown command": (("generrate",), "bad_option", 2, "generrate"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_line_and_leaves_nothing(broll, place, picture, tmp_path, name):
    words, code, status, word = CASES[name]
    text = tmp_path / "text.txt"
    text.write_text("not what you think")
    there = {"IMAGE": picture, "TEXT": text}
    ran = broll(*[there.get(w, w) for w in words], "--json")
    last = ran.err.splitlines()[-1]
    assert (ran.status, last.split(":")[0:2]) == (status, ["broll", f" error [{code}]"]), ran.err
    assert word.replace("TEXT", "text.txt") in last
    assert ran.err.count("error [") == 1
    assert ran.json["error"] == {"code": code, "message": last.split("]: ", 1)[1]}
    assert list(place.iterdir()) == []
    assert not (tmp_path / "data" / "artifacts").exists()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"foo", "cannot be read as TOML"),
        (b"\xff\xfe", "cannot be read as TOML"),
        (b"foo = 1", "there is no setting foo"),
        (b"port = 'x'", "the setting port cannot be used"),
        (b"public_url = 'here'", "the setting public_url cannot be used: 'here' is no URL"),
        (None, "which is not there"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line(broll, tmp_path, monkeypatch, written, said):
    file = tmp_path / "mine.toml"
    if written is not None:
        file.write_bytes(written)
    monkeypatch.setenv("BROLL_CONFIG", str(file))
    ran = broll("plan", "--json")
    assert (ran.status, ran.json["error"]["code"]) == (2, "bad_option")
    assert said in ran.json["error"]["message"]
    assert len(ran.err.splitlines()) == 1


def test_a_size_that_is_named_instead_is_one_that_can_be_made(broll, place):
    said = broll(*GOOD, "--size", "70x50").err.splitlines()[-1]
    assert said.endswith("such as 64x32")
    assert broll(*GOOD, "--size", "64x32", "--out", "x.mp4").status == 0


def test_a_file_that_is_there_is_overwritten_only_by_force(broll, place):
    (place / "x.mp4").write_text("precious")
    ran = broll(*GOOD, "--out", "x.mp4")
    assert (ran.status, "[output_error]" in ran.err) == (5, True)
    assert (place / "x.mp4").read_text() == "precious"
    assert broll(*GOOD, "--out", "x.mp4", "--force").status == 0
    assert (place / "x.mp4").stat().st_size > 1000


@contextmanager
def files_no_larger_than(size: int):
    """As on a full disk: writing more fails with an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("form", ["mp4", "webm", "gif"])
def test_a_full_disk_leaves_no_half_clip(broll, place, form):
    with files_no_larger_than(2000):
        ran = broll(*GOOD, "--out", f"x.{form}", "--size", "64x64", "--frames", 33)
    assert (ran.status, "[output_error]" in ran.err) == (5, True), ran.err
    assert list(place.iterdir()) == []


def cut_short(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def no_longer_weights(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 1000)


def of_another_model(folder):
    from tests import checkpoints

    checkpoints.save_file(
        checkpoints.diffusers_names("i2v"), folder / "transformer" / "diffusion_pytorch_model.safetensors"
    )


def without_a_file(folder):
    (folder / "text_encoder" / "model.safetensors").unlink()


def without_a_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


def with_a_broken_tokenizer(folder):
    (folder / "tokenizer" / "tokenizer.json").write_text("{")


def with_broken_numbers(folder):
    (folder / "transformer" / "config.json").write_text("{")


def with_numbers_missing(folder):
    (folder / "vae" / "config.json").write_text(json.dumps({"dim_mult": 3}))


@pytest.mark.parametrize(
    "harm",
    [
        cut_short, no_longer_weights, of_another_model, without_a_file, without_a_tokenizer,
        with_a_broken_tokenizer, with_broken_numbers, with_numbers_missing,
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named(broll, place, tiny_models, tmp_path, harm):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_models / "tiny", folder)
    harm(folder)
    ran = broll("generate", "a lake", "--model", folder, "--json")
    assert (ran.status, ran.json["error"]["code"]) == (3, "bad_checkpoint"), ran.err
    assert "damaged" in ran.json["error"]["message"]
    assert list(place.iterdir()) == []


def test_a_checkpoint_under_another_models_name_is_refused(broll, tiny_models, tmp_path, monkeypatch):
    shutil.copytree(tiny_models / "tiny", tmp_path / "all" / "Wan2.1-T2V-1.3B")
    monkeypatch.setenv("BROLL_MODELS", str(tmp_path / "all"))
    ran = broll("generate", "a lake", "--model", "wan2.1-t2v-1.3b")
    assert (ran.status, "[bad_checkpoint]" in ran.err, "another model" in ran.err) == (3, True, True)


def test_a_wrong_setting_is_named(broll, monkeypatch):
    monkeypatch.setenv("BROLL_THREADS", "many")
    ran = broll(*GOOD)
    assert (ran.status, "[bad_option]" in ran.err, "threads" in ran.err) == (2, True, True)


@pytest.mark.parametrize("harm", ["index", "x", "history", "spec"])
def test_a_snapshot_that_does_not_fit_is_refused(broll, place, harm):
    import dataclasses

    import torch

    from broll.engine.sampler import Step
    from broll.engine.snapshot import Snapshot, save
    from broll.spec import VideoSpec

    made = broll(*GOOD, "--json", "--out", "made.mp4").json
    x = torch.zeros(1, 16, 3, 2, 4)
    step = Step(0, 0.5, x, x, (x, x))
    spec = VideoSpec.model_validate(made["spec"])
    if harm == "index":
        step = dataclasses.replace(step, index=3)
    if harm == "x":
        step = Step(0, 0.5, wide := torch.zeros(1, 16, 3, 2, 5), wide, (wide, wide))
    if harm == "history":
        step = dataclasses.replace(step, history=())
    if harm == "spec":
        spec = VideoSpec(model="tiny", prompt="a lake")
    save(place / "s.snapshot", Snapshot(spec, step, {}))
    (place / "made.mp4").unlink()
    ran = broll("generate", "--resume", "s.snapshot", "--json")
    assert (ran.status, ran.json["error"]["code"]) == (3, "bad_snapshot"), ran.err
    assert [path.name for path in place.iterdir()] == ["s.snapshot"]
