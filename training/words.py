"""The tables of words.toml, checked and typed."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DATA: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text())


@dataclass(frozen=True)
class Table:
    """Phrases for one label; training never uses those in `unseen`."""

    said: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    clear: tuple[str, ...] = ()  # lights: said only where the sky is to be seen
    details: tuple[str, ...] = ()  # scenes: "water rippling gently"
    clauses: tuple[str, ...] = ()  # scenes: "the water ripples gently"
    left: tuple[str, ...] = ()  # cameras that go either way: what names the way
    right: tuple[str, ...] = ()

    def phrases(self, unseen: bool) -> tuple[str, ...]:
        return self.unseen if unseen and self.unseen else self.said


@dataclass(frozen=True)
class Pace:
    """How fast a camera goes: "slowly" and "slow"."""

    adverbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    unseen: tuple[str, ...]  # adverbs


@dataclass(frozen=True)
class Article:
    """A prompt word for word, the labels of the clips that it fits, and which of them it names."""

    prompt: str
    clip: dict[str, str]
    names: tuple[str, ...]


def _table(raw: dict[str, Any]) -> Table:
    names = {"as": "clauses"}  # a keyword of Python
    return Table(**{names.get(key, key): tuple(values) for key, values in raw.items()})


def _tables(name: str) -> dict[str, Table]:
    return {label: _table(raw) for label, raw in _DATA[name].items()}


SCENES = _tables("scene")
LIGHTS = _tables("light")
CAMERAS = _tables("camera")  # by camera, or "camera/move" where people say which
STYLES = _tables("style")
SPEEDS = {label: Pace(**{k: tuple(v) for k, v in raw.items()}) for label, raw in _DATA["speed"].items()}
PAIRS: dict[str, list[str]] = _DATA["pair"]  # by "scene/light"
DAYLIGHT: list[str] = _DATA["daylight"]["said"]
DAYLIGHTS: list[str] = _DATA["daylight"]["lights"]
MIXED: list[str] = _DATA["mixed"]["said"]
MIXED_STYLES: list[str] = _DATA["mixed"]["styles"]
TAILS: list[str] = _DATA["tails"]["said"]
SHOTS: list[str] = _DATA["shots"]["said"]
ADJECTIVES: list[str] = _DATA["adjectives"]["said"]
ARTICLES = tuple(Article(raw["prompt"], raw["clip"], tuple(raw["names"])) for raw in _DATA["article"])
