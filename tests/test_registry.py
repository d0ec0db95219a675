"""The registry names every published model, and what of a repository is needed."""

import re

import pytest

from broll import registry
from broll.engine.config import PUBLISHED
from broll.engine.sources import CLIP_FILE, T5_FILE, VAE_FILE

KNOWN = registry.read()
NEEDED = {
    "original": [
        "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-00001-of-00006.safetensors",
        "diffusion_pytorch_model.safetensors.index.json", T5_FILE, VAE_FILE, CLIP_FILE,
        "google/umt5-xxl/tokenizer.json", "google/umt5-xxl/spiece.model",
    ],
    "diffusers": [
        "model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/model-00001-of-00005.safetensors",
        "tokenizer/tokenizer.json", "image_encoder/model.safetensors", "scheduler/scheduler_config.json",
    ],
}  # fmt: skip
NOT_NEEDED = [
    "README.md", "LICENSE.txt", ".gitattributes", "assets/logo.png", "examples/i2v_input.JPG",
    "xlm-roberta-large/tokenizer.json", "transformer/diffusion_pytorch_model.fp16.safetensors",
    "google/umt5-xxl/more/x", "some/config.json",
]  # fmt: skip


def test_it_knows_the_published_models_and_no_others():
    assert list(KNOWN.models) == list(PUBLISHED)


@pytest.mark.parametrize("layout", registry.LAYOUTS)
def test_only_what_is_needed_is_taken(layout):
    patterns = KNOWN.layouts[layout]
    assert [path for path in NEEDED[layout] if not registry.matches(path, patterns)] == []
    assert [path for path in NOT_NEEDED if registry.matches(path, patterns)] == []


@pytest.mark.parametrize("name", KNOWN.models)
def test_every_model_has_both_layouts_a_licence_and_a_size(name):
    known = KNOWN.models[name]
    assert set(known.layouts) == set(registry.LAYOUTS)
    assert known.license == "Apache-2.0"
    for files in known.layouts.values():
        assert re.fullmatch(r"Wan-AI/Wan2\.1-[\w.-]+", files.repository)
        assert re.fullmatch(r"[0-9a-f]{40}|main", files.revision)
    # fp32 weights, umT5 in bf16 (11.4), the autoencoder (0.5); CLIP (4.8) where there are pictures
    pictures = PUBLISHED[name].image is not None
    expected = PUBLISHED[name].parameters * 4 / 1e9 + 11.36 + 0.53 + (4.77 if pictures else 0)
    if name == "wan2.1-vace-1.3b":  # its hint blocks are bf16
        expected -= (PUBLISHED[name].parameters - PUBLISHED["wan2.1-t2v-1.3b"].parameters) * 2 / 1e9
    assert known.layouts["original"].gb == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("name", KNOWN.models)
def test_a_quantized_variant_has_all_parts_and_is_smaller(name):
    known = KNOWN.models[name]
    for parts in known.quants.values():
        pictures = {"image_encoder"} if PUBLISHED[name].image else set()
        assert set(parts) == {"transformer", "text_encoder", registry.SMALL} | pictures
        assert all(files.gb > 0 for files in parts.values())
        assert parts[registry.SMALL].repository == known.layouts["original"].repository
        assert registry.total_gb(parts) < known.layouts["original"].gb


def test_smaller_kinds_are_smaller():
    for known in KNOWN.models.values():
        sizes = [known.quants[quant]["transformer"].gb for quant in ("q8", "q4") if quant in known.quants]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    "text", ["wan2.1-t2v-1.3b", "Wan2.1-T2V-1.3B", "wan2.1-t2v-1.3b-diffusers", "Wan-AI/Wan2.1-T2V-1.3B"]
)
def test_a_model_is_known_by_its_name_and_by_its_repositories(text):
    assert KNOWN.named(text) is KNOWN.models["wan2.1-t2v-1.3b"]
    assert KNOWN.named("other/thing") is None
