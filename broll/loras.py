"""LoRAs by name: which are on this machine, what they want, and on a model for one clip.

They lie in `settings.models / "loras"`: NAME.safetensors, or a folder NAME as PEFT writes it; and a model may bring
some of its own, in a folder `loras` beside its weights. The command line also takes a path. A spec holds name, digest,
weight and steps; a clip is repeated only with a file of that digest.

Beside the model or merged into it is not the spec's business, but that of who runs it.
"""
# ruff: noqa: PLC0415  torch is loaded when a file is read

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from broll import catalog, features, group, wiring
from broll.catalog import Installed
from broll.engine.config import ModelConfig
from broll.errors import BadOption, ModelMissing
from broll.settings import Loading, Settings
from broll.spec import STUDENT, LoraUse, VideoSpec

if TYPE_CHECKING:
    from broll.engine.load import Parts
    from broll.engine.lora import Entry
    from broll.engine.lora_facts import Recommended
    from broll.engine.lora_files import Lora
    from broll.engine.mesh import Team

ASKED = re.compile(r"(?P<name>.+?)(?::(?P<weight>-?\d+(?:\.\d+)?)(?::(?P<first>\d+)-(?P<last>\d+))?)?")
FOLDER = "loras"
WANTS = ("steps", "guidance", "shift", "sampler", "grid")  # what a distilled one may ask for


@dataclass(frozen=True)
class Asked:
    """A LoRA as it was asked for: a name or a path; steps count from 1, as people do."""

    name: str
    weight: float | None = None
    steps: tuple[int, int] | None = None


def parse(text: str) -> Asked:
    """NAME[:WEIGHT[:FIRST-LAST]]"""
    match = ASKED.fullmatch(text.strip())
    if match is None:
        raise BadOption(f"--lora is {text!r}; it must be NAME[:WEIGHT[:FIRST-LAST]], such as film:0.8:1-10")
    weight = None if match["weight"] is None else float(match["weight"])
    steps = None if match["first"] is None else (int(match["first"]), int(match["last"]))
    if weight is not None and not -10 <= weight <= 10:
        raise BadOption(f"the weight of the LoRA {match['name']} is {weight:g}; it can be -10 to 10")
    if steps is not None and not 1 <= steps[0] <= steps[1] <= 1000:
        raise BadOption(
            f"the steps of the LoRA {match['name']} are {steps[0]}-{steps[1]}; they count from 1, the first one first"
        )
    return Asked(match["name"], weight, steps)


def installed(settings: Settings) -> dict[str, Path]:
    """Every LoRA on this machine, by name; those of the user before those that come with a model."""
    found: dict[str, Path] = {}
    for model in catalog.installed(settings).values():
        found |= within(model.folder / FOLDER)
    return found | within(settings.models / FOLDER)


