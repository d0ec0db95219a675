import io
import json
import os
import resource
import struct
import subprocess
import threading
import time
import zipfile
import zlib

import numpy as np
import psutil
import pytest
from PIL import Image, PngImagePlugin

from broll.errors import BadImage
from broll.media.pictures import FORMATS, MAX_BYTES, open_picture, to_png
from broll.server.intake import PNG, clean_picture, command, environment

SIDE = 48


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(side=SIDE):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def pixels(data):
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def claim(width, height, data=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def refused(data, **limits):
    with pytest.raises(BadImage) as refusal:
        clean_picture(data, **limits)
    said = str(refusal.value)
    assert len(said.splitlines()) == 1
    return said


# what is taken


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_comes_out_as_the_decoder_of_this_process_would_have_it(kind):
    data = encoded(noise(), kind)
    cleaned = clean_picture(data)
    assert cleaned.png == to_png(open_picture(data))
    assert (cleaned.width, cleaned.height) == (SIDE, SIDE)


def test_the_size_is_that_of_the_picture_put_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    cleaned = clean_picture(encoded(Image.new("RGB", (64, 32)), "JPEG", exif=exif))
    assert (cleaned.width, cleaned.height) == (32, 64)
    assert pixels(cleaned.png).shape == (64, 32, 3)


def test_a_picture_that_is_also_an_archive_comes_out_as_a_picture_alone():
    archive = io.BytesIO()
    archive.write(encoded(noise()))
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr("payload.html", "<script>alert(1)</script>")
    data = archive.getvalue()
    assert zipfile.is_zipfile(io.BytesIO(data))
    cleaned = clean_picture(data)
    assert not zipfile.is_zipfile(io.BytesIO(cleaned.png))
    assert b"payload" not in cleaned.png
    assert np.array_equal(pixels(cleaned.png), np.asarray(noise()))


def test_what_a_picture_says_about_its_owner_is_gone():
    exif = Image.Exif()
    exif[0x010F] = "Camera of Ms Secret"
    exif.get_ifd(0x8825)[1] = "N"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("owner", "Ms Secret")
    for data in (
        encoded(noise(), "JPEG", exif=exif, comment=b"Ms Secret", icc_profile=b"Secret"),
        encoded(noise(), "PNG", exif=exif, pnginfo=notes),
        encoded(noise(), "WEBP", exif=exif, xmp=b"Secret"),
    ):
        assert b"Secret" in data
        cleaned = clean_picture(data)
        assert b"Secret" not in cleaned.png
        with Image.open(io.BytesIO(cleaned.png)) as picture:
            assert picture.info == {}
            assert not picture.getexif()


def test_the_first_of_many_frames_is_the_picture():
    frames = [Image.new("L", (SIDE, SIDE), n % 256) for n in range(1, 2001)]
    for kind in ("GIF", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=20)
        assert (pixels(clean_picture(data).png) == 1).all()


def test_inks_become_light():
    cleaned = clean_picture(encoded(Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)), "JPEG"))
    red, green, blue = pixels(cleaned.png)[5, 5]
    assert red < 10
    assert min(green, blue) > 245


# what is not


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (bytes(MAX_BYTES + 1), "30 MB"),
        (b"hello", "not a picture"),
        (b"<html><script>alert(1)</script></html>", "not a picture"),
        (b"%PDF-1.7\n", "not a picture"),
        (claim(60000, 60000), "64 million pixels"),
        (claim(12000, 12000, bytes(12000 * 3)), "64 million pixels"),
        (claim(0, 0), ""),
        (encoded(Image.new("RGB", (1, 400))), "1x400"),
        (encoded(Image.new("RGB", (400, 1))), "400x1"),
        (encoded(Image.new("RGB", (16, 400))), "16x400"),
        (encoded(noise())[:1000], "damaged or cut off"),
        (encoded(noise(), "JPEG")[:700], "damaged or cut off"),
        (encoded(noise(), "WEBP")[:900], ""),
    ],
)
def test_what_cannot_be_a_picture_is_refused_for_the_reason_of_the_decoder(data, said):
    assert said in refused(data)


def test_a_picture_that_takes_too_much_memory_is_refused():
    wide = encoded(Image.new("1", (8000, 8000)))
    assert len(wide) < 100_000
    assert "memory" in refused(wide, memory_bytes=300_000_000)


def test_the_largest_picture_fits_the_memory_there_is():
    cleaned = clean_picture(encoded(Image.new("LA", (8000, 8000)), compress_level=1), timeout_s=120)
    assert (cleaned.width, cleaned.height) == (8000, 8000)


def test_a_picture_that_takes_too_long_is_refused_and_its_decoder_is_gone():
    begun = time.monotonic()
    assert "0.02 s" in refused(encoded(noise()), timeout_s=0.02)
    assert time.monotonic() - begun < 5
    assert decoders() == []


def decoders():
    return [child for child in psutil.Process().children() if "broll.server.intake" in child.cmdline()]


def test_a_decoder_that_is_killed_costs_the_picture_and_nothing_else():
    said = []
    uploading = threading.Thread(target=lambda: said.append(refused(encoded(noise(2000)))))
    uploading.start()
    while not (found := decoders()):
        time.sleep(0.002)
    found[0].kill()
    uploading.join()
    assert "killed" in said[0]
    assert pixels(clean_picture(encoded(noise())).png).shape == (SIDE, SIDE, 3)


# the child


@pytest.fixture
def child():
    """One that waits for its picture."""
    with subprocess.Popen(
        command(7.2, 1_000_000_000),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_limits_hold_before_the_first_byte_of_the_picture(child):
    watched = psutil.Process(child.pid)
    while watched.rlimit(resource.RLIMIT_NOFILE)[0] > 32:
        time.sleep(0.01)
    assert watched.rlimit(resource.RLIMIT_AS) == (1_000_000_000, 1_000_000_000)
    assert watched.rlimit(resource.RLIMIT_CPU) == (8, 9)
    assert watched.rlimit(resource.RLIMIT_FSIZE) == (0, 0)
    assert watched.rlimit(resource.RLIMIT_CORE) == (0, 0)
    assert watched.memory_info().vms < 700_000_000


def test_the_child_knows_no_secret_of_its_parent(child, monkeypatch):
    monkeypatch.setenv("BROLL_ADMIN_KEY", "secret")
    clean_picture(encoded(noise()))
    assert set(psutil.Process(child.pid).environ()) == set(environment())
    assert os.getsid(child.pid) == child.pid


def test_the_child_speaks_png_or_one_line_of_json(child):
    png, said = child.communicate(encoded(noise()))
    assert (child.returncode, said) == (0, b"")
    assert np.array_equal(pixels(png), np.asarray(noise()))
    refusal = subprocess.run(
        command(5, 10**9), input=b"hello", capture_output=True, env=environment(), check=False
    )
    assert (refusal.returncode, refusal.stdout) == (1, b"")
    assert "not a picture" in json.loads(refusal.stderr)["error"]


def test_time_spent_by_the_child_is_limited_even_when_nobody_watches():
    spinning = "import resource\nfrom broll.server.intake import limit\nlimit(10**9, 1)\nwhile True: pass"
    (python, *_) = command(1, 1)
    begun = time.monotonic()
    spun = subprocess.run([python, "-c", spinning], env=environment(), timeout=30, check=False)
    assert spun.returncode < 0
    assert time.monotonic() - begun < 20
