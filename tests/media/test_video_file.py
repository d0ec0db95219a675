import errno
import os
import resource
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from broll.errors import BadOption, OutputError
from broll.media import video_file
from broll.media.video_file import FORMATS, VideoWriter, check_output, probe, read_frames, read_metadata

WIDTH, HEIGHT, FPS = 96, 64, 16
COLOURS = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255),
    (0, 0, 0), (200, 120, 40), (60, 90, 160), (128, 128, 128),
]  # fmt: skip

RECIPES = {
    "json": '{"prompt": "a fox; it says \\"hi\\" = #1", "seed": 7}',
    "chinese": "镜头缓缓推近,一只狐狸在雪地里奔跑。🦊",
    "awkward": " two\nlines\r\n, 'quotes' \"double\" \\ back\\slash; = # [x] ",
    "20 kB": "长" * 4000 + "x" * 8000,
    "255 bytes": "y" * 255,
}


def flat(colours=COLOURS):
    return np.stack([np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for colour in colours])


def moving(frames=8):
    """A square over a gradient."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    clip = np.stack([np.stack([x * 2, y * 3, np.full_like(x, 9 * i)], -1) for i in range(frames)]).astype(
        np.uint8
    )
    for i in range(frames):
        clip[i, 20:36, 4 * i : 4 * i + 16] = (240, 30, 90)
    return clip


def write(path, frames, *, metadata=""):
    height, width = frames.shape[1:3]
    options = {"width": width, "height": height, "fps": FPS, "metadata": metadata}
    with VideoWriter(path, format=path.suffix[1:], **options) as video:
        video.write(frames)
    return path


def in_folder(path):
    return sorted(child.name for child in path.iterdir())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_recipe_comes_back_as_it_went_in(tmp_path, kind, recipe):
    path = write(tmp_path / f"clip.{kind}", flat(), metadata=RECIPES[recipe])
    assert read_metadata(path) == RECIPES[recipe]
    assert len(list(read_frames(path))) == len(COLOURS)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_recipe_is_found_whatever_the_file_is_called(tmp_path, kind):
    path = write(tmp_path / f"clip.{kind}", flat(), metadata="here")
    assert read_metadata(path.rename(tmp_path / "clip.txt")) == "here"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_without_a_recipe_was_not_made_by_broll(tmp_path, kind):
    path = write(tmp_path / f"clip.{kind}", flat())
    with pytest.raises(BadOption, match="was not made by broll"):
        read_metadata(path)


def test_what_is_not_a_video_has_no_recipe(tmp_path):
    text = tmp_path / "clip.mp4"
    text.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(write(tmp_path / "whole.mp4", flat()).read_bytes()[:200])
    for path, reason in [
        (text, "not a video"),
        (tmp_path / "no.mp4", "No such file"),
        (tmp_path, "directory"),
    ]:
        with pytest.raises(BadOption, match=reason):
            read_metadata(path)
    for read in (read_metadata, probe, lambda path: list(read_frames(path))):
        with pytest.raises(BadOption, match=r"damaged|no picture"):
            read(cut)


@pytest.mark.parametrize("size", [6, 8, 13, 20, 40, 100, 300])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_off_file_is_refused_or_read_but_never_crashes(tmp_path, kind, size):
    path = write(tmp_path / f"clip.{kind}", flat(), metadata="recipe")
    path.write_bytes(path.read_bytes()[:size])
    for read in (read_metadata, probe, lambda path: list(read_frames(path))):
        try:
            read(path)
        except BadOption as refusal:
            assert len(str(refusal).splitlines()) == 1  # noqa: PT017


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_video_is_tagged_as_what_it_is(tmp_path, kind):
    path = write(tmp_path / f"clip.{kind}", moving())
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert context.pix_fmt == "yuv420p"
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert tags == (1, 1, 1, 1)
        assert stream.average_rate == FPS
        assert stream.codec_context.name == {"mp4": "h264", "webm": "vp9"}[kind]


def test_a_browser_can_start_an_mp4_before_it_has_all_of_it(tmp_path):
    data = write(tmp_path / "clip.mp4", moving()).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_white_is_written_with_the_matrix_and_range_of_bt709(tmp_path):
    with av.open(str(write(tmp_path / "clip.mp4", flat([(255, 0, 0), (255, 255, 255)])))) as container:
        red, white = (frame.to_ndarray()[HEIGHT // 2, WIDTH // 2] for frame in container.decode(video=0))
    assert abs(int(red) - 63) <= 1  # 16 + 219 * 0.2126; BT.601 would give 81
    assert abs(int(white) - 235) <= 1


@pytest.mark.parametrize("kind", FORMATS)
def test_colours_survive(tmp_path, kind):
    for before, after in zip(flat(), read_frames(write(tmp_path / f"clip.{kind}", flat())), strict=True):
        assert after.shape == before.shape
        assert after.dtype == np.uint8
        assert np.abs(after.astype(int) - before).max() <= 4


def seen_from_afar(clip):
    """Means of 4x4 pixels, in which a palette's dots become colours again."""
    return clip.reshape(len(clip), HEIGHT // 4, 4, WIDTH // 4, 4, 3).mean(axis=(2, 4))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_moving_picture_stays_itself(tmp_path, kind):
    before = moving()
    after = np.stack(list(read_frames(write(tmp_path / f"clip.{kind}", before))))
    assert np.abs(seen_from_afar(after) - seen_from_afar(before)).mean() < 6


@pytest.mark.parametrize("kind", FORMATS)
def test_chunks_give_the_same_frames_as_one_call(tmp_path, kind):
    clip = moving(9)
    whole = write(tmp_path / f"whole.{kind}", clip)
    pieces = tmp_path / f"pieces.{kind}"
    with VideoWriter(pieces, width=WIDTH, height=HEIGHT, fps=FPS, format=kind) as video:
        for start in (0, 1, 5):
            video.write(clip[start : {0: 1, 1: 5, 5: 9}[start]])
    assert np.array_equal(list(read_frames(whole)), list(read_frames(pieces)))


@pytest.mark.parametrize("kind", FORMATS)
def test_frames_may_be_a_view_into_something_larger(tmp_path, kind):
    wide = np.zeros((3, HEIGHT * 2, WIDTH * 2, 3), np.uint8)
    wide[:, ::2, ::2] = moving(3)
    loose = write(tmp_path / f"loose.{kind}", wide[:, ::2, ::2])
    tight = write(tmp_path / f"tight.{kind}", moving(3))
    assert np.array_equal(list(read_frames(loose)), list(read_frames(tight)))


@pytest.mark.parametrize(("kind", "fps"), [("mp4", 16.0), ("webm", 16.0), ("gif", 100 / 6)])
def test_probe_tells_what_is_in_a_file(tmp_path, kind, fps):
    path = write(tmp_path / f"clip.{kind}", moving(9))
    info = probe(path)
    assert (info.width, info.height, info.frames) == (WIDTH, HEIGHT, 9)
    assert info.fps == pytest.approx(fps)
    assert info.seconds == pytest.approx(9 / fps)
    assert info.size_bytes == path.stat().st_size
    assert info.codec == {"mp4": "h264", "webm": "vp9", "gif": "gif"}[kind]


def test_a_gif_loops_forever_and_keeps_frames_that_do_not_change(tmp_path):
    path = write(tmp_path / "clip.gif", flat([(9, 90, 200)] * 5), metadata="still")
    with Image.open(path) as picture:
        assert picture.n_frames == 5
        assert picture.info["loop"] == 0
        for index in range(5):
            picture.seek(index)
            assert picture.info["duration"] == 60


def test_one_frame_is_a_clip(tmp_path):
    for kind in FORMATS:
        assert probe(write(tmp_path / f"one.{kind}", moving(1))).frames == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("kind", FORMATS)
def test_an_interrupted_writer_leaves_the_folder_as_it_was(tmp_path, kind, error):
    old = tmp_path / f"clip.{kind}"
    old.write_bytes(b"yesterday")
    writer = VideoWriter(old, width=WIDTH, height=HEIGHT, fps=FPS, format=kind)
    with pytest.raises(error), writer as video:  # noqa: PT012
        video.write(moving())
        assert any(name.startswith(".") and name.endswith(".part") for name in in_folder(tmp_path))
        raise error
    assert in_folder(tmp_path) == [old.name]
    assert old.read_bytes() == b"yesterday"


def test_nothing_has_the_final_name_before_it_is_whole(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=FPS, format="mp4") as video:
        video.write(moving())
        assert not path.exists()
    assert in_folder(tmp_path) == ["clip.mp4"]


def test_a_clip_of_no_frames_is_refused(tmp_path):
    writer = VideoWriter(tmp_path / "clip.mp4", width=WIDTH, height=HEIGHT, fps=FPS, format="mp4")
    with pytest.raises(OutputError, match="no frames"), writer:
        pass
    assert in_folder(tmp_path) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_disk_that_fills_up_is_one_clear_line_and_leaves_nothing(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = tmp_path / f"clip.{kind}"
    size = write(path, noise).stat().st_size
    path.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), before[1]))
    try:
        with pytest.raises(OutputError) as refusal:
            write(path, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    assert in_folder(tmp_path) == []


def test_a_full_disk_is_called_so():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert video_file.one_line(Path("a.mp4"), full) == "cannot write a.mp4: no space left on this disk"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("width", "height"), [(95, 64), (96, 63), (0, 64), (-2, 64)])
def test_odd_sizes_are_refused(tmp_path, kind, width, height):
    with pytest.raises(OutputError, match="must be even"):
        VideoWriter(tmp_path / "clip", width=width, height=height, fps=FPS, format=kind)


