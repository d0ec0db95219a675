"""Which models can be had by name: repository, commit, needed files, licence. The facts are in registry.toml.

A model lies on the hub in two layouts, and for most there are quantized transformers by others. A quantized variant is
put together from several repositories: the transformer, umT5 of the same kind, CLIP, and the original's small files.
"""

import functools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("registry.toml")
LAYOUTS, QUANTS = ("original", "diffusers"), ("fp8", "q8", "q4")
SMALL = "small"  # the autoencoder and the tokenizer of a quantized variant


@dataclass(frozen=True)
class Files:
    """Some files of one repository."""

    repository: str
    revision: str
    patterns: tuple[str, ...]
    gb: float = 0.0  # to download, about; 0: not known

    def need(self, path: str) -> bool:
        return matches(path, self.patterns)


@dataclass(frozen=True)
class Known:
    """A model that has a name."""

    name: str
    license: str
    layouts: Mapping[str, Files]
    quants: Mapping[str, Mapping[str, Files]]  # fp8 ... -> part -> where it is

    def repositories(self) -> Iterator[str]:
        for files in self.layouts.values():
            yield files.repository


@dataclass(frozen=True)
class Registry:
    models: Mapping[str, Known]
    layouts: Mapping[str, tuple[str, ...]]  # what of a repository is needed

    def named(self, text: str) -> Known | None:
        """By `wan2.1-t2v-1.3b`, `Wan2.1-T2V-1.3B-Diffusers` or `Wan-AI/Wan2.1-T2V-1.3B`, in any case."""
        text = text.lower()
        for known in self.models.values():
            repositories = [repository.lower() for repository in known.repositories()]
            lasts = [repository.split("/")[-1] for repository in repositories]
            if text in (known.name, *repositories, *lasts):
                return known
        return None


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """`*` stands for any part of one name, not for folders."""
    return any(path.count("/") == pattern.count("/") and fnmatchcase(path, pattern) for pattern in patterns)


def total_gb(parts: Mapping[str, Files]) -> float:
    """To download, of a quantized variant."""
    return round(sum(files.gb for files in parts.values()), 1)


@functools.cache
def read(path: Path = DATA) -> Registry:
    value = tomllib.loads(path.read_text(encoding="utf-8"))
    layouts = {name: tuple(value["layouts"][name]) for name in LAYOUTS}
    models = {name: _known(name, model, layouts, value) for name, model in value["models"].items()}
    return Registry(models, layouts)


def _known(
    name: str, model: Mapping[str, Any], layouts: Mapping[str, tuple[str, ...]], shared: Mapping[str, Any]
) -> Known:
    whole = {
        layout: Files(
            model[layout]["repository"],
            model[layout]["revision"],
            layouts[layout],
            model[layout].get("gb", 0.0),
        )
        for layout in LAYOUTS
        if layout in model
    }
    return Known(
        name=name,
        license=model["license"],
        layouts=whole,
        quants={quant: _parts(model, quant, shared) for quant in QUANTS if quant in model},
    )


def _parts(model: Mapping[str, Any], quant: str, shared: Mapping[str, Any]) -> dict[str, Files]:
    original, small = model["original"], shared["small"]
    parts = {
        "transformer": _one(model[quant]),
        "text_encoder": _one(shared["text_encoder"][quant]),
        SMALL: Files(
            original["repository"], original["revision"], tuple(small["files"]), small.get("gb", 0.0)
        ),
    }
    if model.get("pictures", False):
        parts["image_encoder"] = _one(shared["image_encoder"])
    return parts


def _one(value: Mapping[str, Any]) -> Files:
    return Files(value["repository"], value["revision"], (value["file"],), value.get("gb", 0.0))
