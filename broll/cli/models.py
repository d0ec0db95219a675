"""`broll models`: what is here, what can be had, and getting, adding, checking and removing it."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broll.cli.output import gigabytes, one_line, say
from broll.errors import BadOption

if TYPE_CHECKING:
    from broll.hub import Progress
    from broll.keeping import Look
    from broll.registry import Files, Known

DOES = {
    "t2v": "text to video",
    "i2v": "first picture and text to video",
    "flf2v": "first and last picture and text to video",
    "vace": "text to video (its control video comes later)",
    "ti2v": "text to video, or first picture and text to video",
    None: "cannot be read",
}
MEGABYTE = 1_000_000
Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name, as broll models list says it.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.")]
Place = Annotated[Path | None, typer.Option(help="A file, or a folder of shards or of a whole model.")]

models_app = typer.Typer(
    help="The models on this machine: list, get, add, check and remove them.", no_args_is_help=True
)


# --- what is here, what can be had ------------------------------------------------------------------------


@models_app.command("list")
def list_models(as_json: Json = False) -> None:
    """Show the models on this machine and those that can be had."""
    table = rows()
    if as_json:
        print(json.dumps({"models": table}))
        return
    print("here")
    for row in [row for row in table if row["here"]]:
        about = f"{row['does']}; {gigabytes(row['size_bytes'])}, {row['license'] or 'licence not known'}"
        print("  " + one_line(f"{row['name']:<22} {about}, in {row['path']}"))
    if not any(row["here"] for row in table):
        print("  none yet")
    begun = [row for row in table if "begun_bytes" in row]
    if begun:
        print("begun, and gone on with by the same broll models pull")
    for row in begun:
        print(f"  {row['name']:<22} {gigabytes(row['begun_bytes'])} are here")
    print("can be had")
    for row in [row for row in table if not row["here"] and "get" in row]:
        needs = f"{row['download_gb']:g} GB, about {row['memory_gb']:g} GB of memory, {row['license']}"
        print(f"  {row['name']:<22} {row['does']}; {needs}\n  {'':<22} {row['get']}{quants(row)}")


def quants(row: dict[str, Any]) -> str:
    sizes = [f"{quant} {needs['download_gb']:g} GB" for quant, needs in row.get("quants", {}).items()]
    return f"  (--quant: {', '.join(sizes)})" if sizes else ""


def rows() -> list[dict[str, Any]]:
    """Every model known, present ones first, then what was begun, then what can be had."""
    from broll import catalog, pulling, registry
    from broll.settings import Settings

    settings = Settings()
    here = catalog.installed(settings)
    table: list[dict[str, Any]] = []
    for model in here.values():
        row = {"name": model.name, "here": True, "does": DOES[model.task], "path": str(model.folder)}
        size = catalog.size_bytes(model.folder)
        table.append(row | {"size_bytes": size, "license": license_of(model)})
    table += [
        {"name": name, "here": False, "begun_bytes": size} for name, size in pulling.begun(settings).items()
    ]
    if catalog.NANO not in here:
        row = {"name": catalog.NANO, "here": False, "does": DOES["ti2v"], "source": "broll-nano"}
        row |= {"download_gb": 0.04, "license": "Apache-2.0", "memory_gb": 2.5}
        table.append(row | {"get": catalog.how_to_get(catalog.NANO)})
    return table + [to_get(known) for name, known in registry.read().models.items() if name not in here]


def license_of(model: Any) -> str | None:
    from broll import catalog
    from broll.errors import BadCheckpoint

    try:
        return catalog.license_of(model)
    except BadCheckpoint:  # a record with a mistake: `show` and `verify` say which
        return None


def to_get(known: "Known") -> dict[str, Any]:
    """A model that is not here."""
    from broll import catalog
    from broll.engine.config import PUBLISHED
    from broll.registry import total_gb

    original, published = known.layouts["original"], PUBLISHED[known.name]
    needs = {
        quant: {"download_gb": total_gb(parts), "memory_gb": quantized_gb(parts)}
        for quant, parts in known.quants.items()
    }
    return {
        "name": known.name,
        "here": False,
        "does": DOES[published.task],
        "source": original.repository,
        "download_gb": original.gb,
        "license": known.license,
        "memory_gb": memory_gb(published.parameters),
        "layouts": {layout: files.repository for layout, files in known.layouts.items()},
        "quants": needs,
        "get": catalog.how_to_get(known.name),
    }


def memory_gb(parameters: int) -> float:
    """In bf16: the transformer and umT5-XXL's 5.7 billion, and working memory for a default clip, about."""
    return float(round(2 * (parameters + 5.7e9) / 1e9 * 1.1 + 3))


