"""CLIP's view of a picture, against transformers' own module and image processor."""

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from broll.engine.config import ImageConfig
from broll.engine.image_encoder import ImageEncoder, clip_vision, preprocess
from tests.parity.judge import LIMIT, relative, shake

TINY = ImageConfig(hidden_size=40, intermediate_size=64, num_layers=4, num_heads=4, image_size=56)


def picture(width=150, height=90):
    generator = torch.Generator().manual_seed(0)
    small = (torch.rand(5, 7, 3, generator=generator) * 255).byte().numpy()
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def test_features_are_those_before_the_last_layer():
    model = clip_vision(TINY)
    shake(model)
    theirs = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=40, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            image_size=56, patch_size=14, hidden_act="gelu",
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        x = preprocess(picture(), 56)
        expected = theirs(pixel_values=x, output_hidden_states=True).hidden_states[-2]
        assert relative(ImageEncoder(model)(picture()), expected) < LIMIT
    assert expected.shape == (1, 17, 40)


@pytest.mark.parametrize(
    "size", [None, (306, 500), (722, 444), (810, 612)]
)  # 224 / 306 * 306 is below 224 in floats
def test_the_diffusers_view_is_the_one_of_its_image_processor(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = 56 if size is None else 224
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    shown = picture() if size is None else picture().resize(size)
    expected = processor(shown, return_tensors="pt")["pixel_values"]
    assert relative(preprocess(shown, side, "diffusers"), expected) < LIMIT


def test_the_official_view_keeps_the_sides_that_the_other_one_cuts_off():
    """A wide picture with one red edge: stretched, the edge stays; cropped, it is gone."""
    wide = Image.new("RGB", (300, 60), "black")
    wide.paste("red", (0, 0, 30, 60))
    red = preprocess(Image.new("RGB", (60, 60), "red"), 56)[0, 0, 0, 0]
    assert torch.isclose(preprocess(wide, 56)[0, 0, :, 0], red, atol=1e-3).all()
    assert not torch.isclose(preprocess(wide, 56, "diffusers")[0, 0], red, atol=0.5).any()
