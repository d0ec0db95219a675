"""Processes that make one clip together: one leads and the others follow, in all that has to be done by all.

    torchrun    started all of them: that with RANK 0 leads
    `group`     else the one there is starts so many less one on this machine, each with the next GPU

The leader is what a single process is, the command or a device's renderer: it decides, writes and prints. It tells the
others what it is about to do (an order), and all do it (follower.py). Before every event of a clip that the leader's
caller has seen, and before every block where a cancel is asked for, it says whether all go on; so they stop together.

A group lives and dies together. A follower whose leader is gone ends itself. A leader whose follower is gone ends
within seconds: by the error that its next word meets, or, if it waits for a GPU that waits for ever, by its watch.
Whatever stops one process alone (no memory, a broken GPU) so ends all; the next work gets a new group.
"""
# ruff: noqa: PLC0415  torch is loaded by who needs it

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broll import catalog
from broll.catalog import Installed
from broll.errors import BadOption, GroupLost
from broll.settings import Loading, Settings
from broll.spec import VideoSpec

if TYPE_CHECKING:
    from PIL import Image

    from broll.engine.config import ModelConfig
    from broll.engine.load import Parts
    from broll.engine.mesh import Team
    from broll.engine.pipeline import Decoded, Frames, Warned
    from broll.engine.sampler import Step

LOOP = Path("/sys/class/net/lo")
FOLLOWER = [sys.executable, "-m", "broll.follower"]
GRACE_S = 5.0  # for the leader to notice by itself that a follower is gone
CLOSE_S = 5.0  # for followers to end when they are told
LOST = 70  # exit status of who ends because another one did
SIGNS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


# --- orders -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """wiring.load."""

    model: Installed
    loading: Loading
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Merge:
    """loras.merged."""

    model: Installed
    spec: VideoSpec
    loading: Loading
    places: dict[str, Path]


@dataclass(frozen=True)
class Wear:
    """loras.on: the LoRAs of this spec."""

    spec: VideoSpec
    places: dict[str, Path]


@dataclass(frozen=True)
class Make:
    """pipeline.generate. `attention`: what computes it, where a kernel was dropped; `asked`: whether to go on is asked
    between blocks too.
    """

    spec: VideoSpec
    pictures: "dict[str, Image.Image]"
    resume: "Step | None"
    attention: str
    asked: bool


def tell(team: "Team | None", order: object) -> None:
    """The others, if there are any and this one leads."""
    if team is not None and team.leads:
        team.halted = False
        with known():
            team.say(order)


# --- how many, and which ----------------------------------------------------------------------------------


def started() -> int:
    """How many processes were started to work together, by torchrun or its like; 1: none but this."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def follows() -> bool:
    """Whether another process leads this one."""
    return started() > 1 and os.environ["RANK"] != "0"


def size(settings: Settings) -> int:
    return started() if started() > 1 else settings.group


def check(settings: Settings, spec: VideoSpec, config: "ModelConfig") -> str:
    """Refuse a resolved spec that these processes cannot make together; else what there is to say of it."""
    from broll.engine import mesh, parallel

    count = size(settings)
    if count == 1:
        asked = mesh.parse(settings.parallel)
        if asked is not None and asked.size > 1:
            raise BadOption(
                f"parallel {settings.parallel} is for {asked.size} processes, and this is one: start it with "
                f"torchrun --nproc-per-node {asked.size} -m broll, or set BROLL_GROUP={asked.size}"
            )
        return ""
    made = parallel.layout(settings.parallel, count, spec, config)
    parallel.check(made, spec, config, compile=settings.compile, attention=settings.attention)
    return f"{count} processes make it together: {made}"


def check_words(settings: Settings) -> None:
    """Refuse a layout that a service's groups cannot have, whatever the clip."""
    from broll.engine import mesh

    asked = mesh.parse(settings.parallel)
    if asked is not None and asked.size != settings.group:
        raise BadOption(
            f"parallel is {settings.parallel}, {asked.size} processes, and group is {settings.group}"
        )


def check_devices(settings: Settings) -> None:
    """Refuse a group on GPUs that are not here."""
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < settings.group:
        raise BadOption(f"group is {settings.group}, and this machine has {gpus} GPUs")


# --- joining ----------------------------------------------------------------------------------------------


def join(settings: Settings, rank: int, local: int, **how: Any) -> "Team":
    """The team, once all are there. `local`: which process, and so which GPU, of this machine it is."""
    import torch
    import torch.distributed as dist

    from broll.engine import mesh

    device = catalog.device()
    if device.type == "cuda":
        torch.cuda.set_device(local)
    elif not settings.threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size(settings)))
    here = os.environ.get("LOCAL_WORLD_SIZE", str(size(settings))) == str(size(settings))
    if here and LOOP.exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOP.name)  # a machine may not know its own name
    if dist.is_initialized():  # by a group before this one, whose others are gone
        dist.destroy_process_group()
    dist.init_process_group(mesh.backend(device.type), rank=rank, world_size=size(settings), **how)
    return mesh.Team(device, settings.parallel)