def quantized_gb(parts: Mapping[str, "Files"]) -> float:
    """The same of a quantized variant, whose transformer and umT5 stay as they are in their files."""
    kept = sum(files.gb for part, files in parts.items() if part in ("transformer", "text_encoder"))
    return float(round(kept * 1.1 + 3))


@models_app.command("show")
def show_model(name: Name, as_json: Json = False) -> None:
    """Show what a model is: its parts and their forms, where it is from, and whether it fits here."""
    from broll import catalog, keeping, registry
    from broll.settings import Settings

    settings = Settings()
    known = registry.read().models.get(catalog.published_name(name) or "")
    if known is not None and known.name not in catalog.installed(settings):
        tell_missing(to_get(known), as_json=as_json)
        return
    tell(keeping.look(catalog.find(settings, name), settings), as_json=as_json)


def tell_missing(row: dict[str, Any], *, as_json: bool) -> None:
    """What can be had, and what it would need here."""
    from broll import catalog

    free = catalog.free_memory(catalog.device())
    if as_json:
        print(json.dumps(row | {"free_bytes": free}))
        return
    needs = {f"--quant {quant}": need for quant, need in row["quants"].items()}
    print(f"{'name':<14} {row['name']}, not on this machine")
    print(f"{'does':<14} {row['does']}")
    print(f"{'from':<14} {', '.join(row['layouts'].values())}")
    print(f"{'licence':<14} {row['license']}")
    for how, need in {"as published": row, **needs}.items():
        fits = "fits" if need["memory_gb"] * 1e9 <= free else "does not fit"
        said = f"{need['download_gb']:g} GB to download, about {need['memory_gb']:g} GB of memory"
        print(f"{how:<14} {said}: {fits} into the {gigabytes(free)} free here")
    print(f"{'to get it':<14} {row['get']}")


def tell(look: "Look", *, as_json: bool, more: dict[str, Any] | None = None) -> None:
    if as_json:
        print(json.dumps(facts(look) | (more or {})))
        return
    for title, text in lines(look):
        print(one_line(f"{title:<14} {text}"))


def facts(look: "Look") -> dict[str, Any]:
    usual = look.config.defaults
    return {
        "name": look.model.name,
        "path": str(look.model.folder),
        "layout": look.layout,
        "task": look.config.task,
        "does": DOES[look.config.task],
        "license": look.license,
        "sources": list(look.sources),
        "size_bytes": look.size_bytes,
        "parts": [
            {"part": p.component, "names": p.names, "place": str(p.place), "bytes": dict(p.kinds)}
            for p in look.parts
        ],
        "defaults": {"size": list(usual.size), "frames": usual.frames, "steps": usual.steps},
        "memory_bytes": look.memory_bytes,
        "free_bytes": look.free_bytes,
        "fits": look.fits,
    }


def lines(look: "Look") -> Iterator[tuple[str, str]]:
    usual = look.config.defaults
    yield "name", look.model.name
    yield "does", DOES[look.config.task]
    yield "lies in", f"{look.model.folder} ({look.layout} layout), {gigabytes(look.size_bytes)}"
    yield "from", ", ".join(look.sources) or "not downloaded by broll"
    yield "licence", look.license or "not known"
    for part in look.parts:
        kinds = ", ".join(f"{kind} {gigabytes(size)}" for kind, size in sorted(part.kinds.items()))
        yield part.component.replace("_", " "), f"{kinds}; {part.names} names"
    yield "by default", f"{usual.size[0]}x{usual.size[1]}, {usual.frames} frames, {usual.steps} steps"
    fits = "fit" if look.fits else "do not fit"
    yield (
        "memory",
        f"its weights take {gigabytes(look.memory_bytes)} and {fits} into the {gigabytes(look.free_bytes)} free here; "
        "broll plan says what a clip needs",
    )


# --- getting, adding, checking, removing ------------------------------------------------------------------


