"""CLIP's view of a picture: 257 tokens, from the last layer but one of ViT-H/14, from transformers.

    official     the whole picture stretched to 224 x 224, bicubic without antialias    wan/modules/clip.py
    diffusers    shortest side to 224, centre cut out, bicubic with antialias (CLIPImageProcessor)

The second loses the sides of a wide picture; it is here by name for those who compare.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from broll.engine.conditioning import Preprocessing, pixels
from broll.engine.config import ImageConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_vision(config: ImageConfig) -> Any:
    """A CLIPVisionModel with these numbers, its weights not yet set."""
    with torch.device("cpu"):  # as in text_encoder.py
        from transformers import CLIPVisionConfig, CLIPVisionModel  # noqa: PLC0415  seconds, and few models have it

    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act="gelu",
            projection_dim=1024,
        )
    ).eval()


def preprocess(image: Image.Image, side: int, how: Preprocessing = "official") -> Float[Tensor, "1 3 s s"]:
    if how == "diffusers":
        short = min(image.size)
        size = (image.width * side // short, image.height * side // short)
        image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        scaled = pixels(image.crop((left, top, left + side, top + side))).float() / 255
    else:
        scaled = F.interpolate(pixels(image).float() / 127.5 - 1, size=(side, side), mode="bicubic")
        scaled = scaled * 0.5 + 0.5
    mean, std = torch.tensor([MEAN, STD])[:, None, :, None, None]
    return (scaled - mean) / std


class ImageEncoder:
    """`encoder(image)` gives [1, 257, 1280] features for one picture."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, image: Image.Image, how: Preprocessing = "official") -> Float[Tensor, "1 i c"]:
        x = preprocess(image, self.model.config.image_size, how)
        x = x.to(self.model.device, self.model.dtype)
        return self.model(pixel_values=x, output_hidden_states=True).hidden_states[-2].float()
