"""The coach's own phrases and word lists, from data/wording.toml: read once, when the first prompt is looked at."""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from broll.prompts import words


@dataclass(frozen=True)
class Fitting:
    stems: frozenset[str]  # of the words that it fits; empty: all
    text: str  # "" where nothing fits


@dataclass(frozen=True)
class Wording:
    motion: Mapping[str, tuple[Fitting, ...]]  # by class of subject
    physics: Mapping[str, tuple[Fitting, ...]]
    light: tuple[Fitting, ...]
    camera: Mapping[str, str]  # class -> move
    camera_else: str
    resting: frozenset[str]
    resting_verbs: frozenset[str]
    compounds: frozenset[str]
    still: frozenset[str]
    verbs: Mapping[str, str]  # every form -> third person
    adverbs: Mapping[str, str]
    whither: frozenset[str]
    small: frozenset[str]
    no_name: frozenset[str]
    foreign: frozenset[str]


def fitting(entries: Sequence[Fitting], text: str) -> str | None:
    """The first phrase that fits a word of the text; None if none does."""
    said = {words.stem(token.text) for token in words.tokens(text)}
    return next((entry.text for entry in entries if not entry.stems or entry.stems & said), None)


@functools.cache
def load() -> Wording:
    data = tomllib.loads((resources.files("broll.prompts") / "data" / "wording.toml").read_text("utf-8"))
    verbs, resting = data["verbs"], data["resting"]
    return Wording(
        motion={name: _fittings(rows) for name, rows in data["motion"].items()},
        physics={name: _fittings(rows) for name, rows in data["physics"].items()},
        light=_fittings(data["light"]),
        camera={name: move for move, names in data["camera"].items() if move != "else" for name in names},
        camera_else=data["camera"]["else"],
        resting=frozenset(resting["words"]) | frozenset(resting["verbs"]),
        resting_verbs=frozenset(resting["verbs"]),
        compounds=frozenset(resting["before"]),
        still=frozenset(resting["still"]),
        verbs={form: verb for base, verb in verbs.items() for form in (base, verb)},
        adverbs=data["adverbs"],
        whither=frozenset(data["whither"]["words"]),
        small=frozenset(data["small"]["words"]),
        no_name=frozenset(data["no_name"]["words"]),
        foreign=frozenset(data["foreign"]["words"]),
    )


def _fittings(rows: list[dict[str, Any]]) -> tuple[Fitting, ...]:
    return tuple(
        Fitting(frozenset(words.stem(word) for word in row.get("words", ())), row["text"]) for row in rows
    )
