"""The text that travels inside a clip, put there after the pictures.

mp4 and webm keep it at their front, where it must be known first: the packets are copied into a new file, unchanged,
and an mp4's index goes to the front too (faststart). A gif has room for it behind its head.
"""

from contextlib import suppress
from pathlib import Path

import av

from broll.errors import OutputError

OPTIONS = {"mp4": {"movflags": "+faststart"}, "webm": {}}


def check_text(text: str) -> None:
    if "\0" in text or text.encode(errors="ignore").decode() != text:
        raise OutputError("the metadata is not plain text: it has a NUL or half a character in it")


def label(path: Path, format: str, text: str) -> None:
    """Give a finished file its text; the file is whole at any time, the old one or the new one."""
    check_text(text)
    labelled = path.with_name(path.name + ".labelled")
    try:
        if format == "gif":
            data = path.read_bytes()
            head = gif_head_size(data)
            labelled.write_bytes(data[:head] + gif_comment(text) + without_comment(data[head:]))
        else:
            copy(path, labelled, format, text)
        labelled.replace(path)
    finally:
        with suppress(OSError):
            labelled.unlink(missing_ok=True)


def copy(path: Path, target: Path, format: str, text: str) -> None:
    with (
        av.open(str(path)) as old,
        av.open(str(target), "w", format=format, container_options=OPTIONS[format]) as new,
    ):
        if text:
            new.metadata["comment"] = text
        source = old.streams.video[0]
        stream = new.add_stream_from_template(source)
        for packet in old.demux(source):
            if packet.dts is not None:  # the last one only says that there are no more
                packet.stream = stream
                new.mux(packet)


def gif_comment(text: str) -> bytes:
    data = text.encode()
    blocks = [data[i : i + 255] for i in range(0, len(data), 255)]
    return (
        b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\x00" if blocks else b""
    )


def without_comment(rest: bytes) -> bytes:
    """What follows the head, less an earlier label."""
    if rest[:2] != b"\x21\xfe":
        return rest
    at = 2
    while rest[at]:
        at += 1 + rest[at]
    return rest[at + 1 :]


def gif_head_size(data: bytes) -> int:
    """Header, screen, global palette and the loop extension, which browsers want before anything else."""
    flags = data[10]
    size = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    return size + 19 if data[size : size + 2] == b"\x21\xff" else size
