"""A name to a model on this machine: what to download, from where, into which folder.

    wan2.1-t2v-1.3b                  the registry's repository at its commit, in the layout that is asked for
    wan2.1-t2v-14b, quant q4         transformer and umT5 quantized, the small files of the original, a model.toml
    OWNER/NAME                       any other repository of the hub that has one of the two layouts

Everything is put into `.NAME.part` beside the place where it will be, and gets its name when each byte has been
checked: a folder that is half full is no model.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from broll import catalog, hub, records, registry
from broll.engine import model_toml
from broll.engine.config import PUBLISHED
from broll.errors import BadCheckpoint, BadOption, HubNotFound, OutputError
from broll.hub import Progress, Remote
from broll.records import Kept, Record
from broll.registry import Files, Known, Registry
from broll.settings import Settings

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
PART = re.compile(r"\.(.+)\.part")
RESERVED = ("loras",)  # loras.FOLDER
LOCK = ".lock"


@dataclass(frozen=True)
class Pull:
    """What is to be downloaded."""

    name: str
    folder: Path  # where it will lie
    files: Mapping[str, Remote]  # by their paths there
    license: str | None
    toml: str | None = None  # of a quantized variant

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    @property
    def part(self) -> Path:
        return part_of(self.folder)

    @property
    def sources(self) -> list[str]:
        return list(dict.fromkeys(f"{file.repository}@{file.revision}" for file in self.files.values()))


def part_of(folder: Path) -> Path:
    """Where a model lies while it is incomplete; such a name is never listed."""
    return folder.with_name(f".{folder.name}.part")


def begun(settings: Settings) -> dict[str, int]:
    """Downloads that were not finished: names, and the bytes that are there."""
    try:
        folders = [
            path for path in sorted(settings.models.iterdir()) if path.is_dir() and not path.is_symlink()
        ]
    except OSError:
        return {}
    names = {PART.fullmatch(path.name): path for path in folders}
    return {match[1]: catalog.size_bytes(path) for match, path in names.items() if match}


def check_name(name: str) -> str:
    """A name for a folder of models."""
    if not NAME.fullmatch(name) or name.lower() in RESERVED:
        raise BadOption(
            f"{name[:100]!r} can be no model's name; possible are letters, digits, '.', '_' and '-'"
        )
    return name


def plan(
    settings: Settings,
    wanted: str,
    *,
    quant: str | None = None,
    layout: str | None = None,
    revision: str | None = None,
    known_models: Registry | None = None,
) -> Pull:
    """Ask the hub what is to be downloaded. Nothing is written."""
    names = known_models or registry.read()
    known = names.named(wanted)
    if wanted.lower() == catalog.NANO:
        raise BadOption(f"nano is no download of the hub; to get it: {catalog.how_to_get(catalog.NANO)}")
    if known is None:
        return _plan_other(settings, names, wanted, quant, layout, revision)
    if quant is not None:
        return _plan_quantized(settings, known, quant, layout, revision)
    chosen = layout or _layout_of(known, wanted)
    if chosen not in known.layouts:
        raise BadOption(f"--layout is {chosen!r}; possible for {known.name} are {', '.join(known.layouts)}")
    files = known.layouts[chosen]
    found = needed(files, revision)
    return Pull(known.name, settings.models / known.name, {file.path: file for file in found}, known.license)


def _layout_of(known: Known, wanted: str) -> str:
    """The repository's own if one was named, else the original."""
    last = wanted.lower().split("/")[-1]
    return next(
        (name for name, files in known.layouts.items() if files.repository.lower().endswith(f"/{last}")),
        "original",
    )


def needed(files: Files, revision: str | None = None, *, all_of_them: bool = False) -> list[Remote]:
    """The needed files of one repository."""
    commit = revision or files.revision
    found = [file for file in hub.listing(files.repository, commit).files if files.need(file.path)]
    wanted = files.patterns if all_of_them or not found else ()
    for pattern in wanted:
        if not any(registry.matches(file.path, (pattern,)) for file in found):
            raise HubNotFound(f"{files.repository} at {commit} has no {pattern}")
    return found


