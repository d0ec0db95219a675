import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from broll.errors import BadImage
from broll.media import pictures
from broll.media.pictures import FORMATS, open_picture, to_png

SIDE = 32


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width=SIDE, height=SIDE):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, x * 0 + 90], -1).astype(np.uint8))


def grey_ramp(dtype, peak):
    return np.tile(np.linspace(0, peak, SIDE), (SIDE, 1)).astype(dtype)


SAMPLES = {kind: encoded(ramp(), kind) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_allowed_kind_opens_as_rgb(kind):
    picture = open_picture(SAMPLES[kind])
    assert (picture.mode, picture.size) == ("RGB", (SIDE, SIDE))
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(ramp())).mean() < 12


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "ICO", "EPS", "PDF", "SGI", "ICNS"])
def test_every_other_kind_is_refused(kind):
    with pytest.raises(BadImage, match="not a picture"):
        open_picture(encoded(ramp(), kind))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "I;16B"]
)
def test_every_mode_becomes_rgb(mode):
    picture = open_picture(encoded(Image.new(mode, (SIDE, SIDE)), "TIFF"))
    assert (picture.mode, picture.size) == ("RGB", (SIDE, SIDE))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (grey_ramp(np.uint8, 255), "PNG"),
        (grey_ramp(np.uint16, 65535), "PNG"),
        (grey_ramp(np.uint16, 65535), "TIFF"),
        (grey_ramp(np.int32, 65535), "TIFF"),
        (grey_ramp(np.int32, 255), "TIFF"),
        (grey_ramp(np.int32, 2**30), "TIFF"),
        (grey_ramp(np.float32, 1), "TIFF"),
        (grey_ramp(np.float32, 255), "TIFF"),
        (grey_ramp(np.float32, 2) - 1, "TIFF"),
    ],
)
def test_grey_of_any_depth_runs_from_black_to_white(values, kind):
    row = np.asarray(open_picture(encoded(Image.fromarray(values), kind)))[0].astype(int)
    assert np.abs(row - np.linspace(0, 255, SIDE)[:, None]).max() <= 1


def test_dark_sixteen_bit_grey_stays_dark():
    dark = Image.fromarray(np.full((SIDE, SIDE), 2570, np.uint16))
    assert open_picture(encoded(dark)).getpixel((0, 0)) == (10, 10, 10)


def test_numbers_that_are_none_are_black():
    values = grey_ramp(np.float32, 1)
    values[0, :3] = np.nan, np.inf, -np.inf
    assert np.asarray(open_picture(encoded(Image.fromarray(values), "TIFF")))[0, :3].max() == 0


def test_what_is_seen_through_is_white():
    half = Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 128))
    palette = Image.new("P", (SIDE, SIDE), 3)
    palette.putpalette([7, 7, 7] * 4)
    for data, seen in [
        (encoded(half), (255, 127, 127)),
        (encoded(Image.new("LA", (SIDE, SIDE), (0, 0))), (255, 255, 255)),
        (encoded(palette, transparency=3), (255, 255, 255)),
        (encoded(palette, "GIF", transparency=3), (255, 255, 255)),
        (encoded(Image.new("RGB", (SIDE, SIDE), (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
    ]:
        assert open_picture(data).getpixel((5, 5)) == seen


def test_cmyk_has_the_colours_of_its_inks():
    cyan = Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        red, green, blue = open_picture(encoded(cyan, kind)).getpixel((5, 5))
        assert red < 10
        assert min(green, blue) > 245


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_picture_taken_sideways_is_put_upright(kind, orientation):
    upright = ramp(48, 32)
    sideways = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[
        orientation
    ]  # fmt: skip  the inverse move, as Image.Transpose counts them
    stored = upright
    for move in sideways:
        stored = stored.transpose(Image.Transpose(move))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    opened = open_picture(encoded(stored, kind, exif=exif, **lossless))
    assert opened.size == upright.size
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(upright)).max() <= 6
    assert not opened.getexif()


def test_broken_camera_notes_do_not_cost_the_picture():
    assert open_picture(encoded(ramp(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")).size == (
        SIDE,
        SIDE,
    )


def test_only_the_first_frame_of_a_gif_counts():
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(data).getpixel((5, 5)) == (255, 0, 0)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb_png(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


BOMBS = {
    "png": bomb_png(60000, 60000),
    "png that Pillow only warns about": bomb_png(10000, 10000),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    + b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08\x01\x00\x00;",
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_claims_to_be_huge_is_refused_before_it_is_decoded(kind):
    with pytest.raises(BadImage, match="64 million pixels"):
        open_picture(BOMBS[kind])


@pytest.mark.parametrize("size", [(15, 100), (100, 15), (1, 1), (321, 16), (16, 321)])
def test_a_sliver_is_refused(size):
    with pytest.raises(BadImage, match=f"{size[0]}x{size[1]}"):
        open_picture(encoded(Image.new("RGB", size)))


@pytest.mark.parametrize("size", [(16, 16), (320, 16), (16, 320)])
def test_the_smallest_and_longest_are_taken(size):
    assert open_picture(encoded(Image.new("RGB", size))).size == size


def test_a_huge_file_is_refused_by_its_size():
    with pytest.raises(BadImage, match="30 MB"):
        open_picture(bytes(pictures.MAX_BYTES + 1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS\n",
        b"\0" * 9999,
    ],
)
def test_what_is_no_picture_is_refused_whatever_it_is_called(data):
    with pytest.raises(BadImage) as refusal:
        open_picture(data)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_cut_off_picture_is_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(BadImage):
        open_picture(data[: len(data) // 2])


def test_a_text_bomb_inside_a_png_is_refused():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("a", "x" * 10_000_000, zip=True)
    with pytest.raises(BadImage):
        open_picture(encoded(ramp(), pnginfo=notes))


def test_a_png_carries_pixels_and_nothing_else():
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("owner", "someone")
    data = encoded(ramp(), exif=exif, pnginfo=notes, dpi=(300, 300), icc_profile=b"profile")
    plain = to_png(open_picture(data))
    assert plain == to_png(ramp())
    with Image.open(io.BytesIO(plain)) as again:
        assert again.info == {}
    with Image.open(io.BytesIO(data)) as loaded:
        assert to_png(loaded) == plain
    assert np.array_equal(np.asarray(open_picture(plain)), np.asarray(ramp()))


quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def only_refused(data):
    try:
        picture = open_picture(data)
    except BadImage as refusal:
        assert len(str(refusal).splitlines()) == 1  # noqa: PT017
    else:
        assert picture.mode == "RGB"


@quick
@given(st.binary(max_size=400), st.sampled_from([b"", *(data[:8] for data in SAMPLES.values())]))
def test_any_bytes_are_a_picture_or_refused(data, start):
    only_refused(start + data)


@quick
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_any_damage_is_survived_or_refused(kind, data):
    damaged = bytearray(SAMPLES[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, min(len(damaged), 400) - 1))] = data.draw(st.integers(0, 255))
    only_refused(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    only_refused(bytes(damaged))