def joined(settings: Settings) -> "Team":
    """As torchrun, or a leader, says in the environment."""
    rank = int(os.environ["RANK"])
    return join(settings, rank, int(os.environ.get("LOCAL_RANK", rank)))


@dataclass
class Lead:
    """What a leader holds: its followers, if it started any, and the team once they have joined."""

    team: "Team | None" = None
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def begin(self, settings: Settings) -> "Team | None":
        """The team; None if this process works alone. One that is broken makes nothing more."""
        if self.broken:
            raise GroupLost("the processes that make clips together have lost each other; start them again")
        if self.team is None and size(settings) > 1:
            try:
                self.team = joined(settings) if started() > 1 else self._start(settings)
            except BaseException:
                self.end()
                raise
        return self.team

    @property
    def broken(self) -> bool:
        return self.team is not None and self.team.broken

    def end(self) -> None:
        """Let the others go."""
        team, self.team = self.team, None
        self._over.set()
        if team is not None and not team.broken:
            with contextlib.suppress(RuntimeError, GroupLost):
                tell(team, None)
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
        for child in self._children:
            try:
                child.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children = []

    def _start(self, settings: Settings) -> "Team":
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        check_devices(settings)
        count = settings.group
        store = TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
        names = ("models", "data", "threads", "group", "parallel")
        env = os.environ | place | {f"BROLL_{name.upper()}": str(getattr(settings, name)) for name in names}
        self._children = [
            subprocess.Popen(  # noqa: S603  our own command
                FOLLOWER, env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, start_new_session=True,
            )
            for rank in range(1, count)
        ]  # fmt: skip
        self._over = threading.Event()
        threading.Thread(target=watch, args=(self._children, self._over), daemon=True).start()
        return join(settings, 0, 0, store=PrefixStore("default_pg", store))


@contextlib.contextmanager
def leading() -> Iterator[Lead]:
    """At the end the others are let go."""
    lead = Lead()
    try:
        yield lead
    finally:
        lead.end()


def watch(children: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """End this process if one of those that it cannot do without is gone, and it has not noticed."""
    while not over.wait(0.2):
        if any(child.poll() is not None for child in children):
            if not over.wait(GRACE_S):
                sys.stderr.write(f"broll: error [{GroupLost.code}]: {GroupLost()}\n")
                sys.stderr.flush()
                os._exit(LOST)
            return


# --- a clip -----------------------------------------------------------------------------------------------


def generate(
    spec: VideoSpec, parts: "Parts", pictures: "Mapping[str, Image.Image]", resume: "Step | None"
) -> "Iterator[Step | Frames | Decoded | Warned]":
    """pipeline.generate, by all that are there; closing it stops all of them."""
    from broll.engine import pipeline
    from broll.engine.interrupt import Interruptible

    team = parts.team
    events = pipeline.generate(spec, parts, pictures, resume)
    with contextlib.closing(events):  # type: ignore[type-var]
        if team is None or not team.leads:
            yield from events
            return
        pipeline.check_prompt(spec, parts)  # refused before the others begin, it costs no group
        asked = isinstance(parts.transformer.stack, Interruptible)
        tell(team, Make(spec, dict(pictures), resume, parts.transformer.attend_name, asked))
        yield from _led(team, events)


def _led(team: "Team", events: Iterator[Any]) -> Iterator[Any]:
    with alone(team), known():
        for event in events:
            try:
                yield event
            except GeneratorExit:
                with contextlib.suppress(RuntimeError):
                    team.go(stop=True)
                raise
            team.go()


@contextlib.contextmanager
def alone(team: "Team | None") -> Iterator[None]:
    """Around what all have been told to do: who stops while the others go on has broken the group."""
    try:
        yield
    except BaseException:
        if team is not None:
            team.broken = not team.halted
        raise


def agreed(team: "Team | None", check: Callable[[], None]) -> Callable[[], None]:
    """A check that may raise: then it stops all, at the same place."""
    if team is None:
        return check

    def together() -> None:
        try:
            check()
        except BaseException:
            team.go(stop=True)
            raise
        team.go()

    return together


@contextlib.contextmanager
def known() -> Iterator[None]:
    """What a library says when another process is gone, in words."""
    try:
        yield
    except RuntimeError as error:
        if any(sign in str(error) for sign in SIGNS):
            raise GroupLost from error
        raise
