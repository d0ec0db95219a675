"""The transformer's blocks, streamed: two are on the device, the one that runs and the one that comes.

    a block begins    wait until its matrices are there, then begin to bring those of the block after it

    CPU     a thread reads them from the file, in the dtype that is computed in, into one of two rooms
    CUDA    one copy from pinned main memory, on a stream of its own; if main memory is too small to hold them all, the
            thread reads the file into one pinned desk, and they are copied from there

The layers and the numbers are the same as with everything in memory, so the bits are. Quantized matrices travel in
their bytes. What is no matrix of a block stays where it is: norms, biases, modulation, embeddings, head, VACE's
projections, and LoRAs beside.

load.py leaves the matrices on the meta device (`Away` says which), and then has them streamed (`stream`).
"""

import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from broll.engine import quantized, reading, weights
from broll.engine.dequantize import KINDS
from broll.engine.packed import PackedLinear
from broll.engine.quantized import Quantized
from broll.engine.stored import PLAIN, Entry, Stored
from broll.engine.transformer import Transformer
from broll.errors import BadCheckpoint

ROOMS = 2
ALIGNED = 256  # bytes: where a matrix begins in its room
MATRIX = re.compile(
    r"(?P<block>(?:vace_)?blocks\.\d+)\.(?P<layer>(?:self|cross)_attn\.(?:[qkvo]|[kv]_img)|ffn\.\d)\.weight"
)
Wait = Callable[[], object]
Facts = tuple[int, int]  # of a file: its size, when it was changed


class Away:
    """The matrices that are not read when a model is loaded, and where they will be read from."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.files: dict[Path, Facts] = {}

    def __call__(self, name: str, entry: Entry) -> bool:
        if MATRIX.fullmatch(name) is None or len(entry.shape) != 2:
            return False
        self.entries[name] = entry
        if entry.span is not None and entry.span[0] not in self.files:
            self.files[entry.span[0]] = facts(entry.span[0])
        return True

    def settle(self, model: nn.Module, source: Path, dtype: Callable[[str], torch.dtype]) -> None:
        """Layers as they will be, on the meta device still. Of quantized ones the scale is small, and stays."""
        desk = quantized.Desk()
        for name, entry in list(self.entries.items()):
            layer = model.get_submodule(name.removesuffix(".weight"))
            weight = torch.empty(entry.shape, dtype=dtype(name), device="meta")
            if entry.kind in KINDS:
                stored = weights.read(entry, source, dtype(name))
                assert isinstance(stored, Stored)
                bytes_ = torch.empty_like(stored.data, device="meta")
                if quantized.install(model, name, replace(stored, data=bytes_), dtype(name), desk):
                    continue
                weight = stored.tensor(dtype(name))  # in rows that its layer cannot use
                del self.entries[name]
            layer.weight = nn.Parameter(weight, requires_grad=False)


def move(model: Transformer, device: torch.device) -> Transformer:
    """As `model.to(device)`, for all that is there."""
    return model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


# --- a block and its matrices -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Matrix:
    """One of a block: its place in the file, in the room, and in the model."""

    entry: Entry
    layer: nn.Module  # a Linear, packed or not, or a Quantized
    shown: Tensor  # what the layer computes with; its data is exchanged, but for packed layers
    blank: Tensor  # what it shows while the block is away
    start: int  # in the room

    @property
    def size(self) -> int:
        return self.blank.numel() * self.blank.itemsize

    def inside(self, room: Tensor) -> Tensor:
        return room[self.start : self.start + self.size].view(self.blank.dtype).view(self.blank.shape)

    def read(self, room: Tensor) -> None:
        """From the file, cast on the way."""
        target = self.inside(room)
        if self.entry.span is not None:
            kind = torch.uint8 if self.entry.kind in KINDS else PLAIN[self.entry.kind]
            target.copy_(reading.mapped(self.entry, kind).view(target.shape))
            return
        value = self.entry.read()
        target.copy_((value.data if isinstance(value, Stored) else value).view(target.shape))

    def enter(self, room: Tensor) -> None:
        if isinstance(self.layer, PackedLinear):
            self.layer.weight = PackedLinear.laid_out(self.inside(room))
        else:
            self.shown.data = self.inside(room)

    def leave(self) -> None:
        if isinstance(self.layer, PackedLinear):
            self.layer.weight = None
        else:
            self.shown.data = self.blank


@dataclass(frozen=True, eq=False)
class Cargo:
    """A block's matrices, as one run of bytes."""

    block: nn.Module
    matrices: tuple[Matrix, ...]
    files: dict[Path, Facts]  # that they are read from, as they were when the model was loaded

    @property
    def size(self) -> int:
        return max(matrix.start + matrix.size for matrix in self.matrices)

    def read(self, room: Tensor) -> None:
        for path, before in self.files.items():
            if facts(path) != before:
                raise BadCheckpoint(f"{path} was changed while its model is in use: load the model again")
        ahead = reading.Ahead()
        for matrix in sorted(self.matrices, key=lambda matrix: reading.order(matrix.entry)):
            ahead(matrix.entry)
            matrix.read(room)


