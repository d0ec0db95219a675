"""The autoencoder as a stream: chunks, causality, memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from broll.engine.config import VAEConfig
from broll.engine.vae import VAE, channels_to_space, overlooked, space_to_channels

TINY = VAEConfig(base_dim=4, num_res_blocks=1, patch_size=2)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return VAE(TINY).eval().requires_grad_(False)


def test_decoding_in_chunks_equals_decoding_at_once(vae):
    z = torch.randn(1, 16, 6, 3, 4)
    at_once = vae.pixels(z, {})
    memory = {}
    in_chunks = torch.cat([vae.pixels(chunk, memory) for chunk in z.split([1, 2, 3], dim=2)], dim=2)
    torch.testing.assert_close(in_chunks, at_once, atol=1e-5, rtol=1e-5)


def test_encoding_in_chunks_equals_encoding_at_once(vae):
    video = torch.rand(1, 3, 17, 32, 48) * 2 - 1
    at_once, _ = vae.moments(video, {})
    memory = {}
    chunks = video.split([1, 4, 12], dim=2)
    in_chunks = torch.cat([vae.moments(chunk, memory)[0] for chunk in chunks], dim=2)
    torch.testing.assert_close(in_chunks, at_once, atol=1e-5, rtol=1e-5)


def test_the_first_latents_of_a_clip_are_those_of_its_beginning(vae):
    """Causal, to the bit: what comes later changes nothing before it."""
    video = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    assert torch.equal(vae.encode(video)[:, :, :3], vae.encode(video[:, :, :9]))
    z = torch.randn(1, 16, 5, 2, 2)
    assert torch.equal(vae.decode(z)[:, :, :9], vae.decode(z[:, :, :3]))


def test_frames_leave_latent_by_latent(vae):
    sizes = [frames.shape[2] for frames in vae.decode_stream(torch.randn(1, 16, 4, 2, 2))]
    assert sizes == [1, 4, 4, 4]


def test_two_clips_do_not_share_memory(vae):
    z = torch.randn(2, 1, 16, 3, 2, 2)
    alone = vae.decode(z[1])
    first, second = vae.decode_stream(z[0]), vae.decode_stream(z[1])
    woven = [next(s) for _ in range(3) for s in (first, second)][1::2]
    assert torch.equal(torch.cat(woven, dim=2), alone)


def test_folding_pixels_into_channels_is_undone():
    x = torch.randn(2, 3, 4, 8, 6)
    assert torch.equal(channels_to_space(space_to_channels(x, 2), 2), x)
    assert space_to_channels(x, 2).shape == (2, 12, 4, 4, 3)


PEAK = """
import sys, torch
from broll.engine.config import VAEConfig
from broll.engine.vae import VAE
torch.manual_seed(0)
torch.set_num_threads(1)
with torch.inference_mode():
    vae = VAE(VAEConfig(base_dim=4, num_res_blocks=1, patch_size=2)).eval()
    for latents in map(int, sys.argv[1:]):
        z = torch.randn(1, 16, latents, 12, 20)  # 192 x 320 pixels
        frames = sum(f.shape[2] for f in vae.decode_stream(z))
        status = open("/proc/self/status").read()  # ru_maxrss would count what the process was before exec
        print(frames, next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_of_decoding_does_not_grow_with_the_clip():
    # glibc gives freed pieces of this size back at once; what it keeps otherwise differs from run to run
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", PEAK, "5", "16"], capture_output=True, text=True, check=True, env=env
    )
    short, long = (tuple(map(int, line.split())) for line in run.stdout.splitlines())
    assert (short[0], long[0]) == (17, 61)
    assert long[1] < 1.05 * short[1]


def test_small_chunks_by_onednn_are_what_torch_makes_of_them(vae, monkeypatch):
    """The slow twin: torch's own choice of a convolution."""
    z, taken = torch.randn(1, vae.config.z_dim, 3, 4, 4), []
    monkeypatch.setattr("broll.engine.vae.overlooked", lambda x: taken.append(overlooked(x)) or taken[-1])
    with torch.inference_mode():
        ours = vae.decode(z)
        assert any(taken) == torch.backends.mkldnn.is_available()
        monkeypatch.setattr("broll.engine.vae.SMALL", 0)
        taken.clear()
        torch.testing.assert_close(ours, vae.decode(z), rtol=1e-4, atol=1e-5)
    assert not any(taken)