def within(folder: Path) -> dict[str, Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return {}
    files = {path.stem: path for path in entries if path.suffix == ".safetensors" and path.is_file()}
    return {path.name: path for path in entries if path.is_dir()} | files


def student(spec: VideoSpec, settings: Settings) -> str | None:
    """What quality draft puts on a model that brings a student of its own, unless the clip says how it is stepped."""
    stepped = spec.steps is not None or spec.step_cache is not None
    stepped = stepped or spec.guidance not in (None, 1) or spec.guidance_until is not None
    if spec.quality != "draft" or stepped:
        return None
    model, name = catalog.installed(settings).get(spec.model), STUDENT.format(spec.model)
    return name if model is not None and name in within(model.folder / FOLDER) else None


def liked(spec: VideoSpec, quality: str | None, model: str | None) -> VideoSpec:
    """A clip to repeat: in another quality, or by another model, without its student and what that wanted."""
    if spec.student is None or (quality in (None, spec.quality) and model in (None, spec.model)):
        return spec
    rest = tuple(use for use in spec.loras if use != spec.student)
    return spec.model_copy(update={"loras": rest} | dict.fromkeys(WANTS))


def find(settings: Settings, name: str, *, paths: bool = False) -> Path:
    here = installed(settings)
    if name in here:
        return here[name]
    path = Path(name).expanduser()
    if paths and path.exists():
        return path
    known = ", ".join(here) or f"none; they belong into {settings.models / FOLDER}"
    hint = " (behind its name comes a number, the weight: film:0.8)" if ":" in name else ""
    raise ModelMissing(f"there is no LoRA {name[:200]!r}{hint}; there are: {known}")


def digest(path: Path) -> str:
    """sha256 of the weights."""
    from broll.engine.lora_files import file_of

    file = file_of(path)
    facts = file.stat()
    return _digest(file, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(64)
def _digest(file: Path, _size: int, _changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@functools.lru_cache(4)
def _read(path: Path, _digest: str) -> "Lora":
    from broll.engine.lora_files import read

    return read(path)


def wanted(
    settings: Settings, asked: Iterable[Asked], *, paths: bool = False
) -> tuple[tuple[LoraUse, ...], dict[str, Path]]:
    """What a spec says of them, and where they are. Without a weight, each has its own recommendation, else 1."""
    from broll.engine.lora_facts import facts

    uses, places = [], {}
    for one in asked:
        path = find(settings, one.name, paths=paths)
        known = facts(_read(path, digest(path)))
        weight = one.weight if one.weight is not None else known.weight if known else 1.0
        first, last = (one.steps[0] - 1, one.steps[1] - 1) if one.steps else (None, None)
        name = re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else path.name)[:100]
        uses.append(LoraUse(name=name, sha256=digest(path), weight=weight, first=first, last=last))
        places[uses[-1].sha256] = path
    return tuple(uses), places


def recommended(spec: VideoSpec, settings: Settings, places: Mapping[str, Path]) -> "Recommended | None":
    """What a distilled LoRA was made for. Two that disagree must be told apart by the user's own options."""
    from broll.engine.lora_facts import facts

    found = [made for use in spec.loras if (made := facts(_load(settings, use, places))) is not None]
    numbers = {tuple(getattr(made, name) for name in WANTS) for made in found}
    if len(numbers) > 1 and any(getattr(spec, name) is None for name in WANTS):
        options = ", ".join(f"--{name}" for name in WANTS)
        raise BadOption(f"these LoRAs want different steps or guidance; say all of {options}")
    return found[0] if found else None


def fitted(spec: VideoSpec, settings: Settings, places: Mapping[str, Path]) -> tuple[VideoSpec, str]:
    """The spec with what its LoRAs want where it says nothing, and what to tell of it.

    Quality draft puts a student on, which step_cache.told tells; a LoRA that was asked for comes before it.
    """
    brought, left = student(spec, settings), ""
    if brought and spec.loras and spec.student is None:
        left = f"its own LoRA for quality draft ({brought}) is left out: another one was asked for"
    elif brought and not spec.loras:
        spec = spec.model_copy(update={"loras": wanted(settings, [Asked(brought)])[0]})
    known = recommended(spec, settings, places) if spec.loras else None
    if known is None:
        return spec, left
    missing = {
        n: getattr(known, n) for n in WANTS if getattr(spec, n) is None and getattr(known, n) is not None
    }
    told = ", ".join(
        f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}"
        for name, value in missing.items()
    )
    spec = spec.model_copy(update=missing)
    notes = [f"as its LoRA wants: {told}" if told and not spec.student else "", left, without_effect(spec)]
    return spec, "; ".join(note for note in notes if note)


def without_effect(spec: VideoSpec) -> str:
    """What was asked for and changes nothing."""
    return (
        "at guidance 1 a negative prompt has no effect" if spec.guidance == 1 and spec.negative_prompt else ""
    )


def _load(settings: Settings, use: LoraUse, places: Mapping[str, Path]) -> "Lora":
    path = places.get(use.sha256) or find(settings, use.name)
    if digest(path) != use.sha256:
        raise ModelMissing(f"the LoRA {use.name!r} here is another one than this clip was made with")
    return _read(path, use.sha256)


def on(
    parts: "Parts", spec: VideoSpec, settings: Settings, places: Mapping[str, Path] | None = None
) -> tuple["Parts", list[str]]:
    """The model with the clip's stack beside it, or with none; and what in the files has no effect.

    The transformer of `parts` is changed in place and stays the caller's; the parts that are given back differ in their
    digests, so that a snapshot knows what it was made with.
    """
    from broll.engine import lora, lora_fit

    stack = _stack(spec, settings, places or {})
    if parts.team is not None and stack:  # refused before the others are told, it costs no group
        lora.check(stack)
        shapes = lora_fit.shapes_of(parts.transformer)
        for one, _, _ in stack:
            lora_fit.fit(one, shapes)
    group.tell(parts.team, group.Wear(spec, dict(places or {})))
    with group.alone(parts.team):
        attached = lora.attach(parts.transformer, stack)
    told = [str(unused) for unused in attached.unused] if attached else []
    names = tuple(
        (f"lora {use.name} {use.weight:g} {use.first}-{use.last}", use.sha256) for use in spec.loras
    )
    return replace(parts, digests=parts.digests + names), told


def merged(
    model: Installed,
    config: ModelConfig,
    spec: VideoSpec,
    settings: Settings,
    loading: Loading,
    places: Mapping[str, Path] | None = None,
    prompts: Sequence[str] = (),
    team: "Team | None" = None,
) -> tuple["Parts", list[str]]:
    """The model loaded with the clip's stack in its weights, for good; and what in the files has no effect.

    `loading`, `prompts`, `team`: as of wiring.load.
    """
    from broll.engine import lora_fit

    check_merge(model, spec)
    stack = _stack(spec, settings, places or {})
    group.tell(team, group.Merge(model, spec, loading, dict(places or {})))
    parts = wiring.load(
        model, config, loading, merge=stack, prompts=prompts, kept=features.shelf(settings), team=team
    )
    shapes = lora_fit.shapes_of(parts.transformer)
    told = [str(unused) for one, _, _ in stack for unused in lora_fit.fit(one, shapes)[1]]
    names = tuple((f"lora {use.name} {use.weight:g} merged", use.sha256) for use in spec.loras)
    return replace(parts, digests=parts.digests + names), told


def check_merge(model: Installed, spec: VideoSpec) -> None:
    """Refuse what cannot be merged, before any weight is read."""
    from broll.engine.sources import sources
    from broll.engine.stored import PLAIN

    if not spec.loras:
        raise BadOption("there is no LoRA to merge")
    ranged = next((use.name for use in spec.loras if use.first is not None), None)
    if ranged is not None:
        raise BadOption(
            f"the LoRA {ranged} is for some steps only, so it cannot be merged; it can run beside"
        )
    kinds = sources(model.folder)["transformer"].open().kinds
    odd = next((kind for kind in kinds if kind not in PLAIN), None)
    if odd is not None:
        raise BadOption(
            f"the weights of {model.name} are kept as {odd}, so no LoRA can be merged into them; it can run beside"
        )


def merges(model: Installed, spec: VideoSpec, settings: Settings) -> bool:
    """Whether the settings want this clip's LoRAs in the weights, and they can go there."""
    may = settings.merge_loras and settings.offload != "on"
    return may and mergeable(model, spec)


def mergeable(model: Installed, spec: VideoSpec) -> bool:
    try:
        check_merge(model, spec)
    except BadOption:
        return False
    return True


def _stack(spec: VideoSpec, settings: Settings, places: Mapping[str, Path]) -> "list[Entry]":
    return [
        (_load(settings, use, places), use.weight, None if use.first is None else (use.first, use.last))
        for use in spec.loras
    ]
