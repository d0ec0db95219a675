"""The autoencoder against diffusers', whole clips and chunk by chunk."""

import pytest
import torch

from benchmarks import vae as vae_benchmark
from tests.parity.judge import LIMIT, NANO_VAE, PATCHED_VAE, TINY_VAE, autoencoders, relative

CONFIGS = {"wan": TINY_VAE, "patched": PATCHED_VAE, "nano": NANO_VAE}


@pytest.mark.parametrize("name", CONFIGS)
def test_encode_equals_diffusers(name):
    ours, theirs = autoencoders(CONFIGS[name])
    video = torch.rand(1, 3, 13, 32, 64) * 2 - 1
    mean, std = ours._statistics()
    with torch.no_grad():
        expected = (theirs.encode(video).latent_dist.mean - mean) / std
        assert relative(ours.encode(video), expected) < LIMIT


@pytest.mark.parametrize("name", CONFIGS)
def test_decode_equals_diffusers(name):
    ours, theirs = autoencoders(CONFIGS[name])
    z = torch.randn(1, CONFIGS[name].z_dim, 5, 4, 6)
    mean, std = ours._statistics()
    with torch.no_grad():
        assert relative(ours.decode(z), theirs.decode(z * std + mean).sample) < LIMIT


@pytest.mark.parametrize("way", ["decode", "encode"])
def test_a_clip_takes_four_fifths_of_diffusers_memory_at_most(way):
    """Of 9 frames, weights included, counted on the meta device; `python -m benchmarks.vae --only memory` measures."""
    ours, theirs = (
        vae_benchmark.counted(way, side, 832, 480, torch.device("cpu"), 3) for side in vae_benchmark.SIDES
    )
    assert ours < 0.8 * theirs
