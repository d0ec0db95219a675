"""The alphabet of shapes, and the arithmetic between pixels, latents and tokens.

    b batch   c channel   f frame   h height   w width       of latents, or of any layer's input
                          F frame   H height   W width       of pixels
    n video token   l text or image token   m model width   k head   d head width

A latent frame stands for one pixel frame (the first) or four (each later one): f' = (f - 1) / 4 + 1.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from broll.errors import UnsupportedShape

Video = Float[Tensor, "b 3 F H W"]  # pixels in [-1, 1]
Frames = Float[Tensor, "3 F H W"]  # pixels in [-1, 1] of one clip, or a part of it
Latent = Float[Tensor, "b c f h w"]  # normalised: about zero mean and unit deviation
Tokens = Float[Tensor, "b n m"]
TextTokens = Float[Tensor, "b l m"]
Heads = Float[Tensor, "b k n d"]  # of queries
Keys = Float[Tensor, "b k l d"]  # of keys and values

TEMPORAL_STRIDE = 4


@dataclass(frozen=True)
class Grid:
    """A clip counted in frames, rows and columns: of pixels, of latents, or of tokens."""

    frames: int
    height: int
    width: int

    @property
    def size(self) -> int:
        return self.frames * self.height * self.width


def latent_frames(frames: int) -> int:
    """Pixel frames (4k + 1) to latent frames (k + 1)."""
    return (frames - 1) // TEMPORAL_STRIDE + 1


def pixel_frames(latents: int) -> int:
    """Latent frames (k + 1) to pixel frames (4k + 1)."""
    return (latents - 1) * TEMPORAL_STRIDE + 1


def latent_grid(pixels: Grid, spatial_stride: int) -> Grid:
    """The latent grid of a clip; the caller has checked the shape at the door."""
    return Grid(
        latent_frames(pixels.frames),
        pixels.height // spatial_stride,
        pixels.width // spatial_stride,
    )


def token_grid(latent: Grid, patch: tuple[int, int, int]) -> Grid:
    return Grid(latent.frames // patch[0], latent.height // patch[1], latent.width // patch[2])


def check_frames(frames: int) -> None:
    """Refuse a length the causal VAE cannot make, naming the nearest ones it can."""
    if frames >= 1 and (frames - 1) % TEMPORAL_STRIDE == 0:
        return
    below = max(1, (frames - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1)
    near = "1" if frames < 1 else f"{below} or {below + TEMPORAL_STRIDE}"
    raise UnsupportedShape(f"{frames} frames cannot be made: a clip has 4k+1 frames, such as {near}")


def check_size(width: int, height: int, multiple: int) -> None:
    """Refuse a size that does not divide into tokens, naming the nearest one that does."""
    if min(width, height) >= multiple and width % multiple == 0 and height % multiple == 0:
        return
    nearest = [max(multiple, side // multiple * multiple) for side in (width, height)]  # no larger than asked
    raise UnsupportedShape(
        f"{width}x{height} cannot be made: both sides must be multiples of {multiple}, "
        f"such as {nearest[0]}x{nearest[1]}"
    )
