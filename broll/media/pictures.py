"""A picture from a stranger, and a picture for the world.

    open_picture    kind by content, never by name; size from the header, before a pixel is decoded
    to_png          pixels only: no place, camera or owner travels on

A few kilobytes can claim sixty thousand pixels a side, so the claim is refused before memory is given to it.
Warnings of Pillow are silenced while it decodes. Their filter belongs to the whole process, so one picture is
decoded at a time; which also means that only one can be large in memory.

Left out: colour profiles. A picture in Display P3 comes out a little pale.
"""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from broll.errors import BadImage

MAX_BYTES = 30_000_000
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
MAX_ASPECT = 20

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

# What Pillow's decoders raise on bytes that are not what they claim to be.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    EOFError,
    struct.error,
    zlib.error,
)

# https://exiftool.org/TagNames/EXIF.html, tag 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

DECODER = threading.Lock()


def grey(values: NDArray[np.generic], peaks: tuple[int, ...]) -> Image.Image:
    """Numbers as grey: 0 is black, white is the first of `peaks` that holds them all.

    If none does, or some are negative, their own smallest and largest become black and white.
    """
    v = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(v.min()), float(v.max())
    white = next((peak for peak in peaks if high <= peak), None)
    if low >= 0 and white is not None:
        low, high = 0.0, float(white)
    return Image.fromarray(np.rint((v - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


def over_white(picture: Image.Image) -> Image.Image:
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return grey(np.asarray(picture), (65535,)).convert("RGB")
    if picture.mode == "I":
        return grey(np.asarray(picture), (255, 65535)).convert("RGB")
    if picture.mode == "F":
        return grey(np.asarray(picture), (1, 255, 65535)).convert("RGB")
    if picture.has_transparency_data:
        return over_white(picture)
    return picture.convert("RGB")


def upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except DAMAGE:  # a camera's broken notes are no reason to refuse its picture
        return picture
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


def check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"the picture is {width}x{height}; it may have {MAX_PIXELS // 10**6} million pixels")
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"the picture is {width}x{height}; each side must have at least {MIN_SIDE} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(
            f"the picture is {width}x{height}; it may be {MAX_ASPECT} times as long as wide at most"
        )


def open_picture(data: bytes) -> Image.Image:
    """RGB, upright, on white, carrying nothing else; or BadImage."""
    if len(data) > MAX_BYTES:
        raise BadImage(f"the file has {len(data) / 1e6:.0f} MB; a picture may have {MAX_BYTES // 10**6} MB")
    with DECODER, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                check_size(*picture.size)
                picture.load()
                check_size(*picture.size)
                rgb = to_rgb(upright(picture))
        except UnidentifiedImageError as failure:
            raise BadImage(f"this is not a picture; it must be one of {', '.join(FORMATS)}") from failure
        except Image.DecompressionBombError as failure:
            raise BadImage(f"the picture may have {MAX_PIXELS // 10**6} million pixels at most") from failure
        except DAMAGE as failure:
            raise BadImage("the picture is damaged or cut off") from failure
    rgb.info = {}
    return rgb


def to_png(image: Image.Image) -> bytes:
    """The same pixels give the same bytes."""
    clean = image.convert("RGB")
    clean.info = {}
    buffer = io.BytesIO()
    clean.save(buffer, "PNG")
    return buffer.getvalue()
