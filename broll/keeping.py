"""The models of this machine: what each is, whether it is whole, adding one's own, removing one.

look      the parts of a model with their forms and bytes, where it is from, what it takes in memory
verify    every byte against the record of its download; without one, every name and shape against the modules
add       an entry in the folder of models for weights that lie elsewhere: a link, or a model.toml
remove    what lies in the folder of models; of a link only the link, and never what lies outside
"""
# ruff: noqa: PLC0415  torch is loaded when weights are opened

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broll import catalog, hub, records, registry, wiring
from broll.catalog import Installed
from broll.engine import model_toml
from broll.engine.config import PUBLISHED
from broll.errors import BadCheckpoint, BadOption, BrollError, OutputError
from broll.hub import Progress
from broll.pulling import check_name, part_of
from broll.records import Record
from broll.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from broll.engine.config import ModelConfig

OPTIONS = {
    "vae": "--vae",
    "text_encoder": "--text-encoder",
    "tokenizer": "--tokenizer",
    "image_encoder": "--image-encoder",
}


# --- what it is -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One component: whose names its tensors have, and the bytes of each kind."""

    component: str
    names: str
    place: Path
    kinds: Mapping[str, int]


@dataclass(frozen=True)
class Look:
    model: Installed
    layout: str
    config: "ModelConfig"
    parts: tuple[Part, ...]
    license: str | None
    sources: tuple[str, ...]  # REPOSITORY@COMMIT; empty if broll did not download it
    size_bytes: int
    memory_bytes: int  # its weights, as they are kept
    free_bytes: int

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.free_bytes


def look(model: Installed, settings: Settings) -> Look:
    """Opens every part; reads headers, not weights. Its memory is that of the precision that the settings ask for."""
    from broll.engine import footprint, sources

    config, where = wiring.describe(model), catalog.device()
    found = sources.sources(model.folder)
    parts = []
    for component in components(config):
        source = sources.need(found, component, model.folder)
        opened = source.open()
        parts.append(Part(component, opened.names, source.place, opened.kinds))
    how = wiring.precision(config, where, settings.loading())
    kept = footprint.kept(model.folder, config, how)
    record = records.read(model.folder)
    return Look(
        model=model,
        layout=sources.layout(model.folder),
        config=config,
        parts=tuple(parts),
        license=catalog.license_of(model),
        sources=tuple(record.sources()) if record else (),
        size_bytes=catalog.size_bytes(model.folder),
        memory_bytes=sum(kept.values()),
        free_bytes=catalog.free_memory(where),
    )


def components(config: "ModelConfig") -> list[str]:
    """Those that a model of this kind has."""
    return ["transformer", "vae", "text_encoder", *(["image_encoder"] if config.image else [])]


# --- whether it is whole ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """What is wrong with one file."""

    path: str
    what: str


def verify(model: Installed) -> Iterator[Progress | Damage]:
    """What is found, file by file; nothing if all is well."""
    record = records.read(model.folder)
    if record is None or not record.files:
        yield from verify_names(model)
        return
    total, done = sum(kept.size for kept in record.files.values()), 0
    for path, kept in record.files.items():
        yield Progress("reading", done, total)
        done += kept.size
        what = damage(model.folder / path, kept)
        if what:
            yield Damage(path, what)


def damage(place: Path, kept: records.Kept) -> str:
    """Of one file; empty if it is as it was."""
    try:
        size = place.stat().st_size
        if size != kept.size:
            return f"has {size} bytes; {kept.size} were downloaded"
        if hub.sha256(place) != kept.sha256:
            return "holds other bytes than were downloaded"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def verify_names(model: Installed) -> Iterator[Progress | Damage]:
    """Without a record: the first name or shape of each part that is not the engine's."""
    from broll.engine import load, sources

    config = wiring.describe(model)
    found = sources.sources(model.folder)
    for number, component in enumerate(components(config)):
        yield Progress("opening", number, len(components(config)))
        try:
            strictly(sources.need(found, component, model.folder), module_of(config, component))
        except BadCheckpoint as error:
            yield Damage(component, str(error))
    try:
        load.tokenizer(model.folder)
    except BadCheckpoint as error:
        yield Damage("tokenizer", str(error))


def module_of(config: "ModelConfig", component: str) -> "nn.Module":
    """The engine's own, without memory."""
    from broll.engine import vace
    from broll.engine.config import ImageConfig
    from broll.engine.image_encoder import clip_vision
    from broll.engine.load import on_meta
    from broll.engine.text_encoder import umt5
    from broll.engine.vae import VAE

    makers: dict[str, Any] = {
        "transformer": lambda: vace.transformer(config.transformer),
        "vae": lambda: VAE(config.vae),
        "text_encoder": lambda: umt5(config.text),
        "image_encoder": lambda: clip_vision(config.image or ImageConfig()),
    }
    return on_meta(makers[component])


def strictly(source: Any, module: "nn.Module") -> None:
    """Every name and every shape, as loading would have them; no weight is read."""
    from broll.engine import weights

    opened = source.open()
    wanted = {**dict(module.named_parameters()), **weights.persistent_buffers(module)}
    weights.check(set(wanted), set(module.state_dict()), opened.entries, opened.source)
    for name, parameter in wanted.items():
        weights.check_shape(opened.entries[name], parameter, opened.source)


