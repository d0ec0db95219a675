"""What the transformer is given besides noise: text, a first frame, a last frame.

Text     real features, then zeros up to 512 tokens, all attended (the official code masks nothing).
         Zeros embed to one and the same token, so n of them weigh as much as one whose logit is
         raised by log(n): `collapsed` keeps one and says its weight, exactly (`padded` is its slow twin).
Latents  the first ones may be given: clean, and at time 0 while the others are noise (`held`).
Image    y = 4 mask channels ++ 16 latents of the clip [first, 0, ..., 0 or last]; and the CLIP features.
         Mask 1 marks the frames that are given; pixel frames are folded four to a latent frame.

    WAN 2.1    wan/image2video.py, wan/first_last_frame2video.py
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from broll.engine.shapes import TEMPORAL_STRIDE, Grid, Latent, Video
from broll.engine.vae import VAE

Preprocessing = Literal["official", "diffusers"]


@dataclass(frozen=True)
class Text:
    """Features for cross-attention and, if padding was collapsed, each key's logit."""

    features: Float[Tensor, "b l c"]
    bias: Float[Tensor, "l"] | None = None


@dataclass(frozen=True)
class Conditioning:
    """Everything one clip is conditioned on. `image` is CLIP's view, `y` the extra latent channels."""

    positive: Text
    negative: Text | None  # None: no guidance
    image: Float[Tensor, "1 i c"] | None = None
    y: Float[Tensor, "1 20 f h w"] | None = None
    control: Float[Tensor, "1 _ f h w"] | None = None  # what VACE follows
    first: Float[Tensor, "1 _ k h w"] | None = None  # latents that are given and stay as they are


def padded(features: Float[Tensor, "b l c"], text_len: int) -> Text:
    """Zeros up to `text_len`, as the official code has it."""
    return Text(F.pad(features, (0, 0, 0, text_len - features.shape[1])))


def collapsed(features: Float[Tensor, "b l c"], text_len: int) -> Text:
    """One zero token that weighs as much as all the padding. Equal to `padded`, with fewer keys."""
    missing = text_len - features.shape[1]
    if missing <= 1:
        return padded(features, text_len)
    bias = torch.zeros(features.shape[1] + 1, device=features.device)
    bias[-1] = math.log(missing)
    return Text(F.pad(features, (0, 0, 0, 1)), bias)


def held(x: Latent, first: Float[Tensor, "1 _ k h w"] | None) -> Latent:
    """The clip with its given latents in their places. WAN 2.2, wan/textimage2video.py"""
    return x if first is None else torch.cat([first.to(x), x[:, :, first.shape[2] :]], dim=2)


def first_latent(vae: VAE, image: Image.Image, width: int, height: int) -> Float[Tensor, "1 _ 1 h w"]:
    """The latent of a clip that begins with this picture. Scaled by Lanczos, as wan/textimage2video.py does it."""
    start = fit(cover(image, width, height), width, height, "diffusers")
    return vae.encode(start[:, :, None])


def pixels(image: Image.Image) -> UInt8[Tensor, "1 3 h w"]:
    data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1)[None]


def fit(
    image: Image.Image, width: int, height: int, how: Preprocessing = "official"
) -> Float[Tensor, "1 3 h w"]:
    """The picture at the clip's size, in [-1, 1].

    official: bicubic without antialias (wan/image2video.py); diffusers: Pillow's Lanczos.
    """
    if how == "diffusers":
        image = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        return pixels(image).float() / 127.5 - 1
    scaled = pixels(image).float() / 127.5 - 1
    return F.interpolate(scaled, size=(height, width), mode="bicubic")


def cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut the largest centred part of the clip's aspect, so that nothing is stretched."""
    scale = min(image.width / width, image.height / height)
    w, h = round(width * scale), round(height * scale)
    left, top = (image.width - w) // 2, (image.height - h) // 2
    return image.crop((left, top, left + w, top + h))


def given_mask(frames: int, h: int, w: int, *, last: bool) -> Float[Tensor, "1 4 f h w"]:
    """1 where a pixel frame is given: the first and, with `last`, the last; folded by four."""
    mask = torch.zeros(frames)
    mask[0] = 1
    if last:
        mask[-1] = 1
    folded = torch.cat([mask[:1].repeat(TEMPORAL_STRIDE), mask[1:]]).view(-1, TEMPORAL_STRIDE)
    return folded.t()[None, :, :, None, None].expand(1, TEMPORAL_STRIDE, folded.shape[0], h, w)


def image_latents(
    vae: VAE, first: Float[Tensor, "1 3 _ _"], last: Float[Tensor, "1 3 _ _"] | None, frames: int
) -> Latent:
    """Latents of a clip that is black between the pictures, encoded as a stream: memory does not grow."""

    def chunks() -> Iterator[Video]:
        yield first[:, :, None]
        for start in range(1, frames, TEMPORAL_STRIDE):
            chunk: Video = torch.zeros(1, 3, TEMPORAL_STRIDE, *first.shape[2:])
            if last is not None and start + TEMPORAL_STRIDE >= frames:
                chunk[:, :, -1] = last
            yield chunk

    return torch.cat(list(vae.encode_stream(chunks())), dim=2)


def image_channels(
    vae: VAE, first: Float[Tensor, "1 3 _ _"], last: Float[Tensor, "1 3 _ _"] | None, frames: int
) -> Float[Tensor, "1 20 f h w"]:
    """y: mask and condition latents, concatenated to the noise at every step."""
    latents = image_latents(vae, first, last, frames)
    h, w = latents.shape[3:]
    mask = given_mask(frames, h, w, last=last is not None)
    return torch.cat([mask.to(latents), latents], dim=1)


def image_size(image: Image.Image, max_area: int, multiple: int) -> Grid:
    """Size of a clip that keeps the picture's aspect at about `max_area` pixels (1 frame).

    The official rule, lat = round(sqrt(area * aspect) // 8 // 2 * 2), with 16 as `multiple`.
    """
    aspect = image.height / image.width
    height = math.sqrt(max_area * aspect) // multiple * multiple
    width = math.sqrt(max_area / aspect) // multiple * multiple
    return Grid(1, max(multiple, int(height)), max(multiple, int(width)))
