"""Processes that make one clip together, and what they send each other.

    Layout    how many do what: cfg prompts x ring blocks of tokens x ulysses groups of heads
    Team      all of them, from when they were started; one leads
    Mesh      the same in one layout, as groups that talk among themselves (torch's device mesh)
    Group     those functions by which they talk

A function of a Group is called by all of its processes at the same place of the same work, or they wait for ever. What
is sent is bytes, so that no number changes on the way, whatever its dtype and the library (gloo on CPUs, NCCL on GPUs).

    device mesh    https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.device_mesh.init_device_mesh
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from broll.errors import BadOption

AUTO = "auto"
PATIENCE = timedelta(days=1000)  # of who waits to be told what to do: that may take all night


# --- layouts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """cfg: the two prompts side by side; ulysses: tokens for heads; ring: keys and values handed round."""

    cfg: int = 1
    ulysses: int = 1
    ring: int = 1

    @property
    def size(self) -> int:
        return self.cfg * self.tokens

    @property
    def tokens(self) -> int:
        """In so many parts the tokens are cut."""
        return self.ring * self.ulysses

    def __str__(self) -> str:
        parts = {"cfg": self.cfg, "ulysses": self.ulysses, "ring": self.ring}
        return ",".join(f"{name}={count}" for name, count in parts.items() if count > 1) or "cfg=1"


def parse(words: str) -> Layout | None:
    """`cfg=2,ulysses=4,ring=1`, in any order, each at most once; None is `auto`."""
    if words == AUTO:
        return None
    found: dict[str, int] = {}
    for word in words.split(","):
        name, _, count = word.strip().partition("=")
        good = (
            name in ("cfg", "ulysses", "ring") and name not in found and count.isdecimal() and len(count) < 5
        )
        if not good or int(count) < 1 or (name == "cfg" and int(count) > 2):
            raise BadOption(
                f"parallel is {words!r}; possible are auto, or such as cfg=2,ulysses=4,ring=1 (cfg is 1 or 2)"
            )
        found[name] = int(count)
    return Layout(**found)


def chosen(words: str, size: int, *, guided: bool, heads: int) -> Layout:
    """The layout of so many processes for a clip; `guided`: both prompts are computed in all of its steps."""
    asked = parse(words)
    if asked is None:
        cfg = 2 if guided and size % 2 == 0 else 1
        rest = size // cfg
        ulysses = max(n for n in range(1, rest + 1) if rest % n == 0 and n <= heads)
        return Layout(cfg, ulysses, rest // ulysses)
    if asked.size != size:
        raise BadOption(f"parallel {words} is for {asked.size} processes, and here are {size}")
    if asked.cfg > 1 and not guided:
        raise BadOption(
            "parallel cfg=2 computes the two prompts of guidance side by side, and this clip does not need both in all "
            "of its steps; auto, ulysses and ring are possible"
        )
    return asked


def shares(count: int, processes: int) -> list[int]:
    """How many each gets: as equal as can be, the first ones more."""
    return [count // processes + (i < count % processes) for i in range(processes)]


# --- talking ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Some processes, in order; `rank` is this one's place among them."""

    handle: Any  # torch's; its own type differs between versions
    rank: int
    size: int

    @classmethod
    def of(cls, handle: Any) -> "Group":
        return cls(handle, dist.get_rank(handle), dist.get_world_size(handle))

    def spread(self, x: Tensor, source: int) -> Tensor:
        """What the process `source` has, for all; the others give a tensor of its shape."""
        x = x.contiguous()
        dist.broadcast(as_bytes(x), src=self._name(source), group=self.handle)
        return x

    def gather(self, x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
        """All parts of a tensor, one after the other along `dim`; sizes[i] is there what process i has."""
        most = max(sizes)
        shape = list(x.shape)
        shape[dim] = most - shape[dim]
        own = torch.cat([x, x.new_zeros(shape)], dim=dim) if shape[dim] else x.contiguous()
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in sizes]
        dist.all_gather([as_bytes(part) for part in parts], as_bytes(own), group=self.handle)
        return torch.cat(
            [part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim=dim
        )

    def exchange(self, outgoing: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """outgoing[i] goes to process i, from which comes what has shapes[i]."""
        sent = torch.cat([part.reshape(-1) for part in outgoing])
        counts = [math.prod(shape) for shape in shapes]
        got, width = sent.new_empty(sum(counts)), sent.itemsize
        dist.all_to_all_single(
            as_bytes(got), as_bytes(sent),
            [count * width for count in counts], [part.numel() * width for part in outgoing], group=self.handle,
        )  # fmt: skip
        return [part.view(shape) for part, shape in zip(got.split(counts), shapes, strict=True)]

    def trade(self, sent: Sequence[tuple[Tensor, int]], got: Sequence[tuple[Tensor, int]]) -> "Trade":
        """Begin to send tensors to these processes, and to receive others; all of them contiguous."""
        ways = [(dist.isend, sent), (dist.irecv, got)]
        todo = [
            dist.P2POp(way, as_bytes(x), self._name(peer), group=self.handle)
            for way, pairs in ways
            for x, peer in pairs
        ]
        return Trade(dist.batch_isend_irecv(todo) if todo else [], [x for x, _ in (*sent, *got)])

    def _name(self, place: int) -> int:
        """Among all processes."""
        return dist.get_global_rank(self.handle, place)


@dataclass(frozen=True)
class Trade:
    """What is on its way, and the tensors that must live until it is there."""

    works: list[Any]
    tensors: list[Tensor]

    def wait(self) -> None:
        for work in self.works:
            work.wait()


def as_bytes(x: Tensor) -> Tensor:
    """The same memory, in one row."""
    return x.view(-1).view(torch.uint8)


# --- all of them ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mesh:
    """The processes in one layout, as this one sees them."""

    layout: Layout
    cfg: Group  # the same tokens, of the other prompt
    tokens: Group  # all tokens of one prompt, in order: ring blocks, and in each of them those of ulysses
    ring: Group
    ulysses: Group

    @classmethod
    def of(cls, layout: Layout, device: str) -> "Mesh":
        two = init_device_mesh(device, (layout.cfg, layout.tokens), mesh_dim_names=("cfg", "tokens"))
        shape = layout.cfg, layout.ring, layout.ulysses
        three = init_device_mesh(device, shape, mesh_dim_names=("cfg", "ring", "ulysses"))
        handles = (
            two.get_group("cfg"),
            two.get_group("tokens"),
            three.get_group("ring"),
            three.get_group("ulysses"),
        )
        return cls(layout, *map(Group.of, handles))


class Team:
    """All processes that torch.distributed knows. `words`: the layout that was asked for, or auto."""

    def __init__(self, device: torch.device, words: str = AUTO) -> None:
        self.device, self.words = device, words
        self.all = Group.of(dist.group.WORLD)
        self.rank, self.size = self.all.rank, self.all.size
        self.halted = False  # the last work was stopped, by all of them together
        self.broken = False  # somebody stopped alone: the others wait for what will never come
        self._meshes: dict[Layout, Mesh] = {}
        self._quiet = dist.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def mesh(self, layout: Layout) -> Mesh:
        """Made once: groups are dear."""
        if layout not in self._meshes:
            self._meshes[layout] = Mesh.of(layout, self.device.type)
        return self._meshes[layout]

    def say(self, order: object) -> None:
        """Tell all others what to do next."""
        dist.broadcast_object_list([order], src=0, group=self._quiet)

    def hear(self) -> Any:
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0, group=self._quiet)
        return heard[0]

    def go(self, *, stop: bool = False) -> bool:
        """Whether all go on. The one that leads decides; the others, whatever they give, learn it."""
        word = torch.tensor([stop], dtype=torch.uint8)
        dist.broadcast(word, src=0, group=self._quiet)
        self.halted = bool(word[0])
        return not self.halted

    def collect(self, own: object) -> list[Any]:
        """What each has to tell, in order."""
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, own, group=self._quiet)
        return told


def backend(device: str) -> str:
    """For tensors on this device, and for words, which are on the CPU."""
    return "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