@pytest.mark.parametrize("metadata", ["nul\0", "half \ud800"])
def test_metadata_that_would_be_cut_is_refused_before_the_work(tmp_path, metadata):
    with pytest.raises(OutputError, match="plain text"):
        VideoWriter(
            tmp_path / "clip.mp4", width=WIDTH, height=HEIGHT, fps=FPS, format="mp4", metadata=metadata
        )


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "http:x.mp4", "%d.mp4", "-y.mp4", "镜头 🦊.mp4", "a'b\".mp4", "x" * 251 + ".mp4"]
)
def test_a_name_is_only_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    assert check_output(path) == "mp4"
    assert probe(write(path, moving(2))).frames == 2
    assert in_folder(tmp_path) == [name]


def test_a_link_stays_a_link(tmp_path):
    link = tmp_path / "latest.mp4"
    link.symlink_to(tmp_path / "real.mp4")
    assert check_output(link) == "mp4"
    write(link, moving(2))
    assert link.is_symlink()
    assert probe(tmp_path / "real.mp4").frames == 2


@pytest.mark.parametrize(
    ("name", "kind", "decided"),
    [
        ("a.mp4", None, "mp4"),
        ("a.WEBM", None, "webm"),
        ("a.gif", "mp4", "mp4"),
        ("a", "GIF", "gif"),
        ("a.b", "mp4", "mp4"),
    ],
)
def test_the_format_is_what_was_asked_or_what_the_ending_says(tmp_path, name, kind, decided):
    assert check_output(tmp_path / name, kind) == decided
    assert in_folder(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "kind"), [("a.avi", None), ("a", None), ("mp4", None), ("a.mp4", "avi"), ("a.mp4", "")]
)
def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path, name, kind):
    with pytest.raises(BadOption, match="mp4, webm, gif"):
        check_output(tmp_path / name, kind)


