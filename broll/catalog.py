"""Which models are on this machine, and which can be had.

A model is looked for in `settings.models / NAME`, or under the last part of its repository's name; any other
checkpoint there is a model too, and nano comes with the distribution broll-nano. Only small files are read.
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broll import records, registry
from broll.engine import model_toml
from broll.engine.config import PUBLISHED, Task
from broll.errors import BadCheckpoint, ModelMissing, UnknownModel
from broll.settings import Settings

if TYPE_CHECKING:
    import torch

NANO = "nano"
BEST: dict[str, tuple[str, ...]] = {
    "t2v": (
        "wan2.1-t2v-1.3b",
        NANO,
    ),  # 14b goes before them where there is a GPU, and last where there is none
    "i2v": ("wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p"),
    "flf2v": ("wan2.1-flf2v-14b",),
    "vace": ("wan2.1-vace-1.3b", "wan2.1-vace-14b"),
}
LARGEST = "wan2.1-t2v-14b"
# Which models make a clip from what is given; the later ones only where there is none of the first. VACE that is given
# nothing to follow makes it from text.
ABLE: dict[Task, tuple[tuple[Task, ...], ...]] = {
    "t2v": (("t2v", "ti2v"), ("vace",)), "i2v": (("i2v",), ("ti2v",)), "flf2v": (("flf2v",),),
}  # fmt: skip
ORIGINAL = ("t2v", "i2v", "flf2v", "vace")  # as WAN 2.1's own config.json says it; "ti2v" is there WAN 2.2's


@dataclass(frozen=True)
class Installed:
    """A checkpoint on this machine, known by its small files."""

    name: str
    folder: Path
    task: Task | None  # None: its files do not say


def published_name(text: str) -> str | None:
    """The registry's name for `wan2.1-t2v-1.3b`, `Wan2.1-T2V-1.3B`, `Wan2.1-T2V-1.3B-Diffusers`, `nano`."""
    known = registry.read().named(text)
    if known is not None:
        return known.name
    return NANO if text.lower() == NANO else None


def read_numbers(folder: Path) -> dict[str, Any] | None:
    """The transformer's config.json; None if this folder is no checkpoint of WAN."""
    if model_toml.exists(folder):
        made, added = model_toml.read(folder).model, records.read(folder)
        return {"model_type": PUBLISHED[made].task if made else added.task if added else None}
    diffusers = (folder / "model_index.json").is_file()
    try:
        numbers = json.loads((folder / ("transformer" if diffusers else "") / "config.json").read_text())
    except (OSError, ValueError):
        return {} if diffusers else None
    if not isinstance(numbers, dict):
        return None
    numbers |= own_task(folder)
    return numbers if diffusers or numbers.get("model_type") in ORIGINAL else None


def own_task(folder: Path) -> dict[str, Any]:
    """What a model says of itself in broll.json: that it starts from a picture too, which its numbers do not tell."""
    try:
        said = json.loads((folder / "broll.json").read_text()).get("task")
    except (OSError, ValueError, AttributeError):
        return {}
    return {"task": said} if said == "ti2v" else {}


def task_of(numbers: dict[str, Any]) -> Task | None:
    """As `describe` says it, which also refuses what cannot be."""
    found = task_by_numbers(numbers)
    return "ti2v" if found == "t2v" and "task" in numbers else found


def task_by_numbers(numbers: dict[str, Any]) -> Task | None:
    if "num_attention_heads" not in numbers:
        return numbers.get("model_type")
    if numbers.get("vace_layers"):
        return "vace"
    if numbers.get("image_dim") is None:
        return "t2v"
    return "flf2v" if numbers.get("pos_embed_seq_len") else "i2v"


def embedded_nano() -> Path | None:
    """The folder of broll-nano, if it is installed and holds weights."""
    if importlib.util.find_spec("broll_nano") is None:
        return None
    folder = Path(importlib.import_module("broll_nano").FOLDER)
    return folder if read_numbers(folder) is not None else None


