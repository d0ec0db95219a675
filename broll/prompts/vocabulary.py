"""The data of data/*.toml, typed and read once.

`entries` is everything that the lexicon finds; the rest is what rules and the rewriter choose from.
"""

import functools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from broll.prompts import phrases
from broll.prompts.phrases import Phrase


@dataclass(frozen=True)
class Move:
    name: str  # canonical, the `name` of a camera Term: "pan left"
    phrase: str  # what a prompt says, without speed: "camera pans left"; "" for "vague"
    measured: tuple[str, ...]  # names of measured moves that satisfy it
    opposite: str | None  # the move that undoes it


@dataclass(frozen=True)
class Subject:
    name: str  # the `name` of a subject Term: "water"
    motions: tuple[str, ...]  # phrases to add, best first: "water rippling gently"
    anchors: tuple[str, ...]  # physics phrases to add, best first; () if it needs none
    fluid: bool  # fluid, cloth or particles: PHY-1 asks for an anchor


@dataclass(frozen=True)
class Use:
    name: str  # "ambient-loop"
    about: str
    slots: tuple[
        str, ...
    ]  # what a prompt for it needs, of: style motion physics light atmosphere camera shot
    phrases: Mapping[str, tuple[str, ...]]  # slot -> phrases to add, best first
    camera: tuple[str, ...]  # names of moves that suit it, best first
    loop: bool


@dataclass(frozen=True)
class Entry:
    kind: str
    name: str
    phrase: Phrase


@functools.cache
def table(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("broll.prompts").joinpath("data", f"{name}.toml").read_text("utf-8"))


@functools.cache
def moves() -> Mapping[str, Move]:
    return MappingProxyType(
        {
            row["name"]: Move(row["name"], row["phrase"], tuple(row["measured"]), row.get("opposite"))
            for row in table("camera")["move"]
        }
    )


@functools.cache
def subjects() -> Mapping[str, Subject]:
    return MappingProxyType(
        {
            name: Subject(name, tuple(row["motions"]), tuple(row["anchors"]), row["fluid"])
            for name, row in table("subjects")["class"].items()
        }
    )


@functools.cache
def uses() -> Mapping[str, Use]:
    return MappingProxyType(
        {
            name: Use(
                name,
                row["about"],
                tuple(row["slots"]),
                MappingProxyType({slot: tuple(choice) for slot, choice in row["phrases"].items()}),
                tuple(row["camera"]),
                row["loop"],
            )
            for name, row in table("uses").items()
        }
    )


@functools.cache
def style_presets() -> Mapping[str, str]:
    """Name -> phrase to put in front: "cinematic" -> "4K cinematic, shallow depth of field, ..."."""
    return MappingProxyType(dict(table("looks")["preset"]))


@functools.cache
def style_families() -> Mapping[str, str]:
    """Name of a style Term -> photo, drawn, render or any. Two of the first three contradict each other."""
    return MappingProxyType(
        {name: family for family, styles in table("looks")["style"].items() for name in styles}
    )


def _sources() -> Iterator[tuple[str, str, str]]:
    """Kind, name and source of every phrase."""
    camera, looks, things = table("camera"), table("looks"), table("subjects")
    for row in camera["move"]:
        marked = [
            *row["phrases"],
            *("?" + weak for weak in row.get("weak", ())),
            *("!" + guarded for guarded in row.get("guarded", ())),
        ]
        yield from (("camera", row["name"], source) for source in marked)
    groups = {kind: camera[kind] for kind in ("shot", "angle", "lens", "speed", "cut")}
    groups["speed"] = {
        name: [*some, *camera["adverb"].get(name, ())] for name, some in camera["speed"].items()
    }
    groups |= {kind: looks[kind] for kind in ("light", "atmosphere")}
    groups |= {kind: things[kind] for kind in ("person", "count", "stative", "physics", "duration")}
    groups["style"] = {name: some for styles in looks["style"].values() for name, some in styles.items()}
    groups["subject"] = {name: row["words"] for name, row in things["class"].items()}
    for kind, names in groups.items():
        for name, some in names.items():
            yield from ((kind, name, source) for source in some)
    for row in things["class"].values():
        for anchor in row["anchors"]:
            yield from (("physics", "anchor", part) for part in anchor.split(", "))
    for source in things["motion"]["irregular"]:
        yield "motion", "", source


@functools.cache
def entries() -> tuple[Entry, ...]:
    """The name of a motion is its first form; everything else is named in the data."""
    found = [Entry(kind, name, phrases.read(source)) for kind, name, source in _sources()]
    for source in table("subjects")["motion"]["verbs"]:
        phrase = phrases.read(source)
        found.append(Entry("motion", source.split()[0].lstrip("~"), phrase))
    return tuple(found)


@functools.cache
def adverbs() -> tuple[tuple[str, Phrase], ...]:
    """What may stand inside a move: "pans slowly to the left"."""
    camera = table("camera")
    return tuple(
        (name, phrases.read(source))
        for part in ("adverb", "inside")
        for name, some in camera[part].items()
        for source in some
    )