def unwritable(tmp_path):
    if os.geteuid() == 0:  # permissions do not bind root, but the kernel's own tree does
        return Path("/sys")
    tmp_path.chmod(0o555)
    return tmp_path


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    before = in_folder(tmp_path)
    places = {
        tmp_path / "folder.mp4": "is a folder",
        tmp_path / "missing" / "a.mp4": "there is no folder",
        tmp_path / "file" / "a.mp4": "there is no folder|Not a directory",
        tmp_path / ("x" * 300 + ".mp4"): "too long",
        tmp_path / "a\0b.mp4": "cannot be the name",
        tmp_path / "a\ud800.mp4": "cannot be the name",
        unwritable(tmp_path) / "a.mp4": "cannot write",
    }
    for path, reason in places.items():
        with pytest.raises(OutputError, match=reason) as refusal:
            check_output(path)
        assert len(str(refusal.value).splitlines()) == 1
    for device in ("/dev/full", "/dev/null"):
        with pytest.raises(OutputError, match="is a device"):
            check_output(Path(device), "mp4")
    tmp_path.chmod(0o755)
    assert in_folder(tmp_path) == before


def test_a_folder_that_goes_away_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "gone" / "clip.mp4", moving(1))
    folder = tmp_path / "going"
    folder.mkdir()
    writer = VideoWriter(folder / "clip.gif", width=WIDTH, height=HEIGHT, fps=FPS, format="gif")
    with pytest.raises(OutputError, match="cannot write"), writer as video:  # noqa: PT012
        video.write(moving(1))
        for child in folder.iterdir():
            child.unlink()
        folder.rmdir()


def test_a_missing_encoder_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(video_file.CODECS, "mp4", "libnone")
    with pytest.raises(OutputError, match="libnone"):
        check_output(tmp_path / "clip.mp4")
    with pytest.raises(OutputError, match="libnone"):
        VideoWriter(tmp_path / "clip.mp4", width=WIDTH, height=HEIGHT, fps=FPS, format="mp4")
