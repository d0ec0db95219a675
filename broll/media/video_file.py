"""A clip as a file: mp4, webm or gif, and back to frames.

Frames are uint8 [f, h, w, 3] RGB. A file appears under its name only when it is whole: it grows as a hidden
sibling, and a clean exit moves it into place. What made the clip travels inside it, as text.

    mp4, webm   limited-range yuv420p, converted and tagged as BT.709
                https://www.itu.int/rec/R-REC-BT.709
    gif         one palette for the whole clip, so the clip is held in memory until the end

Last comes the label (labels.py), since it may tell what was measured in the finished pictures.

Reading looks at the content, never the name, and opens only these three containers: FFmpeg would also follow
a playlist to wherever it points.

Left out: sound, variable frame rates, rotation flags of phone videos.
"""

import errno
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image

from broll.errors import BadOption, OutputError
from broll.media.labels import check_text, label

Frames = NDArray[np.uint8]  # [f, h, w, 3] RGB, or [h, w, 3] for one

FORMATS = ("mp4", "webm", "gif")

BT709 = 1  # matrix, primaries and transfer have the same number in H.273, FFmpeg and swscale
LIMITED = 1  # AVCOL_RANGE_MPEG: luma 16..235

CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "gif": "gif"}

CODEC_OPTIONS = {
    "mp4": {"crf": "18"},
    "webm": {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
}

SIGNATURES = {"mov": (4, b"ftyp"), "matroska": (0, b"\x1a\x45\xdf\xa3"), "gif": (0, b"GIF8")}

FAILURES = (OSError, av.FFmpegError)


def one_line(path: Path, failure: Exception) -> str:
    if getattr(failure, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write {path}: no space left on this disk"
    reason = getattr(failure, "strerror", None) or str(failure) or type(failure).__name__
    return f"cannot write {path}: {reason.splitlines()[0]}"


def check_codec(format: str) -> None:
    if CODECS[format] not in av.codecs_available:
        raise OutputError(f"{format} needs the encoder {CODECS[format]}, which this FFmpeg was built without")


def target_of(path: Path) -> Path:
    """Where the bytes go: through symbolic links, so that a link stays a link."""
    return Path(os.path.realpath(path))


def part_of(target: Path) -> Path:
    """The hidden sibling a file grows in; cut, so that a long name does not become too long."""
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.part")


def check_output(path: Path, format: str | None = None) -> str:
    """The format to write, or one clear line on why nothing can be written there. Leaves nothing behind."""
    ending = path.suffix.lower().removeprefix(".")
    chosen = ending if format is None else format.lower()
    if chosen not in FORMATS:
        asked = f"{path} ends in {path.suffix or 'nothing'}" if format is None else f"format is {format!r}"
        raise BadOption(f"{asked}; it must be one of {', '.join(FORMATS)}")
    check_codec(chosen)
    try:
        target = target_of(path)
        if target.is_dir():
            raise OutputError(f"{path} is a folder; give the name of a file")
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} is a device, not a file")
        if not target.parent.is_dir():
            raise OutputError(f"cannot write {path}: there is no folder {target.parent}")
        if len(os.fsencode(target.name)) > 255:
            raise OutputError(
                f"cannot write {path.parent}: a name of {len(target.name)} characters is too long"
            )
        part = part_of(target)
        try:
            part.touch(exist_ok=False)
        finally:
            part.unlink(missing_ok=True)
    except OSError as failure:
        raise OutputError(one_line(path, failure)) from failure
    except ValueError as failure:  # a name with a NUL or a lone surrogate
        raise OutputError(f"{str(path)!r} cannot be the name of a file") from failure
    return chosen


class YuvFile:
    """mp4 or webm: every frame is encoded when it comes."""

    def __init__(
        self,
        part: Path,
        *,
        width: int,
        height: int,
        fps: int,
        container: str,
    ) -> None:
        self._next = 0
        self._fps = fps
        self._container = av.open(str(part), "w", format=container)
        stream = self._container.add_stream(
            CODECS[container], rate=fps, options=dict(CODEC_OPTIONS[container])
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        self._stream = stream

    def add(self, picture: Frames) -> None:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED
        )
        frame.pts, frame.time_base = self._next, Fraction(1, self._fps)
        self._next += 1
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        with suppress(*FAILURES):
            self._container.close()


class GifFile:
    """The frames wait in the filter graph, because the palette is known only after the last one."""

    def __init__(
        self,
        part: Path,
        *,
        width: int,
        height: int,
        fps: int,
        container: str,
    ) -> None:
        self._part = part
        self._next = 0
        self._delay = max(2, round(100 / fps))  # centiseconds; browsers slow down anything below 2
        self._memory = io.BytesIO()
        self._container = av.open(self._memory, "w", format=container)
        self._stream = self._container.add_stream(CODECS[container], rate=100)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "pal8"

        graph = Graph()
        source = graph.add_buffer(
            width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 100)
        )
        split, palette = graph.add("split"), graph.add("palettegen")
        use, sink = graph.add("paletteuse", "diff_mode=rectangle"), graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        self._graph, self._source, self._sink = graph, source, sink

    def add(self, picture: Frames) -> None:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = self._next * self._delay, Fraction(1, 100)
        self._next += 1
        self._source.push(frame)

    def _encode(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._delay  # the last frame has no next one to be timed by
            self._container.mux(packet)

    def finish(self) -> None:
        self._source.push(None)
        with suppress(EOFError):  # the end of the graph; FFmpeg's own class inherits from it
            while True:
                self._encode(self._sink.pull())
        self._encode(None)
        self._container.close()
        self._part.write_bytes(self._memory.getvalue())

    def abandon(self) -> None:
        with suppress(*FAILURES):
            self._container.close()


class VideoWriter:
    """A file that is whole or absent.

    with VideoWriter(path, width=832, height=480, fps=16, format="mp4", metadata=recipe) as video:
        for frames in chunks:
            video.write(frames)

    mp4 and webm stream: memory does not grow with the clip. A gif is held in memory until the end. What the file
    says about itself may depend on what is in it: `metadata` is then a function of the file without it.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: int,
        format: str,
        metadata: str | Callable[[Path], str] = "",
    ) -> None:
        if format not in FORMATS:
            raise BadOption(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise OutputError(f"a video of {width}x{height} cannot be written; both sides must be even")
        if fps < 1:
            raise OutputError(f"fps is {fps}; it must be at least 1")
        if isinstance(metadata, str):
            check_text(metadata)
        check_codec(format)
        self._metadata = metadata
        self._path = path
        self._target = target_of(path)
        self._part = part_of(self._target)
        self._size = (height, width, 3)
        self._kind = GifFile if format == "gif" else YuvFile
        self._options: dict[str, Any] = {
            "width": width, "height": height, "fps": fps, "container": format
        }  # fmt: skip
        self._file: YuvFile | GifFile | None = None
        self._written = 0

    def __enter__(self) -> Self:
        try:
            self._part.touch(exist_ok=False)
            self._file = self._kind(self._part, **self._options)
        except BaseException as failure:
            self._discard()
            if isinstance(failure, FAILURES):
                raise OutputError(one_line(self._path, failure)) from failure
            raise
        return self

    def write(self, frames: Frames) -> None:
        """Append [f, h, w, 3]. What is written does not depend on how the clip is cut into calls."""
        assert self._file is not None, "write() belongs inside the with block"
        assert frames.dtype == np.uint8, frames.dtype
        assert frames.ndim == 4 and frames.shape[1:] == self._size, (frames.shape, self._size)
        try:
            for picture in frames:
                self._file.add(np.ascontiguousarray(picture))
                self._written += 1
        except FAILURES as failure:
            raise OutputError(one_line(self._path, failure)) from failure

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._move_into_place()
        except FAILURES as failure:
            raise OutputError(one_line(self._path, failure)) from failure
        finally:
            self._discard()

    def _move_into_place(self) -> None:
        assert self._file is not None
        if not self._written:
            raise OutputError(f"no frames came, so {self._path} was not written")
        self._file.finish()
        text = self._metadata if isinstance(self._metadata, str) else self._metadata(self._part)
        label(self._part, self._options["container"], text)
        self._part.replace(self._target)

    def _discard(self) -> None:
        try:
            if self._file is not None:
                self._file.abandon()
        finally:
            self._file = None
            with suppress(OSError):
                self._part.unlink(missing_ok=True)


@dataclass(frozen=True)
class VideoInfo:
    width: int
    height: int
    frames: int
    fps: float
    seconds: float
    codec: str
    size_bytes: int


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The container, or BadOption. Its kind is told by its first bytes and by nothing else."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise BadOption(f"cannot read {path}: {reason}") from failure
    found = [name for name, (at, magic) in SIGNATURES.items() if start[at : at + len(magic)] == magic]
    if not found:
        raise BadOption(f"{path} is not a video; it must be one of {', '.join(FORMATS)}")
    try:
        with av.open(
            str(path.absolute()), format=found[0], options={"protocol_whitelist": "file"}
        ) as container:
            if not container.streams.video:
                raise BadOption(f"{path} has no picture in it")
            yield container
    except FAILURES as failure:
        raise BadOption(f"{path} is damaged: {getattr(failure, 'strerror', failure)}") from failure


def gif_comment_of(path: Path) -> str:
    try:
        with path.open("rb") as file, GifImagePlugin.GifImageFile(file) as picture:
            comment = picture.info.get("comment", b"")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as failure:
        raise BadOption(f"{path} is damaged: {failure}") from failure
    return bytes(comment).decode(errors="replace")


def read_metadata(path: Path) -> str:
    """The text that VideoWriter was given."""
    with opened(path) as container:
        if container.format.name == "gif":
            text = gif_comment_of(path)
        else:
            text = next((v for k, v in container.metadata.items() if k.lower() == "comment"), "")
    if not text:
        raise BadOption(f"{path} was not made by broll: it carries no settings")
    return text


def read_frames(path: Path) -> Iterator[Frames]:
    """[h, w, 3], one by one; YUV is taken to be BT.709, as it is in everything broll writes."""
    with opened(path) as container:
        for frame in container.decode(video=0):
            yield frame.reformat(format="rgb24", src_colorspace=BT709).to_ndarray()


def probe(path: Path) -> VideoInfo:
    with opened(path) as container:
        stream = container.streams.video[0]
        frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        fps = float(stream.guessed_rate or stream.average_rate or 0)
        return VideoInfo(
            width=stream.width,
            height=stream.height,
            frames=frames,
            fps=fps,
            seconds=frames / fps if fps else 0.0,
            codec=stream.codec_context.name,
            size_bytes=path.stat().st_size,
        )
