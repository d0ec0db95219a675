"""Files that hold tensors: safetensors, torch's pickles, GGUF; one file, or shards with an index.

What is opened is names, shapes and kinds; the numbers stay in the file, mapped into memory, until they are asked
for. A file that is damaged, cut short or not what it says is one line that names it and, where there is one, the first
tensor that is wrong. Pickles are read with weights_only=True, so they cannot run code.

An index comes from a stranger. The files that it names lie in its own folder: no path, no way up, no link that leads
out of it (but the one that the Hugging Face hub's own cache makes, from `snapshots` to `blobs`).
"""

import json
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from broll.engine.dequantize import KINDS
from broll.engine.stored import PLAIN, READABLE, Entries, Entry, Span, Stored, Value, as_rows
from broll.errors import BadCheckpoint, BrollError, MissingExtra

SAFETENSORS, PICKLES, GGUFS = (".safetensors", ".sft"), (".pth", ".pt", ".bin"), (".gguf",)
SUFFIXES = (*SAFETENSORS, *PICKLES, *GGUFS)
LARGEST_HEADER = 100_000_000  # bytes; the safetensors library's own limit
LARGEST_INDEX = 50_000_000
KIND_OF: dict[torch.dtype, str] = {
    **{dtype: kind for kind, dtype in PLAIN.items()},
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
}
INDEX = ".safetensors.index.json"


def open_tensors(paths: list[Path]) -> Entries:
    """Names in these files, each with its shape, its kind and a way to read it."""
    entries: Entries = {}
    for path in paths:
        own = {name: replace(entry, file=path) for name, entry in open_file(path)[0].items()}
        twice = sorted(entries.keys() & own.keys())
        if twice:
            raise BadCheckpoint(f"{path} has {twice[0]}, which another of its shards has too")
        entries |= own
    return entries


