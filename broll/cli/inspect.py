"""`broll inspect FILE`: what a clip says about how it was made. It is untrusted, and shown as such."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from broll.cli.output import gigabytes, one_line


def inspect(
    file: Annotated[Path, typer.Argument(help="A clip that broll made.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show the prompt, seed and settings that a clip was made with."""
    from broll.cli.coaching import measured
    from broll.clips import read_record
    from broll.media.video_file import probe

    record, info = read_record(file), probe(file)
    if as_json:
        facts = record.model_dump(exclude_none=True)
        print(json.dumps({"file": str(file), **facts, "video": dataclasses.asdict(info)}))
        return
    spec = record.spec.model_dump(exclude_none=True, exclude={"schema_version"})
    rows = {name.replace("_", " "): str(value) for name, value in spec.items() if value != ()}
    for name in {"image", "last_image"} & spec.keys():
        rows[name.replace("_", " ")] = spec[name]["sha256"]
    rows["file"] = (
        f"{info.width}x{info.height}, {info.frames} frames at {info.fps:g} fps, {info.seconds:.2f} s, "
        f"{info.codec}, {gigabytes(info.size_bytes)}"
    )
    rows["latents sha256"] = record.latents_sha256
    rows["made by"] = f"broll {record.broll}, torch {record.conditions.get('torch', '?')}"
    rows["resumed"] = (
        "elsewhere: under other conditions than it was begun" if record.resumed_elsewhere else ""
    )
    rows |= measured(record)
    for name, value in rows.items():
        if value:
            print(f"{name:<16} {one_line(value)}")
    for name, digest in record.weights.items():
        # a file's SHA-256, or what was done to the weights
        short = digest[:17] if len(digest) >= 64 else digest
        print(f"{'weights':<16} {one_line(name)} {one_line(short)}")
