"""The outside judges: diffusers' and transformers' modules, given the same random numbers as ours."""

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
from torch import Tensor, nn

from broll.engine import vace, weights
from broll.engine.config import TransformerConfig, VAEConfig
from broll.engine.transformer import Transformer
from broll.engine.vae import VAE

LIMIT = 2e-5  # relative error allowed in fp32

TINY = {"dim": 96, "ffn_dim": 160, "num_heads": 4, "num_layers": 3, "text_dim": 32}
TASKS = {
    "t2v": TransformerConfig(**TINY),
    "i2v": TransformerConfig(**TINY, in_dim=36, image_dim=40),
    "flf2v": TransformerConfig(**TINY, in_dim=36, image_dim=40, image_positions=34),
    "vace": TransformerConfig(**TINY, vace_layers=(0, 2), vace_in_dim=96),
}
TINY_VAE = VAEConfig(base_dim=8, decoder_base_dim=12)
PATCHED_VAE = VAEConfig(base_dim=8, decoder_base_dim=12, num_res_blocks=1, patch_size=2)


NANO_VAE = VAEConfig(
    base_dim=8, decoder_base_dim=12, z_dim=6, dim_mult=(1, 2, 2), num_res_blocks=1, patch_size=4,
    temporal_downsample=(True, True), latents_mean=(0.1,) * 6, latents_std=(1.5,) * 6,
)  # fmt: skip


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Relative error in the 2-norm; NaN anywhere is a failure, not a zero."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def shake(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter, also those that start at one or zero, a random part."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = 0.1 if parameter.dim() < 2 else 0.7 / parameter[0].numel() ** 0.5
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def judge_of(config: TransformerConfig) -> WanTransformer3DModel | WanVACETransformer3DModel:
    """diffusers' class with these numbers."""
    hinted: dict[str, Any] = {"vace_layers": list(config.vace_layers), "vace_in_channels": config.vace_in_dim}
    kind = partial(WanVACETransformer3DModel, **hinted) if config.vace_layers else WanTransformer3DModel
    return kind(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        image_dim=config.image_dim,
        added_kv_proj_dim=None if config.image_dim is None else config.dim,
        pos_embed_seq_len=config.image_positions,
    )


def transformers(
    config: TransformerConfig,
) -> tuple[Transformer, WanTransformer3DModel | WanVACETransformer3DModel]:
    with torch.random.fork_rng(devices=[]):  # the same weights, whatever ran before
        torch.manual_seed(0)
        ours = vace.transformer(config).eval().requires_grad_(False)
    shake(ours)
    theirs = judge_of(config).eval()
    names = weights.TRANSFORMER_TO_DIFFUSERS
    theirs.load_state_dict({weights.rename(n, names): t for n, t in ours.state_dict().items()}, strict=True)
    return ours, theirs


def autoencoders(config: VAEConfig) -> tuple[VAE, AutoencoderKLWan]:
    ours = VAE(config).eval().requires_grad_(False)
    shake(ours)
    theirs = AutoencoderKLWan(
        base_dim=config.base_dim,
        decoder_base_dim=config.decoder_base_dim,
        num_res_blocks=config.num_res_blocks,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        temperal_downsample=list(config.temporal_downsample),
        latents_mean=list(config.latents_mean),
        latents_std=list(config.latents_std),
        patch_size=None if config.patch_size == 1 else config.patch_size,
        in_channels=3 * config.patch_size**2,
        out_channels=3 * config.patch_size**2,
        scale_factor_spatial=config.spatial_stride,
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs
