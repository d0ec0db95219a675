"""A latent as a small picture, without the autoencoder: one linear map from its channels to RGB.

The map comes with the model: a row of RGB weights for each channel and a last row, the bias. nano's is a
least-squares fit over its training clips (training/export.py). Where there is a tiny decoder (tiny_decoder.py), it is
asked for a still instead.
"""

import contextlib

import torch
from jaxtyping import UInt8
from torch import Tensor

from broll.engine.shapes import Latent
from broll.engine.tiny_decoder import TinyDecoder

# For WAN 2.1's latents; the same weights stand in stable-diffusion.cpp (MIT) and ComfyUI.
WAN = (
    (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747), (0.0372, 0.2344, 0.1420),
    (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665), (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364), (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950), (0.1984, 0.0913, 0.1861),
    (-0.1835, -0.0868, -0.3360),
)  # fmt: skip


def preview(latent: Latent, factors: tuple[tuple[float, ...], ...] | None = None) -> UInt8[Tensor, "f h w 3"]:
    """Every latent frame of the first clip as an RGB picture at latent size."""
    table = torch.tensor(factors or WAN, device=latent.device)
    rgb = torch.einsum("cfhw,cr->fhwr", latent[0].float(), table[:-1]) + table[-1]
    return ((rgb + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def still(
    latent: Latent, factors: tuple[tuple[float, ...], ...] | None = None, tiny: TinyDecoder | None = None
) -> UInt8[Tensor, "_ _ 3"]:
    """The middle of the clip: by the tiny decoder as large as the clip, by the linear map as small as the latent."""
    middle = latent.shape[2] // 2
    if tiny is not None:
        with contextlib.suppress(torch.OutOfMemoryError):  # for want of a sharp picture no clip shall be lost
            return tiny.still(latent, middle)
    return preview(latent[:, :, middle : middle + 1], factors)[0]
