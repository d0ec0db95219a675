"""What the transformer is given: positions, masks, pictures, text."""

import math

import pytest
import torch
from PIL import Image

from broll.engine import conditioning
from broll.engine.config import VAEConfig
from broll.engine.rope import axis_pairs, rotary, rotate
from broll.engine.shapes import Grid
from broll.engine.transformer import time_features
from broll.engine.vae import VAE


def test_a_head_of_128_splits_into_44_42_42():
    assert axis_pairs(128) == (22, 21, 21)


def test_rotated_products_depend_on_distance_only():
    turns = rotary(Grid(6, 5, 4), 24)
    q, k = torch.randn(2, 1, 1, 1, 24)
    all_q, all_k = (rotate(x.expand(1, 1, 120, 24), turns)[0, 0].reshape(6, 5, 4, 24) for x in (q, k))

    def product(a, b):
        return float(all_q[a] @ all_k[b])

    assert product((1, 1, 1), (3, 2, 1)) == pytest.approx(product((2, 3, 2), (4, 4, 2)), abs=1e-4)
    assert product((1, 1, 1), (3, 2, 1)) != pytest.approx(product((1, 1, 1), (3, 3, 1)), abs=1e-4)


def test_rotation_keeps_lengths():
    x = torch.randn(1, 2, 60, 24)
    torch.testing.assert_close(rotate(x, rotary(Grid(3, 5, 4), 24)).norm(dim=-1), x.norm(dim=-1))


def test_time_is_cosines_then_sines():
    features = time_features(torch.tensor([3.0]), 8)
    assert features[0, 0] == pytest.approx(math.cos(3))
    assert features[0, 4] == pytest.approx(math.sin(3))
    assert features[0, 5] == pytest.approx(math.sin(3 * 10000 ** (-1 / 4)))


def test_the_mask_marks_the_given_frames_folded_by_four():
    mask = conditioning.given_mask(9, 1, 1, last=False)[0, :, :, 0, 0]
    assert mask.t().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    mask = conditioning.given_mask(9, 1, 1, last=True)[0, :, :, 0, 0]
    assert mask.t().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_condition_latents_are_those_of_the_clip_between_the_pictures():
    torch.manual_seed(0)
    vae = VAE(VAEConfig(base_dim=4, num_res_blocks=1)).eval().requires_grad_(False)
    first, last = torch.rand(2, 1, 3, 16, 24) * 2 - 1
    clip = torch.zeros(1, 3, 9, 16, 24)
    clip[:, :, 0], clip[:, :, -1] = first, last
    torch.testing.assert_close(conditioning.image_latents(vae, first, last, 9), vae.encode(clip))
    y = conditioning.image_channels(vae, first, last, 9)
    assert y.shape == (1, 20, 3, 2, 3)


def test_covering_cuts_the_longer_side_in_the_middle():
    image = Image.new("RGB", (300, 100), "black")
    image.paste("red", (100, 0, 200, 100))
    cut = conditioning.cover(image, 50, 50)
    assert cut.size == (100, 100)
    assert cut.getcolors() == [(10_000, (255, 0, 0))]


def test_fitting_keeps_flat_colours_both_ways():
    for how in ("official", "diffusers"):
        fitted = conditioning.fit(Image.new("RGB", (37, 91), (255, 0, 51)), 64, 32, how)
        assert fitted.shape == (1, 3, 32, 64)
        expected = torch.tensor([1.0, -1.0, -0.6])[:, None, None].expand(3, 32, 64)
        torch.testing.assert_close(fitted[0], expected, atol=1e-5, rtol=0)


def test_a_prompt_that_fills_all_tokens_has_no_padding_to_collapse():
    features = torch.randn(1, 512, 8)
    assert conditioning.collapsed(features, 512).bias is None
    assert torch.equal(conditioning.collapsed(features, 512).features, features)