def facts(path: Path) -> Facts:
    try:
        found = path.stat()
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read any more: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def nothing(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Looks like a matrix and takes no memory; who computes with it gets NaN, nothing plausible."""
    value = math.nan if dtype.is_floating_point else 0
    return torch.full((1,), value, dtype=dtype, device=device).expand(shape)


def cargoes(model: Transformer, away: Away, device: torch.device) -> list[Cargo]:
    """Of every block, in the order in which they run. From now on the model shows nothing in their places."""
    by_block: dict[str, list[tuple[str, Entry]]] = {}
    for name, entry in away.entries.items():
        match = MATRIX.fullmatch(name)
        assert match is not None
        by_block.setdefault(match["block"], []).append((match["layer"], entry))
    return [
        cargo(model.get_submodule(name), by_block[name], away.files, device)
        for name in order(model)
        if name in by_block
    ]


def order(model: Transformer) -> Iterator[str]:
    """Names of the blocks; each hint of VACE comes after the block that it is added to."""
    for layer in range(model.config.num_layers):
        yield f"blocks.{layer}"
        if layer in model.config.vace_layers:
            yield f"vace_blocks.{model.config.vace_layers.index(layer)}"


def cargo(
    block: nn.Module, entries: Sequence[tuple[str, Entry]], files: dict[Path, Facts], device: torch.device
) -> Cargo:
    matrices: list[Matrix] = []
    start = 0
    for own, entry in entries:
        layer = layer_of(block, own)
        matrices.append(placed(entry, layer, start, device))
        start += math.ceil(matrices[-1].size / ALIGNED) * ALIGNED
    paths = {entry.span[0] for _, entry in entries if entry.span is not None}
    return Cargo(block, tuple(matrices), {path: files[path] for path in paths})


def layer_of(block: nn.Module, own: str) -> nn.Module:
    """By its official name. A packed ffn has no activation of its own, so its second Linear has another number."""
    parent, _, last = own.rpartition(".")
    module = block.get_submodule(parent)
    if isinstance(module, nn.Sequential):
        return module[0 if last == "0" else -1]
    return module.get_submodule(last)


def placed(entry: Entry, layer: nn.Module, start: int, device: torch.device) -> Matrix:
    """The layer has the matrix's shape and nothing in it."""
    if isinstance(layer, Quantized):
        layer.data = blank = nothing(layer.data.shape, torch.uint8, device)
        return Matrix(entry, layer, layer.data, blank.detach(), start)
    if isinstance(layer, PackedLinear):
        assert layer.bias is not None
        blank = nothing(torch.Size(entry.shape), layer.bias.dtype, device)
        return Matrix(entry, layer, blank, blank, start)
    assert isinstance(layer, nn.Linear)
    blank = nothing(layer.weight.shape, layer.weight.dtype, device)
    layer.weight = nn.Parameter(blank, requires_grad=False)
    return Matrix(entry, layer, layer.weight, blank, start)


# --- how they come ----------------------------------------------------------------------------------------


Bring = Callable[[Cargo, Tensor], Wait]  # begin; what is given back waits until the block may run


class Reader:
    """On a CPU, from the file."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "broll-blocks")

    def bring(self, cargo: Cargo, room: Tensor) -> Wait:
        return self._thread.submit(cargo.read, room).result


class Copier:
    """To a GPU, from pinned main memory, where all blocks lie ready."""

    def __init__(self, cargoes: Sequence[Cargo], device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._ready = {cargo: pinned(cargo.size) for cargo in cargoes}
        for cargo, memory in self._ready.items():
            cargo.read(memory)

    def bring(self, cargo: Cargo, room: Tensor) -> Wait:
        """Whatever was queued before has used the room, and is waited for."""
        queued = torch.cuda.current_stream(self._device).record_event()
        return self._arrival(send(self._ready[cargo], room[: cargo.size], self._stream, queued))

    def _arrival(self, arrived: torch.cuda.Event) -> Wait:
        return lambda: torch.cuda.current_stream(self._device).wait_event(arrived)


class DeskCopier:
    """To a GPU, from the file, by way of one pinned desk."""

    def __init__(self, cargoes: Sequence[Cargo], device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._thread = ThreadPoolExecutor(1, "broll-blocks")
        self._desk = pinned(max(cargo.size for cargo in cargoes))
        self._left = torch.cuda.Event()  # the last block has left the desk

    def bring(self, cargo: Cargo, room: Tensor) -> Wait:
        queued = torch.cuda.current_stream(self._device).record_event()
        carried = self._thread.submit(self._carry, cargo, room[: cargo.size], queued)
        return lambda: torch.cuda.current_stream(self._device).wait_event(carried.result())

    def _carry(self, cargo: Cargo, room: Tensor, queued: torch.cuda.Event) -> torch.cuda.Event:
        self._left.synchronize()
        cargo.read(self._desk)
        self._left = send(self._desk[: cargo.size], room, self._stream, queued)
        return self._left


def send(
    memory: Tensor, room: Tensor, stream: torch.cuda.Stream, after: torch.cuda.Event
) -> torch.cuda.Event:
    """Copy on a stream of its own, once the event has come; the event of its end."""
    stream.wait_event(after)
    with torch.cuda.stream(stream):
        room.copy_(memory, non_blocking=True)
        room.record_stream(stream)
        return stream.record_event()


def pinned(size: int) -> Tensor:
    """Main memory that a GPU copies from by itself.

    Registered, not allocated as such: torch's allocator would take the next power of two, and never give it back.
    """
    memory = torch.empty(size, dtype=torch.uint8)
    code = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), size, 1))
    if code != 0:
        raise MemoryError(f"{size} bytes of main memory cannot be pinned (CUDA error {code})")
    weakref.finalize(memory, unpin, memory.data_ptr()).atexit = False
    return memory


def unpin(pointer: int) -> None:
    torch.cuda.synchronize()  # a copy may still be under way
    torch.cuda.cudart().cudaHostUnregister(pointer)


# --- streaming --------------------------------------------------------------------------------------------


@dataclass
class Room:
    memory: Tensor
    cargo: Cargo | None = None  # what is in it, or on its way
    wait: Wait = lambda: None


class Streaming:
    """Stands before every block, as a hook: whoever runs blocks, and in whichever order, need not know."""

    def __init__(self, cargoes: Sequence[Cargo], bring: Bring, device: torch.device) -> None:
        self._next = dict(zip(cargoes, [*cargoes[1:], cargoes[0]], strict=True))
        self._carrier = bring
        size, count = max(cargo.size for cargo in cargoes), min(ROOMS, len(cargoes))
        self._rooms = [Room(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(count)]
        self._inside: Cargo | None = None
        for cargo in cargoes:
            cargo.block.register_forward_pre_hook(partial(self._begin, cargo))

    def _begin(self, cargo: Cargo, *_: Any) -> None:
        with torch.inference_mode(mode=False), torch.no_grad():
            self._leave()
            room = next((room for room in self._rooms if room.cargo is cargo), None)
            if room is None:
                room = self._rooms[0]
                self._bring(cargo, room)
            try:
                room.wait()
            except BaseException:
                room.cargo = None  # it is not there, and will be brought anew
                raise
            for matrix in cargo.matrices:
                matrix.enter(room.memory)
            self._inside = cargo
            following = self._next[cargo]
            free = next((room for room in self._rooms if room.cargo is not cargo), None)
            if free is not None and free.cargo is not following:
                self._bring(following, free)

    def _leave(self) -> None:
        if self._inside is not None:
            for matrix in self._inside.matrices:
                matrix.leave()
        self._inside = None

    def _bring(self, cargo: Cargo, room: Room) -> None:
        room.cargo, room.wait = cargo, self._carrier(cargo, room.memory)


@torch.inference_mode(mode=False)  # so that the tensors may be used anywhere
def stream(model: Transformer, away: Away, device: torch.device, pinnable: int = 0) -> None:
    """Have the blocks come when they run. `pinnable`: bytes of main memory that may be pinned for a GPU."""
    found = cargoes(model, away, device)
    if not found:
        return
    if device.type != "cuda":
        bring = Reader().bring
    elif sum(cargo.size for cargo in found) <= pinnable:
        bring = Copier(found, device).bring
    else:
        bring = DeskCopier(found, device).bring
    Streaming(found, bring, device)