def _plan_quantized(
    settings: Settings, known: Known, quant: str, layout: str | None, revision: str | None
) -> Pull:
    if layout is not None or revision is not None:
        raise BadOption(
            "--quant takes its files from several repositories: it goes without --layout and --revision"
        )
    if quant not in known.quants:
        there = ", ".join(known.quants) or "none"
        raise BadOption(f"--quant is {quant!r}; known for {known.name}: {there}")
    placed: dict[str, Remote] = {}
    parts: dict[str, str] = {}
    for part, files in known.quants[quant].items():
        for file in needed(files, all_of_them=True):
            path = file.path if part == registry.SMALL else PurePosixPath(file.path).name
            placed[path] = file
            parts |= {} if part == registry.SMALL else {part: path}
    name = f"{known.name}-{quant}"
    return Pull(name, settings.models / name, placed, known.license, toml_of(known.name, parts))


def toml_of(model: str, parts: Mapping[str, str]) -> str:
    """The model.toml of a quantized variant: its parts lie beside it."""
    lines = [f"model = {json.dumps(model)}", ""] if model in PUBLISHED else []
    for part in model_toml.COMPONENTS:
        if part in parts:
            lines += [f"[{part}]", f"file = {json.dumps(parts[part])}"]
        elif part == "vae":
            lines += ["[vae]", 'file = "Wan2.1_VAE.pth"']
    return "\n".join([*lines, "[tokenizer]", 'folder = "google/umt5-xxl"', ""])


def _plan_other(
    settings: Settings,
    names: Registry,
    wanted: str,
    quant: str | None,
    layout: str | None,
    revision: str | None,
) -> Pull:
    """A repository that the registry does not know: its layout is told from its files."""
    if not REPOSITORY.fullmatch(wanted):
        raise BadOption(
            f"there is no model {wanted[:100]!r} to pull; possible are {', '.join(names.models)}, and OWNER/NAME"
        )
    if quant is not None:
        raise BadOption(f"--quant goes with the names that broll knows: {', '.join(names.models)}")
    listed = hub.listing(wanted, revision or "main")
    chosen = layout or layout_of({file.path for file in listed.files})
    patterns = names.layouts.get(chosen or "", ())
    files = {file.path: file for file in listed.files if registry.matches(file.path, patterns)}
    if chosen is None or not any(path.endswith(".safetensors") for path in files):
        raise BadCheckpoint(
            f"{wanted} has neither layout of WAN 2.1: neither model_index.json nor config.json beside weights; a "
            "single file can be fetched otherwise, and used with `broll models add`"
        )
    name = check_name(wanted.rpartition("/")[2])
    return Pull(name, settings.models / name, files, listed.license)


def layout_of(paths: set[str]) -> str | None:
    if "model_index.json" in paths:
        return "diffusers"
    return "original" if "config.json" in paths else None


# --- doing it ---------------------------------------------------------------------------------------------


def already(settings: Settings, pull: Pull) -> bool:
    """Whether this very thing is here; refused if something else has its place or its name."""
    other = catalog.installed(settings).get(pull.name)
    if other is not None and other.folder != pull.folder:
        raise BadOption(f"{pull.name} is here already, in {other.folder}")
    if not pull.folder.exists() and not pull.folder.is_symlink():
        return False
    record = records.read(pull.folder) if pull.folder.is_dir() else None
    wanted = {path: (file.size, file.revision) for path, file in pull.files.items()}
    if record and {path: (kept.size, kept.revision) for path, kept in record.files.items()} == wanted:
        return True
    what = f"from {', '.join(record.sources())}" if record else "not downloaded by broll"
    raise BadOption(
        f"{pull.folder} is there already, {what}; to replace it: broll models remove {pull.folder.name}"
    )


def carry_out(pull: Pull) -> Iterator[Progress]:
    """Download, check, and give it its name."""
    try:
        pull.part.mkdir(parents=True, exist_ok=True)
        with _alone(pull):
            yield from _whole(pull)
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or pull.part}: {error.strerror}") from error


def _whole(pull: Pull) -> Iterator[Progress]:
    yield from hub.fetch(pull.files, pull.part)
    if pull.toml is not None:
        (pull.part / model_toml.NAME).write_text(pull.toml, encoding="utf-8")
    kept = {
        path: Kept(file.size, file.sha256 or hub.sha256(pull.part / path), file.repository, file.revision)
        for path, file in pull.files.items()
    }
    records.write(pull.part, Record(pull.license, kept))
    os.replace(pull.part, pull.folder)


@contextmanager
def _alone(pull: Pull) -> Iterator[None]:
    """Two at a time would write into each other's files."""
    lock = pull.folder.with_name(f".{pull.folder.name}{LOCK}")
    with lock.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadOption(f"another broll is pulling {pull.name} into {pull.folder.parent}") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
