"""`broll loras list|show`: which LoRAs are here, what is in them, what they ask for, and which models they fit."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broll.cli.output import gigabytes, one_line, say

if TYPE_CHECKING:
    from broll.engine.config import TransformerConfig
    from broll.engine.lora_files import Lora
    from broll.settings import Settings

loras_app = typer.Typer(help="Which LoRAs are here, and what is in them.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
SHOWN = 5  # keys of a list


@loras_app.command("list")
def list_loras(as_json: Json = False) -> None:
    """Show the LoRAs on this machine."""
    from broll import loras
    from broll.settings import Settings

    settings = Settings()
    rows = [brief(name, path) for name, path in loras.installed(settings).items()]
    if as_json:
        print(json.dumps({"loras": rows}))
        return
    for row in rows:
        about = f"cannot be used: {row['error']}" if "error" in row else told(row)
        print(one_line(f"{row['name']:<28} {about}"))
    if not rows:
        say(f"there is no LoRA here; they belong into {settings.models / loras.FOLDER}")


@loras_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A LoRA's name, or its file or folder.")], as_json: Json = False
) -> None:
    """Show what is in a LoRA, what it asks for, and which models it fits."""
    from broll import loras
    from broll.engine import lora_files
    from broll.settings import Settings

    settings = Settings()
    path = loras.find(settings, name, paths=True)
    lora = lora_files.read(path)
    row = about(lora) | {"sha256": loras.digest(path), "fits": fits(lora, settings)}
    if as_json:
        print(json.dumps(row))
        return
    for title, text in lines(row):
        print(f"{title:<16} {one_line(text)}")


def brief(name: str, path: Path) -> dict[str, Any]:
    """A LoRA that cannot be read is a row too."""
    from broll.engine import lora_files
    from broll.errors import BadCheckpoint

    try:
        row = about(lora_files.read(path))
    except BadCheckpoint as error:
        return {"name": name, "file": str(path), "error": str(error)}
    return row | {"unmatched": len(row["unmatched"])}


def about(lora: "Lora") -> dict[str, Any]:
    from broll.engine.lora_card import card

    made = card(lora)
    row = {"name": lora.name, "file": str(lora.path), "size_bytes": lora.path.stat().st_size}
    wants = None if made.wants is None else dataclasses.asdict(made.wants)
    return row | dataclasses.asdict(made) | {"ranks": list(made.ranks), "wants": wants}


def models(settings: "Settings") -> "dict[TransformerConfig, list[str]]":
    """Every published model and every one that is here; some share their numbers."""
    from broll import catalog, wiring
    from broll.engine.config import PUBLISHED
    from broll.errors import BadCheckpoint

    found: dict[TransformerConfig, list[str]] = {}
    for name, model in catalog.installed(settings).items():
        try:
            found.setdefault(wiring.describe(model).transformer, []).append(name)
        except BadCheckpoint as error:
            say(f"warning: {name}: {error}")
    for name, config in PUBLISHED.items():
        names = found.setdefault(config.transformer, [])
        names += [] if name in names else [name]
    return found


def fits(lora: "Lora", settings: "Settings") -> dict[str, Any]:
    """By model: how many places it changes there, what has no effect, or why it cannot be used."""
    from broll.engine.lora_card import fitting

    table: dict[str, Any] = {}
    for config, names in models(settings).items():
        made = fitting(lora, config)
        row = {"places": made.places, "unused": [{"keys": len(u.keys), "why": u.why} for u in made.unused]}
        for name in names:
            table[name] = {"refused": made.refused} if made.refused else row
    return table


def told(row: dict[str, Any]) -> str:
    ranks = row["ranks"]
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else ""
    parts = [row["form"], rank, f"{row['pairs']} pairs" if row["pairs"] else ""]
    parts += [f"{row['differences']} differences" if row["differences"] else "", gigabytes(row["size_bytes"])]
    parts += [f"wants {asked(row['wants'])}" if row["wants"] else ""]
    return ", ".join(part for part in parts if part)


def asked(wants: dict[str, Any]) -> str:
    given = [f"{name} {value}" for name, value in wants.items() if value is not None and name != "source"]
    return ", ".join(given)


def lines(row: dict[str, Any]) -> list[tuple[str, str]]:
    found = [(row["name"], told(row | {"wants": None})), ("file", row["file"]), ("sha256", row["sha256"])]
    if row["wants"]:
        found.append(("wants", f"{asked(row['wants'])} ({row['wants']['source']})"))
        if row["wants"]["guidance"] == 1:
            found.append(("", "at guidance 1 a negative prompt has no effect"))
    for name, fit in row["fits"].items():
        if "refused" in fit:
            found.append((name, f"no: {fit['refused']}"))
            continue
        idle = "".join(f"; {unused['keys']} keys without effect: {unused['why']}" for unused in fit["unused"])
        found.append((name, f"changes {fit['places']} places{idle}"))
    if row["unmatched"]:
        more = f" and {len(row['unmatched']) - SHOWN} more" if len(row["unmatched"]) > SHOWN else ""
        found.append(("unknown keys", ", ".join(row["unmatched"][:SHOWN]) + more))
    return found