# --- one's own --------------------------------------------------------------------------------------------


def add(
    settings: Settings, name: str, place: Path, parts: Mapping[str, Path], *, defaults_of: str | None = None
) -> Installed:
    """A folder that is a model, or a transformer with the other parts named. What it is, is found out."""
    check_free(settings, name)
    place = place.expanduser().absolute()
    if not place.exists():
        raise BadOption(f"there is no {place}")
    if place.is_dir() and not parts and defaults_of is None:
        return _add_link(settings, name, place)
    return _add_toml(settings, name, {"transformer": place, **parts}, defaults_of)


def check_free(settings: Settings, name: str) -> None:
    check_name(name)
    taken = settings.models / name
    if name.lower() == catalog.NANO or registry.read().named(name):
        raise BadOption(f"{name} is the name of a model that broll knows; choose another, such as my-{name}")
    if taken.exists() or taken.is_symlink() or name in catalog.installed(settings):
        raise BadOption(f"there is a model {name} already; to remove it: broll models remove {name}")
    if part_of(taken).exists():
        raise BadOption(f"a download of {name} was begun; to remove it: broll models remove {name}")


def _add_link(settings: Settings, name: str, place: Path) -> Installed:
    config = wiring.describe(Installed(name, catalog.at(place).folder, None))
    target = settings.models / name
    try:
        settings.models.mkdir(parents=True, exist_ok=True)
        target.symlink_to(place, target_is_directory=True)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    return Installed(name, target, config.task)


def _add_toml(settings: Settings, name: str, parts: Mapping[str, Path], defaults_of: str | None) -> Installed:
    """Made in a folder that is not listed; it gets its name when it could be opened."""
    check_parts(parts, defaults_of)
    folder = settings.models / name
    part = part_of(folder)
    try:
        part.mkdir(parents=True, exist_ok=True)
        (part / model_toml.NAME).write_text(toml_of(parts, defaults_of), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {part}: {error.strerror}") from error
    try:
        config = look(Installed(name, part, None), settings).config
        records.write(part, Record(None, {}, config.task))
    except BrollError:
        shutil.rmtree(part)
        raise
    os.replace(part, folder)
    return Installed(name, folder, config.task)


def check_parts(parts: Mapping[str, Path], defaults_of: str | None) -> None:
    """All that this transformer needs is named, and there."""
    from broll.engine import detect, sources

    if defaults_of is not None and defaults_of not in PUBLISHED:
        raise BadOption(f"--defaults-of is {defaults_of!r}; possible are {', '.join(PUBLISHED)}")
    for place in parts.values():
        if not place.expanduser().exists():
            raise BadOption(f"there is no {place}")
    opened = sources.part_of("transformer", parts["transformer"].expanduser()).open()
    with_image = detect.transformer(opened).image_dim is not None
    for component, option in OPTIONS.items():
        if component not in parts and (component != "image_encoder" or with_image):
            raise BadOption(f"this transformer needs a {component.replace('_', ' ')} as well: say {option}")


def toml_of(parts: Mapping[str, Path], defaults_of: str | None) -> str:
    lines = [] if defaults_of is None else [f"model = {json.dumps(defaults_of)}"]
    for name, place in parts.items():
        full = place.expanduser().absolute()
        kind = "folder" if full.is_dir() else "file"
        lines += [f"[{name}]", f"{kind} = {json.dumps(str(full), ensure_ascii=False)}"]
    return "\n".join([*lines, ""])


# --- removing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removal:
    """What would go; `link`: only the entry does."""

    name: str
    places: tuple[Path, ...]
    link: bool
    size_bytes: int


def to_remove(settings: Settings, name: str) -> Removal:
    """What `remove` would remove. Nothing is changed."""
    own = _own(settings)
    if name.lower() == catalog.NANO and catalog.NANO not in own:
        raise BadOption("nano comes with a distribution of its own; to remove it: pip uninstall broll-nano")
    folder = own.get(catalog.published_name(name) or name) or settings.models / check_name(name)
    entry = folder.is_symlink() or folder in own.values()  # a link may lead nowhere any more
    places = tuple(p for p, there in ((folder, entry), (part_of(folder), part_of(folder).exists())) if there)
    if not places:
        raise BadOption(f"{settings.models} holds no model {name}; there are: {', '.join(own) or 'none'}")
    link = places[0].is_symlink()
    size = 0 if link else sum(catalog.size_bytes(place) for place in places)
    return Removal(name, places, link, size)


def _own(settings: Settings) -> dict[str, Path]:
    """The models in the folder of models, by name."""
    here = catalog.installed(settings)
    return {name: model.folder for name, model in here.items() if model.folder.parent == settings.models}


def remove(settings: Settings, removal: Removal) -> None:
    """Entries of the folder of models only. rmtree removes links and does not follow them."""
    for place in removal.places:
        assert place.parent == settings.models
        try:
            if place.is_symlink():
                place.unlink()
            else:
                shutil.rmtree(place)
        except OSError as error:
            raise OutputError(f"cannot remove {error.filename or place}: {error.strerror}") from error
