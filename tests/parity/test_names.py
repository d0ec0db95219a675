"""Published parameter counts, and the names of both layouts, strictly, in both directions."""

from pathlib import Path

import gguf
import pytest
import torch
from diffusers import AutoencoderKLWan

from broll.engine import detect, formats, vace, weights
from broll.engine.config import PUBLISHED, ImageConfig, TextConfig, VAEConfig
from broll.engine.image_encoder import clip_vision
from broll.engine.stored import Entry
from broll.engine.text_encoder import umt5
from broll.engine.vae import VAE
from tests.cases import long
from tests.parity.judge import judge_of
from tests.parity.official_names import clip_names, t5_names, vae_names


def on_meta(build):
    with torch.device("meta"):
        return build()


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    model = on_meta(lambda: vace.transformer(PUBLISHED[name].transformer))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name].parameters


def test_parameter_counts_of_the_encoders_are_the_published_ones():
    assert sum(p.numel() for p in on_meta(lambda: VAE(VAEConfig())).parameters()) == 126_892_531
    assert sum(p.numel() for p in on_meta(lambda: umt5(TextConfig())).parameters()) == 5_680_910_336


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformer_names_map_to_diffusers_and_back(name):
    config = PUBLISHED[name].transformer
    ours = shapes(on_meta(lambda: vace.transformer(config)))
    theirs = shapes(on_meta(lambda: judge_of(config)))
    assert {weights.rename(n, weights.TRANSFORMER_TO_DIFFUSERS): s for n, s in ours.items()} == theirs
    assert {weights.rename(n, weights.TRANSFORMER_FROM_DIFFUSERS): s for n, s in theirs.items()} == ours


def test_vae_names_are_those_of_diffusers_and_map_from_the_official_ones():
    ours = shapes(on_meta(lambda: VAE(VAEConfig())))
    assert ours == shapes(on_meta(AutoencoderKLWan))
    assert sorted(map(weights.vae_from_official, vae_names())) == sorted(ours)


def test_umt5_names_map_from_the_official_ones():
    wanted = set(on_meta(lambda: umt5(TextConfig())).state_dict()) - {"encoder.embed_tokens.weight"}
    assert {weights.rename(n, weights.T5_FROM_OFFICIAL) for n in t5_names()} == wanted


def test_clip_names_map_from_the_official_ones():
    tensors = dict.fromkeys(clip_names(), torch.Tensor)
    mapped = {
        weights.rename(n, weights.CLIP_FROM_OFFICIAL) for n in weights.split_qkv(tensors, lambda t, _: t)
    }
    assert mapped == set(on_meta(lambda: clip_vision(ImageConfig())).state_dict())


# --- single files and GGUF, at true size ------------------------------------------------------------------


def opened(shapes, component):
    """As if a file with these names and shapes had been opened."""
    entries = {name: Entry(name, shape, "Q8_0", lambda: None) for name, shape in shapes.items()}
    form = formats.recognise(entries, Path("file"))
    assert form.component == component
    return formats.Opened(
        component, form.names, Path("file"), formats._own_names(entries, form, Path("file"))
    )


@pytest.mark.parametrize("prefix", ["", *long(*formats.PREFIXES)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_single_file_or_gguf_of_a_published_model_is_known_by_its_tensors(name, prefix):
    """Both carry the official names; the numbers of the model, and so its task, come out of the shapes."""
    config = PUBLISHED[name].transformer
    ours = shapes(on_meta(lambda: vace.transformer(config)))
    prefixed = {f"{prefix}{n}": Entry(f"{prefix}{n}", s, "Q8_0", lambda: None) for n, s in ours.items()}
    found = formats._without_prefix(prefixed)
    single = opened({n: e.shape for n, e in found.items()}, "transformer")
    assert single.names == "official"
    assert {n: e.shape for n, e in single.entries.items()} == ours
    assert detect.transformer(single) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_diffusers_file_of_a_published_model_is_known_by_its_tensors(name):
    config = PUBLISHED[name].transformer
    ours = shapes(on_meta(lambda: vace.transformer(config)))
    theirs = {weights.rename(n, weights.TRANSFORMER_TO_DIFFUSERS): s for n, s in ours.items()}
    single = opened(theirs, "transformer")
    assert (single.names, detect.transformer(single)) == ("diffusers", config)


def test_umt5_under_llama_cpps_names_is_known_by_its_tensors():
    """The gguf library's own table says what llama.cpp calls each of transformers' tensors."""
    ours = shapes(on_meta(lambda: umt5(TextConfig())))
    del ours["encoder.embed_tokens.weight"]
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 24)
    theirs = {table.get_name(name, try_suffixes=(".weight",)): shape for name, shape in ours.items()}
    single = opened(theirs, "text_encoder")
    assert single.names == "llama.cpp"
    assert {n: e.shape for n, e in single.entries.items()} == ours
    assert detect.text(single) == TextConfig()


def test_single_files_of_umt5_vae_and_clip_are_known_by_their_tensors():
    ours = shapes(on_meta(lambda: umt5(TextConfig())))
    assert detect.text(opened(ours, "text_encoder")) == TextConfig()
    official = {n: ours[weights.rename(n, weights.T5_FROM_OFFICIAL)] for n in t5_names()}
    assert detect.text(opened(official, "text_encoder")) == TextConfig()
    ours = shapes(on_meta(lambda: VAE(VAEConfig())))
    official = {n: ours[weights.vae_from_official(n)] for n in vae_names()}
    for names in (ours, official):
        assert detect.vae(opened(names, "vae")) == VAEConfig()
    ours = shapes(on_meta(lambda: clip_vision(ImageConfig())))
    prefixed = {f"vision_model.{name}": shape for name, shape in ours.items()}
    assert detect.image(opened(prefixed, "image_encoder")) == ImageConfig()
