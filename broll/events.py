"""What an executor is told and what it says: plain data and bytes, nothing else.

    Work -> Loaded, (Stage, Progress, Preview, Snapshot)*, and then exactly one of Clip, Stopped, Failed

`pack` and `unpack` turn one of them into bytes for a pipe: a JSON header, then its bytes fields one after another.
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

STAGES = ("encode", "denoise", "decode", "finish", "deliver")


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt at one job."""

    job_id: str
    model: str
    spec: str  # VideoSpec as JSON, resolved
    pictures: dict[str, bytes] = field(default_factory=dict)  # sha256 -> PNG
    snapshot: bytes | None = None  # go on from here
    snapshot_s: float = 30.0  # seconds between snapshots, or 2 % of the time, whichever is longer


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is in memory; the work begins."""

    model: str
    seconds: float
    shared: bool = False  # others of its kind may be made with it


@dataclass(frozen=True, slots=True)
class Stage:
    name: str  # one of STAGES


@dataclass(frozen=True, slots=True)
class Progress:
    stage: str
    done: int
    total: int
    percent: float  # of the whole job
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    webp: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    step: int
    data: bytes
    sha256: str

    @classmethod
    def of(cls, step: int, data: bytes) -> "Snapshot":
        return cls(step, data, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Clip:
    """The finished files by variant: video (mp4), thumbnail and spritesheet (webp)."""

    files: dict[str, bytes]
    record: str  # what the clip's file says about itself, as JSON
    denoise_s: float = 0.0  # of this attempt; 0 if there was none
    decode_s: float = 0.0
    steps: int = 0  # denoised in this attempt
    resumed_elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """Asked to stop, and stopped."""


@dataclass(frozen=True, slots=True)
class Failed:
    code: str
    message: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """To a running executor. `now`: between two blocks; else at the next step, with a snapshot."""

    now: bool


Event = Loaded | Stage | Progress | Preview | Snapshot | Clip | Stopped | Failed
Message = Work | Stop | Event
KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Work, Stop, Loaded, Stage, Progress, Preview, Snapshot, Clip, Stopped, Failed)
}
FINAL = (Clip, Stopped, Failed)


def pack(message: Message) -> bytes:
    blobs: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            blobs.append(value)
            return {"bytes": len(value)}
        if isinstance(value, dict):
            return {"dict": {key: plain(v) for key, v in value.items()}}
        return value

    fields = {f.name: plain(getattr(message, f.name)) for f in dataclasses.fields(message)}
    header = json.dumps({"kind": type(message).__name__, "fields": fields}).encode()
    return b"".join([struct.pack(">I", len(header)), header, *blobs])


def unpack(stream: BinaryIO) -> Iterator[Any]:
    """Messages until the stream ends; one cut off in its middle is as if it had never been sent."""
    while True:
        size = stream.read(4)
        if len(size) < 4:
            return
        length = struct.unpack(">I", size)[0]
        header = stream.read(length)
        if len(header) < length:
            return
        told = json.loads(header)
        try:
            fields = {name: filled(value, stream) for name, value in told["fields"].items()}
        except EOFError:
            return
        yield KINDS[told["kind"]](**fields)


def filled(value: Any, stream: BinaryIO) -> Any:
    if isinstance(value, dict) and "bytes" in value:
        data = stream.read(value["bytes"])
        if len(data) < value["bytes"]:
            raise EOFError
        return data
    if isinstance(value, dict):
        return {key: filled(v, stream) for key, v in value["dict"].items()}
    return value
