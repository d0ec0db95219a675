"""Features of prompts that were kept: the bits that would be computed, or none."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import broll
from broll import catalog, features, plan, wiring
from broll.engine import pipeline
from broll.engine.text_encoder import KeptText, RememberedText
from broll.settings import Settings
from broll.spec import parse
from tests import checkpoints

PROMPT = "a lake at sunset"


@pytest.fixture
def settings(place):
    return Settings()


def loaded(settings, name="tiny", kept=None, **options):
    model = catalog.find(settings, name)
    return wiring.load(model, wiring.describe(model), kept=kept or features.shelf(settings), **options)


def files(settings):
    return sorted((settings.data / "prompts").glob("*"))


def said(parts, prompt=PROMPT):
    with torch.inference_mode():
        return parts.text(prompt)


class Counted:
    """A shelf, and how often it had what it was asked for."""

    def __init__(self, shelf):
        self.shelf, self.found, self.missed = shelf, 0, 0

    def find(self, name):
        features = self.shelf.find(name)
        self.found += features is not None
        self.missed += features is None
        return features

    def keep(self, name, features):
        self.shelf.keep(name, features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_has_the_bits_that_were_computed(settings, dtype):
    shelf = features.shelf(settings)
    computed = torch.randn(1, 7, 16).to(dtype).float()
    shelf.keep("one", computed)
    found = shelf.find("one")
    assert found.dtype == torch.float32
    assert torch.equal(found, computed)
    assert shelf.find("another") is None
    (path,) = files(settings)
    assert path.stat().st_size < 7 * 16 * dtype.itemsize + 300  # bf16 takes half


def test_a_loaded_encoder_computes_a_prompt_once_in_all_processes(settings):
    model = catalog.find(settings, "tiny")
    plain = said(wiring.load(model, wiring.describe(model)))
    counted = Counted(features.shelf(settings))
    first, second = loaded(settings, kept=counted), loaded(settings, kept=counted)
    assert isinstance(first.text, KeptText)
    assert torch.equal(said(first), plain)
    assert torch.equal(said(second), plain)
    assert (counted.missed, counted.found) == (1, 1)
    assert torch.equal(said(second, "  a lake\nat  sunset "), plain)  # the same tokens
    assert counted.found == 2


def test_the_encoder_is_not_read_where_every_prompt_is_kept(settings):
    prompts = (PROMPT, "blurred")
    first = loaded(settings, prompts=prompts)
    assert isinstance(first.text, KeptText)
    for prompt in prompts:
        said(first, prompt)
    second = loaded(settings, prompts=prompts)
    assert isinstance(second.text, RememberedText)
    assert all(torch.equal(said(first, prompt), said(second, prompt)) for prompt in prompts)
    assert isinstance(loaded(settings, prompts=(PROMPT, "never heard")).text, KeptText)
    assert isinstance(loaded(settings).text, KeptText)  # nobody says that these are all


def test_a_clip_is_the_same_with_what_was_kept(settings):
    model = catalog.find(settings, "tiny")
    config = wiring.describe(model)
    spec = plan.whole(parse(model="tiny", prompt=PROMPT, seed=3), config)
    plain = latents(spec, wiring.load(model, config))
    assert latents(spec, loaded(settings, prompts=plan.prompts(spec))) == plain
    again = loaded(settings, prompts=plan.prompts(spec))
    assert isinstance(again.text, RememberedText)
    assert latents(spec, again) == plain


def latents(spec, parts):
    *_, last = (e for e in pipeline.generate(spec, parts) if isinstance(e, pipeline.Step))
    return pipeline.digest(last.x)


def test_another_encoder_is_another_name(settings, tmp_path):
    said(loaded(settings))
    other = checkpoints.diffusers_folder(tmp_path / "other", "t2v")
    weights = other / "text_encoder" / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights)
    counted = Counted(features.shelf(settings))
    found = said(loaded(settings, str(other), kept=counted))
    assert (counted.found, counted.missed) == (0, 1)
    assert not torch.equal(found, said(loaded(settings)))
    assert len(files(settings)) == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # it may round otherwise
    try:
        assert features.shelf(settings).machine != counted.shelf.machine
    finally:
        torch.set_num_threads(threads)


def test_models_that_share_an_encoder_share_what_is_kept(settings):
    said(loaded(settings, "tiny"))
    counted = Counted(features.shelf(settings))
    said(loaded(settings, "tiny-i2v", kept=counted))
    assert (counted.found, counted.missed) == (1, 0)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other", "folder"])
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(settings, damage):
    plain = said(loaded(settings))
    (path,) = files(settings)
    data = path.read_bytes()
    features.shelf(settings).keep("other", torch.zeros(1, 3, 16))
    (other,) = set(files(settings)) - {path}
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    broken = {"cut": data[:-5], "empty": b"", "flipped": flipped, "other": other.read_bytes()}
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(broken[damage])
    assert torch.equal(said(loaded(settings)), plain)
    if damage != "folder":
        assert path.read_bytes() == data


def test_what_was_used_last_stays_when_it_is_full(settings):
    one = torch.randn(1, 100, 16)
    shelf = features.Shelf(settings.data / "prompts", 3 * 6_600, "here")
    for at, name in enumerate("abc"):
        shelf.keep(name, one + at)
        os.utime(shelf._path(name), ns=(at * 10**9, at * 10**9))
    assert len(files(settings)) == 3
    shelf.find("a")  # used now
    shelf.keep("d", one)
    assert [name for name in "abcd" if shelf.find(name) is not None] == ["a", "c", "d"]
    shelf.keep("large", torch.randn(1, 1000, 16))  # never fits
    assert len(files(settings)) == 3


def test_it_can_be_switched_off(settings, monkeypatch):
    monkeypatch.setenv("BROLL_PROMPT_CACHE_MB", "0")
    assert features.shelf(Settings()) is None
    model = catalog.find(settings, "tiny")
    said(wiring.load(model, wiring.describe(model), kept=features.shelf(Settings())))
    assert files(settings) == []


def test_a_place_that_cannot_be_written_is_no_error(settings):
    (settings.data / "prompts").write_text("in the way")
    assert said(loaded(settings)).shape[-1] == 16


def test_no_word_of_a_prompt_is_on_the_disk(settings, place):
    broll.clip("a zebra in a library", place / "clip.mp4", model="tiny", seed=1)
    kept = files(settings)
    assert len(kept) == 2  # and the negative prompt
    for path in kept:
        assert b"zebra" not in path.read_bytes()
        assert len(path.stem) == 64
        assert "zebra" not in path.name
