"""Published parameter counts, and the names of both layouts, strictly, in both directions."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from broll.engine import weights
from broll.engine.config import PUBLISHED, ImageConfig, TextConfig, VAEConfig
from broll.engine.image_encoder import clip_vision
from broll.engine.text_encoder import umt5
from broll.engine.transformer import Transformer
from broll.engine.vae import VAE
from tests.parity.official_names import clip_names, t5_names, vae_names


def on_meta(build):
    with torch.device("meta"):
        return build()


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    model = on_meta(lambda: Transformer(PUBLISHED[name].transformer))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name].parameters


def test_parameter_counts_of_the_encoders_are_the_published_ones():
    assert sum(p.numel() for p in on_meta(lambda: VAE(VAEConfig())).parameters()) == 126_892_531
    assert sum(p.numel() for p in on_meta(lambda: umt5(TextConfig())).parameters()) == 5_680_910_336


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformer_names_map_to_diffusers_and_back(name):
    config = dataclasses.replace(PUBLISHED[name].transformer, num_layers=2)
    ours = shapes(on_meta(lambda: Transformer(config)))
    theirs = shapes(
        on_meta(
            lambda: WanTransformer3DModel(
                num_attention_heads=config.num_heads, attention_head_dim=128, in_channels=config.in_dim,
                out_channels=16, text_dim=4096, freq_dim=256, ffn_dim=config.ffn_dim, num_layers=2,
                image_dim=config.image_dim, added_kv_proj_dim=config.image_dim and config.dim,
                pos_embed_seq_len=config.image_positions,
            )
        )
    )  # fmt: skip
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
    mapped = {weights.rename(n, weights.CLIP_FROM_OFFICIAL) for n in weights.split_qkv(tensors)}
    assert mapped == set(on_meta(lambda: clip_vision(ImageConfig())).state_dict())
