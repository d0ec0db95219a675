"""The autoencoder as a stream: chunks, causality, memory."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from broll.engine.config import VAEConfig
from broll.engine.load import Precision, on_device
from broll.engine.vae import VAE, channels_last, channels_to_space, gathered, space_to_channels
from broll.engine.vae_layers import overlooked

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


@pytest.mark.parametrize("config", [TINY, VAEConfig(base_dim=4)], ids=["folded", "published"])
def test_frame_by_frame_is_what_all_frames_of_a_chunk_are_at_once(config):
    """The slow twin: with gradients every layer sees a whole chunk."""
    model, seen = VAE(config).eval().requires_grad_(False), []
    full = (model.encoder.conv_in, model.decoder.conv_out)
    for layer in full:
        layer.register_forward_pre_hook(lambda layer, given: seen.append(given[0].shape[2]))
    z, video = torch.randn(1, 16, 3, 3, 4), torch.rand(1, 3, 9, 32, 48) * 2 - 1
    at_once = model.decode(z), model.encode(video)
    assert sorted(seen) == [1, 1, 4, 4, 4, 4]
    seen.clear()
    with torch.no_grad():
        by_frame = model.decode(z), model.encode(video)
    assert seen == [1] * 18
    for ours, twin in zip(by_frame, at_once, strict=True):
        torch.testing.assert_close(ours, twin, atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("config", [TINY, VAEConfig(base_dim=4)], ids=["patched", "plain"])
def test_channels_last_is_the_same_numbers_in_another_order(config):
    plain = VAE(config).eval().requires_grad_(False)
    last = channels_last(copy.deepcopy(plain))
    assert last.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert last.decoder.mid_block.attentions[0].to_qkv.weight.is_contiguous(memory_format=torch.channels_last)
    z, video = torch.randn(1, 16, 3, 4, 6), torch.rand(1, 3, 9, 64, 32) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(last.decode(z), plain.decode(z), atol=5e-5, rtol=0)
        torch.testing.assert_close(last.encode(video), plain.encode(video), atol=5e-5, rtol=0)


def test_channels_are_last_on_a_gpu_only(vae):
    moved = on_device(copy.deepcopy(vae), torch.device("cpu"))
    assert moved.decoder.conv_in.weight.is_contiguous()


@pytest.mark.gpu
def test_on_a_gpu_channels_are_last_and_frames_the_same(vae):
    z = torch.randn(1, 16, 3, 4, 6)
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        moved = on_device(copy.deepcopy(vae), torch.device("cuda"))
        torch.testing.assert_close(moved.decode(z).cpu(), vae.decode(z), atol=1e-4, rtol=0)
    assert moved.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_decoder_may_have_a_precision_of_its_own(vae):
    how, low = Precision(decoder=torch.bfloat16), copy.deepcopy(vae)
    for name, parameter in low.named_parameters():
        parameter.data = parameter.data.to(how.of_vae(name))
    assert (low.dtype, low.decoder_dtype) == (torch.float32, torch.bfloat16)
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.inference_mode():
        z = vae.encode(video)
        assert torch.equal(low.encode(video), z)
        rounded, exact = low.decode(z), vae.decode(z)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1


def test_chunks_are_gathered_and_none_is_left_behind():
    chunks = [torch.full((1, 2, length, 3), float(i)) for i, length in enumerate((1, 0, 4, 4))]
    assert torch.equal(gathered(iter(chunks), 9), torch.cat(chunks, dim=2))


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


AT_ONCE = """
import sys, torch
from broll.engine.config import VAEConfig
from broll.engine.vae import VAE
torch.manual_seed(0)
torch.set_num_threads(1)
with torch.inference_mode():
    vae = VAE(VAEConfig(base_dim=4, num_res_blocks=1, patch_size=2)).eval()
    z = torch.randn(1, 16, 26, 16, 20)  # 101 frames of 256 x 320: 99 MB
    for decode in (lambda: [None for _ in vae.decode_stream(z[:, :, :4])], lambda: vae.decode(z)):
        decode()
        status = open("/proc/self/status").read()
        print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_whole_clip_is_held_once_and_not_twice():
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, check=True, env=env)
    stream, whole = (int(line) * 1024 for line in run.stdout.splitlines())
    assert whole - stream < 1.2 * 101 * 256 * 320 * 12


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
    monkeypatch.setattr(
        "broll.engine.vae_layers.overlooked", lambda x: taken.append(overlooked(x)) or taken[-1]
    )
    with torch.inference_mode():
        ours = vae.decode(z)
        assert any(taken) == torch.backends.mkldnn.is_available()
        monkeypatch.setattr("broll.engine.vae_layers.SMALL", 0)
        taken.clear()
        torch.testing.assert_close(ours, vae.decode(z), rtol=1e-4, atol=1e-5)
    assert not any(taken)
