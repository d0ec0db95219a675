"""A tiny decoder that a user has put beside a model: sharper previews than one linear map, of WAN's latents.

    latents -> tanh(z / 3) * 3, conv
            -> at each of three levels: three blocks, twice the size, 1, 2, 2 times the frames, conv
            -> conv -> RGB in [0, 1];   the first three frames are of the time before the clip, and dropped

    block      relu(conv(relu(conv(relu(conv([x, x of the frame before]))))) + x)

A block looks back one frame. So a picture needs few latents before its own, and the higher the level, the fewer:
`still` computes those, and no more.

    TAEHV, taew2_1: formulas, names of weights      https://github.com/madebyollin/taehv (MIT)

Left out: its encoder, which a file may hold all the same, and its decoders of other latents.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from broll.engine import weights
from broll.engine.containers import check_kinds, open_file
from broll.engine.shapes import TEMPORAL_STRIDE, Latent
from broll.errors import BadCheckpoint

FILES = ("taew2_1.safetensors", "taew2_1.pth")  # as they are published
CHANNELS = 16  # of WAN's latents
WIDTHS = (256, 128, 64, 64)
GROWTH = (1, 2, 2)  # of the frames, level by level
BLOCKS = 3  # of a level
Frames = Float[Tensor, "_ _ _ _"]  # f c h w: a clip's frames are a batch


def convolution(dim_in: int, dim_out: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=bias)


class Bounded(nn.Module):
    def forward(self, x: Frames) -> Frames:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            convolution(2 * dim, dim), nn.ReLU(), convolution(dim, dim), nn.ReLU(), convolution(dim, dim)
        )

    def forward(self, x: Frames) -> Frames:
        before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        return torch.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class Growing(nn.Module):
    """Every frame becomes `times` frames."""

    def __init__(self, dim: int, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim * times, 1, bias=False)

    def forward(self, x: Frames) -> Frames:
        return self.conv(x).unflatten(1, (-1, x.shape[1])).flatten(0, 1)


class TinyDecoder(nn.Module):
    """Its parameters have the names of the published files."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Bounded(), convolution(CHANNELS, WIDTHS[0]), nn.ReLU()]
        for dim, after, times in zip(WIDTHS, WIDTHS[1:], GROWTH, strict=False):
            layers += [Block(dim) for _ in range(BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), Growing(dim, times), convolution(dim, after, bias=False)]
        layers += [nn.ReLU(), convolution(WIDTHS[-1], 3)]
        self.decoder = nn.Sequential(*layers)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, latent: Latent) -> Float[Tensor, "F 3 _ _"]:
        """All frames of the first clip, in [0, 1]."""
        return self.decoder(self._frames(latent)).float().clamp(0, 1)[TEMPORAL_STRIDE - 1 :]

    @torch.inference_mode()
    def still(self, latent: Latent, index: int) -> UInt8[Tensor, "_ _ 3"]:
        """The last frame that this latent frame stands for, from it and the few before that can be seen in it."""
        needed = list(self._needed())
        x = self._frames(latent)[max(0, index + 1 - needed[0]) : index + 1]
        for layer, last in zip(self.decoder, needed, strict=True):
            x = layer(x[-last:])
        picture = x[-1].float().clamp(0, 1).permute(1, 2, 0)
        return (picture * 255).round().to(torch.uint8).cpu()

    def _needed(self) -> Iterator[int]:
        """How many of the latest frames each layer must see for the last one of all."""
        counts, count = [], 1
        for layer in reversed(self.decoder):
            if isinstance(layer, Growing):
                count = -(-count // (layer.conv.out_channels // layer.conv.in_channels))
            count += isinstance(layer, Block)
            counts.append(count)
        return reversed(counts)

    def _frames(self, latent: Latent) -> Frames:
        """Normalised latents, as they are: it was trained on those."""
        return latent[0].transpose(0, 1).to(self.dtype)


def load(path: Path, z_dim: int, device: torch.device) -> TinyDecoder:
    """Strictly: every tensor of the decoder, and besides it at most those of its encoder. In 16 bits on a GPU."""
    if z_dim != CHANNELS:
        raise BadCheckpoint(
            f"{path} makes previews of latents with {CHANNELS} channels, as WAN 2.1 has them; this model's have {z_dim}"
        )
    entries = {name: entry for name, entry in open_file(path)[0].items() if not name.startswith("encoder.")}
    check_kinds(entries, path)
    with torch.device("meta"):
        model = TinyDecoder()
    low = torch.float16 if device.type == "cuda" else torch.float32
    weights.assign(model, entries, source=path, dtype=lambda name: low)
    return model.to(device).eval()
