"""`broll models list`: what is here, what can be had, and what it needs."""

import json
from typing import Annotated, Any

import typer

from broll.cli.output import gigabytes

DOES = {
    "t2v": "text to video",
    "i2v": "first picture and text to video",
    "flf2v": "first and last picture and text to video",
    None: "cannot be read",
}


def rows() -> list[dict[str, Any]]:
    """Every model known, present ones first."""
    from broll import catalog
    from broll.engine.config import PUBLISHED
    from broll.settings import Settings

    settings = Settings()
    here = catalog.installed(settings)
    table: list[dict[str, Any]] = []
    for model in here.values():
        size = catalog.size_bytes(model.folder)
        row = {"name": model.name, "here": True, "does": DOES[model.task], "path": str(model.folder)}
        table.append(row | {"size_bytes": size})
    if catalog.NANO not in here:
        get = catalog.how_to_get(catalog.NANO, settings)
        row = {
            "name": catalog.NANO,
            "here": False,
            "does": DOES["t2v"],
            "source": "broll-nano",
            "download_gb": 0.04,
        }
        table.append(row | {"license": "Apache-2.0", "memory_gb": 2.5, "get": get})
    for name, known in PUBLISHED.items():
        if name in here:
            continue
        row = {"name": name, "here": False, "does": DOES[known.task], "source": known.source}
        row |= {
            "download_gb": known.download_gb,
            "license": known.license,
            "memory_gb": memory_gb(known.parameters),
        }
        table.append(row | {"get": catalog.how_to_get(name, settings)})
    return table


def memory_gb(parameters: int) -> float:
    """In bf16: the transformer and umT5-XXL's 5.7 billion, and working memory for a default clip, about."""
    return float(round(2 * (parameters + 5.7e9) / 1e9 * 1.1 + 3))


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show the models on this machine and those that can be had."""
    table = rows()
    if as_json:
        print(json.dumps({"models": table}))
        return
    print("here")
    for row in [row for row in table if row["here"]]:
        print(f"  {row['name']:<22} {row['does']}; {gigabytes(row['size_bytes'])} in {row['path']}")
    if not any(row["here"] for row in table):
        print("  none yet")
    print("can be had")
    for row in [row for row in table if not row["here"]]:
        needs = f"{row['download_gb']:g} GB, about {row['memory_gb']:g} GB of memory, {row['license']}"
        print(f"  {row['name']:<22} {row['does']}; {needs}\n  {'':<22} {row['get']}")