def installed(settings: Settings) -> dict[str, Installed]:
    """Every model on this machine, by name."""
    try:
        folders = sorted(p for p in settings.models.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        folders = []
    found: dict[str, Installed] = {}
    for folder in folders:
        try:
            numbers = read_numbers(folder)
        except BadCheckpoint:  # a model.toml with a mistake: `find` says which
            numbers = {}
        if numbers is not None:
            name = published_name(folder.name) or folder.name
            found.setdefault(name, Installed(name, folder, task_of(numbers)))
    nano = embedded_nano()
    if nano is not None:
        found.setdefault(NANO, replace(at(nano), name=NANO))  # its folder is called otherwise
    return found


def how_to_get(name: str) -> str:
    if name == NANO:
        return 'pip install "broll[nano]"'
    return f"broll models pull {name}"


def find(settings: Settings, wanted: str) -> Installed:
    """The model of this name, or in this folder."""
    here = installed(settings)
    name = published_name(wanted) or wanted
    if name in here:
        return here[name]
    with contextlib.suppress(OSError, ValueError):  # a name too long for the file system, or with a NUL
        folder = Path(wanted).expanduser()
        if folder.is_dir() and published_name(wanted) is None:
            return at(folder)
    if name == NANO or name in PUBLISHED:
        raise ModelMissing(f"{name} is not on this machine; to get it: {how_to_get(name)}")
    known = ", ".join(sorted({NANO, *PUBLISHED, *here}))
    raise UnknownModel(
        f"there is no model {wanted!r}; possible are {known}, or the path of a checkpoint's folder"
    )


def at(folder: Path) -> Installed:
    """The checkpoint in a folder that the user named."""
    numbers = read_numbers(folder)
    if numbers is None:
        raise BadCheckpoint(
            f"{folder} holds no checkpoint of WAN 2.1: neither model_index.json nor its config.json nor a model.toml"
        )
    own = folder.resolve().name
    return Installed(published_name(own) or own, folder, task_of(numbers))


def task_for(pictures: Container[str]) -> Task:
    """What a clip is made from, by the names of the pictures that are given."""
    if "last_image" in pictures:
        return "flf2v"
    return "i2v" if "image" in pictures else "t2v"


def able(models: Mapping[str, Task | None], task: Task) -> list[str]:
    """The models for it, in the order given; models that are for something else too, only if there is no other."""
    tiers = ([name for name, kind in models.items() if kind in kinds] for kinds in ABLE[task])
    return next(filter(None, tiers), [])


def best(settings: Settings, task: Task) -> Installed:
    """The best model present for a task."""
    all_here = installed(settings)
    names = able({name: model.task for name, model in all_here.items()}, task)
    here = {name: all_here[name] for name in names}
    order = [name for name in (*BEST[task], *BEST["vace"]) if name in here]
    order += [name for name in here if name not in order and name != LARGEST]
    if LARGEST in here:
        order.insert(0 if device().type == "cuda" else len(order), LARGEST)
    if order:
        return here[order[0]]
    raise missing(task)


def missing(task: Task) -> ModelMissing:
    """That there is no model for this task, and how to get one."""
    kind = {"i2v": "image-to-video", "flf2v": "first-last-frame"}.get(task, "text-to-video")
    names = {"t2v": (NANO,), "i2v": (NANO, BEST["i2v"][0])}.get(task, BEST[task][:1])
    ways = "; ".join(f"to get {name}: {how_to_get(name)}" for name in names)
    return ModelMissing(f"there is no {kind} model on this machine; {ways}")


def license_of(model: Installed) -> str | None:
    """As the record of its download, the registry, or its own broll.json says it."""
    record = records.read(model.folder)
    if record is not None and record.license:
        return record.license
    known = registry.read().named(model.name)
    if known is not None:
        return known.license
    try:
        said = json.loads((model.folder / "broll.json").read_text()).get("license")
    except (OSError, ValueError, AttributeError):
        return None
    return said if isinstance(said, str) else None


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def device() -> "torch.device":
    import torch  # noqa: PLC0415  names answer at once; torch takes seconds

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_memory(where: "torch.device") -> int:
    """Bytes that can still be used."""
    import torch  # noqa: PLC0415

    return int(torch.cuda.mem_get_info(where)[0]) if where.type == "cuda" else free_main_memory()


def free_main_memory() -> int:
    """What the system says is available, or what the container's limit leaves, whichever is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no such group, or no limit: "max"
        pass
    return max(0, free)
