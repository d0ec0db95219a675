"""What broll put into a model's folder: repository, commit, size and sha256 of each file, in broll-files.json.

With it a folder can be checked without the hub, and a model says where it is from. A file of this name that somebody
else wrote is not believed further than its paths lie in the folder.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from broll.errors import BadCheckpoint

NAME = "broll-files.json"
VERSION = 1
LARGEST = 10_000_000  # bytes


@dataclass(frozen=True)
class Kept:
    """One file, as it was when it was downloaded."""

    size: int
    sha256: str
    repository: str
    revision: str


@dataclass(frozen=True)
class Record:
    license: str | None  # None: the hub did not say
    files: Mapping[str, Kept]  # by their paths in the folder
    task: str | None = None  # of one's own files, which no config.json describes

    def sources(self) -> list[str]:
        """Each repository at its commit, once, as REPOSITORY@COMMIT."""
        return list(dict.fromkeys(f"{kept.repository}@{kept.revision}" for kept in self.files.values()))


def write(folder: Path, record: Record) -> None:
    value: dict[str, Any] = {"version": VERSION, "license": record.license, "task": record.task}
    value |= {"files": {path: asdict(kept) for path, kept in sorted(record.files.items())}}
    partial = folder / f"{NAME}.new"
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / NAME)


def read(folder: Path) -> Record | None:
    """None: broll did not make this folder."""
    path = folder / NAME
    try:
        if path.stat().st_size > LARGEST:
            raise BadCheckpoint(f"{path} is larger than {LARGEST // 1_000_000} MB")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    try:
        files = {name: _kept(kept) for name, kept in value["files"].items()}
        record = Record(value["license"], files, value["task"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{path} is no record of a download") from error
    odd = next((name for name in record.files if not _inside(name)), None)
    if odd is not None:
        raise BadCheckpoint(f"{path} names {odd!r}, which is no path inside its folder")
    return record


def _kept(value: Any) -> Kept:
    made = Kept(value["size"], value["sha256"], value["repository"], value["revision"])
    if type(made.size) is not int or not all(
        isinstance(text, str) for text in (made.sha256, made.repository, made.revision)
    ):
        raise TypeError(value)
    return made


def _inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name and bool(path.parts)
