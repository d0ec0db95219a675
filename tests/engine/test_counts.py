"""The counted operations against torch's own counter, at true size: on the meta device nothing is computed."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from broll.engine import attention, counts, vace
from broll.engine.config import PUBLISHED, ImageConfig, TextConfig, TransformerConfig, VAEConfig
from broll.engine.image_encoder import clip_vision
from broll.engine.load import on_meta
from broll.engine.shapes import Grid
from broll.engine.text_encoder import umt5
from broll.engine.vae import VAE
from tests.cases import long

KINDS = ("wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p", "wan2.1-flf2v-14b", "wan2.1-vace-1.3b")  # one of each
SIZES = {"480p": Grid(21, 60, 104), "720p": Grid(21, 90, 160)}
SMALL = TransformerConfig(dim=96, ffn_dim=200, num_heads=4, num_layers=2, text_dim=32)
NARROW = [VAEConfig(base_dim=8), VAEConfig(base_dim=8, num_res_blocks=1, patch_size=2)]


def counted(call):
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        call()
    return counter.get_total_flops()


def one_forward(config, latent, text):
    """One forward on the meta device, after the one that makes the prompt's keys and values; and that one."""
    model = on_meta(lambda: vace.transformer(config))
    model.use(attention.reference)  # torch does not count its fused CPU kernel
    shape = (latent.frames, latent.height, latent.width)
    image = config.image_positions or (257 if config.image_dim else 0)
    given = []

    def first():
        clip = torch.empty(1, image, config.image_dim) if image else None
        context = model.context(latent, torch.empty(1, text, config.text_dim), clip)
        if config.vace_layers:
            context = model.follow(context, torch.empty(1, config.vace_in_dim, *shape))
        given.append(context)
        again()

    def again():
        model(torch.empty(1, config.in_dim, *shape), torch.empty(1), given[0])

    whole = counted(first)
    alone = counted(again)
    return alone, whole - alone


@pytest.mark.parametrize("size", ["480p", *long("720p")])
@pytest.mark.parametrize("name", [*KINDS, *long(*(name for name in PUBLISHED if name not in KINDS))])
def test_a_forward_of_every_published_model_is_what_torch_counts(name, size):
    config, latent = PUBLISHED[name].transformer, SIZES[size]
    config = dataclasses.replace(config, num_layers=6, vace_layers=config.vace_layers[:2])  # all are alike
    tokens, image = latent.size // 4, config.image_positions or (257 if config.image_dim else 0)
    alone, _ = one_forward(config, latent, 512)
    assert counts.forward(config, tokens, 512, image).total == pytest.approx(alone, rel=0.001)


@pytest.mark.parametrize("name", ["wan2.1-t2v-14b", "wan2.1-i2v-14b-480p"])
def test_what_a_prompt_costs_once_is_what_torch_counts(name):
    config = dataclasses.replace(PUBLISHED[name].transformer, num_layers=6)
    _, once = one_forward(config, Grid(1, 4, 4), 300)
    image = 257 if config.image_dim else 0
    assert counts.prompt(config, 300, image).total == pytest.approx(once, rel=0.001)


@pytest.mark.parametrize("way", ["decode", "encode"])
@pytest.mark.parametrize("config", [*NARROW, VAEConfig()], ids=["narrow", "patched", "published"])
def test_the_autoencoder_is_what_torch_counts(config, way):
    vae, latent = on_meta(lambda: VAE(config)), Grid(5, 8, 12)
    stride = config.spatial_stride
    pixels = Grid(17, 8 * stride, 12 * stride)

    def run():
        if way == "decode":
            return vae.decode(torch.empty(1, 16, 5, 8, 12))
        return vae.encode(torch.empty(1, 3, pixels.frames, pixels.height, pixels.width))

    ours = counts.decode(config, latent) if way == "decode" else counts.encode(config, pixels)
    assert ours.total == pytest.approx(counted(run), rel=0.001)


def test_the_encoders_are_what_torch_counts():
    text, image = on_meta(lambda: umt5(TextConfig())), on_meta(lambda: clip_vision(ImageConfig()))
    ours = counts.text_encoder(TextConfig(), 512).total
    assert ours == pytest.approx(
        counted(lambda: text(input_ids=torch.zeros(1, 512, dtype=torch.long))), rel=0.02
    )
    ours = counts.image_encoder(ImageConfig()).total
    assert ours == pytest.approx(counted(lambda: image(pixel_values=torch.empty(1, 3, 224, 224))), rel=0.02)


# One forward in PFLOP, linear and attention: computed from the published numbers, 81 frames, 512 text tokens.
@pytest.mark.parametrize(
    ("name", "size", "linear", "attention", "total"),
    [
        ("wan2.1-t2v-14b", "480p", 0.783, 0.879, 1.676),
        ("wan2.1-t2v-14b", "720p", 1.807, 4.682, 6.521),
        ("wan2.1-t2v-1.3b", "480p", 0.082, 0.198, 0.283),
        ("wan2.1-t2v-1.3b", "720p", 0.189, 1.053, 1.250),
    ],
)
def test_published_operations_are_met_within_two_percent(name, size, linear, attention, total):
    c, tokens = PUBLISHED[name].transformer, SIZES[size].size // 4
    ours = counts.forward(c, tokens, 512)
    assert ours.matrix / 1e15 == pytest.approx(linear, rel=0.02)
    assert counts.forward(c, tokens, 0).attention / 1e15 == pytest.approx(attention, rel=0.02)
    assert ours.total / 1e15 == pytest.approx(total, rel=0.02)


def test_published_operations_of_the_autoencoder_are_met_within_two_percent():
    """0.274 and 0.63 PFLOP to decode 81 frames, 0.16 and 0.38 to encode them."""
    c = VAEConfig()
    assert counts.decode(c, SIZES["480p"]).convolution / 1e15 == pytest.approx(0.274, rel=0.02)
    assert counts.decode(c, SIZES["720p"]).convolution / 1e15 == pytest.approx(0.63, rel=0.02)
    assert counts.encode(c, Grid(81, 480, 832)).convolution / 1e15 == pytest.approx(0.16, rel=0.02)
    assert counts.encode(c, Grid(81, 720, 1280)).convolution / 1e15 == pytest.approx(0.38, rel=0.02)


def test_a_video_to_follow_costs_more():
    plain, followed = (PUBLISHED[f"wan2.1-{kind}-1.3b"].transformer for kind in ("t2v", "vace"))
    ratio = counts.forward(followed, 32_760, 512).total / counts.forward(plain, 32_760, 512).total
    assert 1.4 < ratio < 1.6  # 15 blocks beside 30
