"""Decoding in tiles: the same pixels, in less memory, with no more around each tile than the layers can see."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from broll.engine import counts, footprint, tiles
from broll.engine.config import VAEConfig
from broll.engine.load import on_meta
from broll.engine.shapes import Grid
from broll.engine.vae import VAE
from tests.cases import long
from tests.engine.test_counts import counted

TINY = VAEConfig(base_dim=4, num_res_blocks=1, patch_size=2)
SHALLOW = VAEConfig(base_dim=4, num_res_blocks=1, dim_mult=(1, 2, 2), temporal_downsample=(True, True))
CONFIGS = {"patched": TINY, "shallow": SHALLOW, "deep": VAEConfig(base_dim=4)}


def made(config):
    torch.manual_seed(0)
    return VAE(config).eval().requires_grad_(False)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("count", [6, *long(2)])
def test_tiles_put_together_are_the_picture(name, count):
    vae = made(CONFIGS[name])
    z = torch.randn(1, 16, 3, 5, 18)  # tiles in the middle, too, and odd sizes
    with torch.inference_mode():
        whole = vae.decode(z)
        tiled = tiles.use(vae, count).decode(z)
        torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=0)  # random weights make much of a rounding
        exact = tiles.use(vae.double(), 1).decode(z)
        assert torch.equal(tiles.use(vae, count).decode(z), exact)  # in fp64, given back in fp32


def test_two_clips_at_once_are_tiled_each_like_itself():
    vae = tiles.use(made(SHALLOW), 2)
    z = torch.randn(2, 16, 2, 4, 6)
    with torch.inference_mode():
        torch.testing.assert_close(vae.decode(z)[1:], vae.decode(z[1:]), atol=2e-5, rtol=0)


def test_before_the_first_frame_it_says_how_far_it_is():
    vae = tiles.use(made(SHALLOW), 4)
    sizes = [chunk.shape[2] for chunk in vae.decode_stream(torch.randn(1, 16, 3, 4, 4))]
    assert vae.passes == 4
    assert sizes == [0] * 4 * 3 + [1, 4, 4]
    assert tiles.use(vae, 1).passes == 0
    assert [chunk.shape[2] for chunk in vae.decode_stream(torch.randn(1, 16, 2, 4, 4))] == [1, 4]


def test_a_latent_of_few_places_gets_few_tiles():
    vae = tiles.use(made(SHALLOW), 16)
    list(vae.decode_stream(torch.randn(1, 16, 1, 2, 3)))
    assert vae.passes == 6


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tile_is_given_what_its_pixels_see_and_no_more(name):
    """Seen by the gradient: of one row of pixels, over the rows of what the middle gives."""
    vae = made(CONFIGS[name])
    far, size = tiles.Reach.of(vae.decoder), 40
    tile = tiles.Span(19, 21)
    spans = tiles.regions(tile, size, far)
    middle = torch.randn(1, vae.decoder.conv_in.out_channels, 1, size, 3, requires_grad=True)
    torch.sum(vae.decoder.rise(middle, {})[..., slice(*spans.own), :].square()).backward()
    seen = middle.grad.abs().amax((0, 1, 2, 4)).nonzero().flatten().tolist()
    given = spans.given[0]
    assert (seen[0], seen[-1]) == (given.begin, given.end - 1)
    assert len(spans.given) == len(spans.kept) == len(vae.decoder.up_blocks)


def test_the_published_decoder_sees_thirteen_latents_to_each_side():
    with torch.device("meta"):
        far = tiles.Reach.of(VAE(VAEConfig()).decoder)
    spans = tiles.regions(tiles.Span(40, 50), 90, far)
    assert spans.given == ((27, 63), (68, 112), (150, 210), (313, 407))
    assert tiles.regions(tiles.Span(0, 45), 90, far).given[0] == (0, 58)


def test_an_axis_is_cut_into_equal_parts():
    assert tiles.cut(10, 3) == [(0, 3), (3, 7), (7, 10)]
    far = tiles.Reach(((6, 1), (6, 1), (6, 1), (6, None)), 1)
    parts = tiles.tiles(90, 160, 4, far)
    assert sorted((rows.own, columns.own) for rows, columns in parts) == [
        ((r, r + 360), (c, c + 640)) for r in (0, 360) for c in (0, 640)
    ]


def test_what_is_computed_twice_is_counted():
    config, latent = SHALLOW, Grid(3, 6, 16)
    vae = tiles.use(on_meta(lambda: VAE(config)), 4)
    z = torch.empty(1, 16, 3, 6, 16, device="meta")
    ours = counts.decode(config, latent, tiles.areas(config, latent, 4)).total
    assert ours == pytest.approx(counted(lambda: vae.decode(z)), rel=0.001)
    assert ours > counts.decode(config, latent).total


def test_two_tiles_of_a_720p_clip_cost_four_percent():
    config, latent = VAEConfig(), Grid(21, 90, 160)
    whole = counts.decode(config, latent).total
    more = [counts.decode(config, latent, tiles.areas(config, latent, n)).total / whole for n in (2, 4, 8)]
    assert more == pytest.approx([1.04, 1.10, 1.19], abs=0.015)


PEAK = """
import sys, torch
from broll.engine import tiles
from broll.engine.config import VAEConfig
from broll.engine.vae import VAE
from pathlib import Path

def peak():
    return int(next(l.split()[1] for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)) * 1024

torch.manual_seed(0)
torch.set_num_threads(1)
vae = VAE(VAEConfig(base_dim=16, num_res_blocks=1)).eval()
with torch.inference_mode():
    list(vae.decode_stream(torch.zeros(1, 16, 1, 2, 2)))
    before = peak()
    for _ in tiles.use(vae, int(sys.argv[1])).decode_stream(torch.randn(1, 16, 4, 32, 48)):
        pass
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_tiles_take_less_memory_and_as_much_as_was_planned():
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    config = VAEConfig(base_dim=16, num_res_blocks=1)
    real = {}
    for count in (1, 2, 4):
        run = subprocess.run(
            [sys.executable, "-c", PEAK, str(count)], capture_output=True, text=True, check=True, env=env
        )
        real[count] = int(run.stdout)
        planned = footprint.decode(config, 32, 48, 4, torch.float32, "cpu", count)
        assert planned == pytest.approx(real[count], rel=0.15)
    assert real[2] < 0.7 * real[1]
    assert real[4] < 0.45 * real[1]


def test_what_is_planned_grows_with_the_clip_only_by_what_is_kept_of_it():
    c = replace(TINY, base_dim=8)
    some, more = (footprint.decode(c, 16, 16, n, torch.float32, "cpu", 2) for n in (3, 9))
    a_frame, a_middle = 3 * 256**2 * 4, 32 * 16**2 * 4
    assert more - some == 6 * (4 * a_frame + a_middle)
    on_a_gpu = [footprint.decode(c, 16, 16, n, torch.float32, "cuda", 2) for n in (3, 9)]
    assert on_a_gpu[1] - on_a_gpu[0] == 6 * a_middle  # there, frames wait in main memory


@pytest.mark.gpu
def test_on_a_gpu_frames_wait_in_main_memory_and_are_the_same():
    vae = made(TINY).to("cuda")
    z = torch.randn(1, 16, 3, 6, 16, device="cuda")
    with torch.inference_mode():
        whole = vae.decode(z)
        tiled = tiles.use(vae, 4).decode(z)
    assert tiled.device.type == "cpu"
    torch.testing.assert_close(tiled, whole.cpu(), atol=1e-4, rtol=0)  # TF32 is off in neither or both