@models_app.command("pull")
def pull_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of broll models list, or OWNER/NAME.")],
    quant: Annotated[str | None, typer.Option(help="Quantized: fp8, q8 or q4.")] = None,
    layout: Annotated[str | None, typer.Option(help="original or diffusers.")] = None,
    revision: Annotated[str | None, typer.Option(help="A commit, tag or branch of the repository.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Download a model from the Hugging Face hub, or go on with a download."""
    os.environ.setdefault(
        "HF_HUB_DISABLE_TELEMETRY", "1"
    )  # read when it is imported: only what was asked for is sent
    from huggingface_hub.utils import logging

    from broll import catalog, keeping, pulling
    from broll.settings import Settings

    # what it retries is no news; what fails is an error of ours
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if layout is not None and layout not in ("original", "diffusers"):
        raise BadOption(f"--layout is {layout!r}; possible are original and diffusers")
    settings = Settings()
    pull = pulling.plan(settings, name, quant=quant, layout=layout, revision=revision)
    here = pulling.already(settings, pull)
    if here:
        say(f"{pull.name} is here already")
    else:
        say(f"{pull.name}: {gigabytes(pull.size)} from {', '.join(pull.sources)} to {pull.folder}")
        try:
            follow(pulling.carry_out(pull), quiet=quiet)
        except KeyboardInterrupt:
            say("stopped; what was downloaded is kept, and the same command goes on with it")
            raise
    look = keeping.look(catalog.find(settings, pull.name), settings)
    tell(look, as_json=as_json, more={"already": here})


def follow(found: "Iterator[Progress]", *, quiet: bool) -> None:
    """Show how far it is, in megabytes."""
    from broll.cli.progress import display

    shown, stage, begin, first, last = display(quiet=quiet), "", 0.0, 0, -1
    try:
        for at in found:
            if at.stage != stage:
                stage, begin, first = at.stage, time.monotonic(), at.done
                shown.stage(f"{stage}, MB", max(1, at.total // MEGABYTE))
            pace = (at.done - first) / max(1e-3, time.monotonic() - begin)
            if at.done // MEGABYTE != last and pace > 0:
                shown.at(at.done // MEGABYTE, (at.total - at.done) / pace)
            last = at.done // MEGABYTE
    finally:
        shown.close()


@models_app.command("add")
def add_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name from now on.")],
    place: Annotated[
        Path, typer.Argument(metavar="PLACE", help="A model's folder, or a transformer's file.")
    ],
    vae: Place = None,
    text_encoder: Place = None,
    image_encoder: Place = None,
    tokenizer: Annotated[Path | None, typer.Option(help="umT5's folder.")] = None,
    defaults_of: Annotated[
        str | None, typer.Option(help="The published model whose defaults it has.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give weights of your own a name. They stay where they are."""
    from broll import keeping
    from broll.settings import Settings

    given = {"vae": vae, "text_encoder": text_encoder, "image_encoder": image_encoder, "tokenizer": tokenizer}
    parts = {part: path for part, path in given.items() if path is not None}
    settings = Settings()
    added = keeping.add(settings, name, place, parts, defaults_of=defaults_of)
    tell(keeping.look(added, settings), as_json=as_json)


@models_app.command("verify")
def verify_model(name: Name, quiet: Quiet = False, as_json: Json = False) -> int:
    """Check every byte of a model against the record of its download, or else every name and shape."""
    from broll import catalog, keeping, records
    from broll.settings import Settings

    model = catalog.find(Settings(), name)
    damaged: list[keeping.Damage] = []

    def progress() -> "Iterator[Progress]":
        for found in keeping.verify(model):
            if isinstance(found, keeping.Damage):
                damaged.append(found)
            else:
                yield found

    follow(progress(), quiet=quiet)
    record = records.read(model.folder)
    by = "bytes" if record is not None and record.files else "names and shapes"
    if as_json:
        problems = [{"path": one.path, "what": one.what} for one in damaged]
        print(json.dumps({"name": model.name, "whole": not damaged, "checked": by, "problems": problems}))
        return 1 if damaged else 0
    for one in damaged:
        print(one_line(f"damaged  {one.path}: {one.what}"))
    if not damaged:
        print(one_line(f"{model.name} is whole, by its {by}"))
    return 1 if damaged else 0


@models_app.command("remove")
def remove_model(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> int:
    """Remove a model from the folder of models; of an added one, only its name."""
    from broll import keeping
    from broll.settings import Settings

    settings = Settings()
    removal = keeping.to_remove(settings, name)
    what = "a link" if removal.link else gigabytes(removal.size_bytes)
    asked = f"{', '.join(map(str, removal.places))} ({what})"
    if not yes and not sys.stdin.isatty():
        raise BadOption(f"this would remove {asked}: say --yes")
    try:
        if not yes and not typer.confirm(one_line(f"remove {asked}?"), err=True):
            return 0
    except typer.Abort:
        return 130
    keeping.remove(settings, removal)
    if as_json:
        paths = [str(place) for place in removal.places]
        print(json.dumps({"name": removal.name, "removed": paths, "size_bytes": removal.size_bytes}))
    else:
        say(f"removed {asked}")
    return 0