def open_file(path: Path) -> tuple[Entries, dict[str, str]]:
    """What is in one file, and what its header says about it: `architecture`, `_quantization_metadata`."""
    if path.suffix not in SUFFIXES:
        raise BadCheckpoint(f"{path} is no file of weights; possible are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise BadCheckpoint(f"{path} is missing")
    try:
        if path.suffix in SAFETENSORS:
            return _open_safe(path)
        return (_open_pickle(path), {}) if path.suffix in PICKLES else _open_gguf(path)
    except BrollError:
        raise
    except Exception as error:  # each library raises whatever the damaged file makes it raise
        raise BadCheckpoint(
            f"{path} cannot be read: {_reason(path, error)} (damaged or cut short?)"
        ) from error


def _reason(path: Path, error: Exception) -> str:
    """One line; for safetensors with the first tensor that is not wholly there."""
    said = str(error).splitlines() or [type(error).__name__]
    beyond = _first_beyond(path) if path.suffix in SAFETENSORS else None
    return f"{beyond} lies beyond its end" if beyond else said[0][:200]


def _first_beyond(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(LARGEST_HEADER, path.stat().st_size):
                return None
            header = json.loads(file.read(length))
        left = path.stat().st_size - 8 - length
        ends = {name: info["data_offsets"] for name, info in header.items() if name != "__metadata__"}
        return min((n for n, (_, end) in ends.items() if end > left), key=lambda n: ends[n], default=None)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _open_safe(path: Path) -> tuple[Entries, dict[str, str]]:
    file = safe_open(path, framework="pt")
    spans, entries = _spans(path), {}
    for name in file.keys():  # noqa: SIM118  it is no dict
        facts = file.get_slice(name)
        shape, kind = tuple(facts.get_shape()), str(facts.get_dtype())
        read = partial(_read_safe, file, name, shape, kind)
        entries[name] = Entry(name, shape, kind, read, span=spans[name])
    return entries, dict(file.metadata() or {})


def _spans(path: Path) -> dict[str, Span]:
    """Where in the file the bytes of each tensor are. The library has checked the header before."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    offsets = {name: info["data_offsets"] for name, info in header.items() if name != "__metadata__"}
    return {name: (path, 8 + length + begin, end - begin) for name, (begin, end) in offsets.items()}


def _read_safe(file: Any, name: str, shape: tuple[int, ...], kind: str) -> Value:
    return as_stored(file.get_tensor(name), shape, kind)


def as_stored(tensor: Tensor, shape: tuple[int, ...], kind: str) -> Value:
    """Quantized kinds stay in their bytes."""
    return Stored(kind, shape, as_rows(tensor)) if kind in KINDS else tensor


def _open_pickle(path: Path) -> Entries:
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict):
        raise BadCheckpoint(f"{path} holds no names: it is a {type(state).__name__}")
    entries = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise BadCheckpoint(f"{path}: {name} is no plain tensor")
        shape, kind = tuple(tensor.shape), KIND_OF.get(tensor.dtype, str(tensor.dtype))
        entries[str(name)] = Entry(str(name), shape, kind, partial(as_stored, tensor.detach(), shape, kind))
    return entries


def _open_gguf(path: Path) -> tuple[Entries, dict[str, str]]:
    try:
        from broll.engine.gguf_file import open_gguf  # noqa: PLC0415  only those who have such a file need it
    except ImportError as error:
        raise MissingExtra(
            f'{path} needs {error.name}, which is not installed; to get it: pip install "broll[engine]"'
        ) from error
    architecture, entries = open_gguf(path)
    return entries, {"architecture": architecture} if architecture else {}


def check_kinds(entries: Entries, source: Path) -> None:
    """Refuse tensors that hold no numbers of a model."""
    for entry in entries.values():
        if entry.kind not in PLAIN and entry.kind not in KINDS:
            raise BadCheckpoint(
                f"{entry.file or source}: {entry.key} is of kind {entry.kind}; possible are {READABLE}"
            )


def shards(folder: Path, stem: str) -> list[Path]:
    """`stem`.safetensors, or the shards that its index names."""
    index = folder / f"{stem}{INDEX}"
    if not index.exists():
        single = folder / f"{stem}.safetensors"
        if single.exists():
            return [single]
        raise BadCheckpoint(f"{folder} has neither {single.name} nor {index.name}")
    return indexed(index)


def indexed(index: Path) -> list[Path]:
    """The shards of an index, each checked: it lies beside it, and holds what the index says."""
    wanted = _weight_map(index)
    files = {name: _beside(index, name) for name in sorted(set(wanted.values()))}
    for name, path in files.items():
        held = open_file(path)[0]
        for key, place in wanted.items():
            if place == name and key not in held:
                raise BadCheckpoint(f"{path} lacks {key}, which {index.name} says it has")
    return list(files.values())


def _weight_map(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > LARGEST_INDEX:
            raise BadCheckpoint(
                f"{index} is larger than {LARGEST_INDEX // 1_000_000} MB: it is no index of shards"
            )
        wanted = json.loads(index.read_bytes())["weight_map"]
        names = list(wanted.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadCheckpoint(f"{index} is not an index of shards") from error
    if not names:
        raise BadCheckpoint(f"{index} names no shard")
    for key, name in wanted.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise BadCheckpoint(f"{index} says that {key} is in {str(name)[:100]!r}, which is no shard")
    return dict(wanted)


def _beside(index: Path, name: str) -> Path:
    """The shard of this name, if it is a plain name of a file in the index's own folder."""
    folder = index.parent
    if "\0" in name or "\\" in name or Path(name).name != name:
        raise BadCheckpoint(f"{index} names {name!r}, which is not beside it")
    path = folder / name
    if not path.exists():
        raise BadCheckpoint(f"{folder} lacks {name}, which {index.name} names")
    inside = [
        folder.resolve(),
        *(p.parent / "blobs" for p in folder.resolve().parents if p.name == "snapshots"),
    ]
    if path.resolve().parent not in inside:
        raise BadCheckpoint(f"{index} names {name!r}, a link that leads out of its folder")
    return path
