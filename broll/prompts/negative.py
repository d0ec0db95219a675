"""The negative prompt that fits the positive one.

    the model's published list  -  what the prompt asks for  +  what the prompt excludes

WAN's list pushes away 静态 (static), 风格 (style), 字幕 (subtitles), 色调艳丽 (bright tones), 背景人很多 (many
people in the background), whatever the prompt says. data/negative.toml tells what each word of such lists
excludes, in Chinese and English. Nothing else is added, and nothing is hidden: `dropped` and `added` carry the
reason.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any

from broll.prompts import phrases, vocabulary
from broll.prompts.phrases import Phrase
from broll.prompts.slots import Slots
from broll.prompts.words import Span, tokens

PARTS = re.compile(r"[，,;；\n]")
STILL = frozenset({"static", "vague", "rack focus"})


@dataclass(frozen=True)
class Negative:
    text: str
    dropped: tuple[tuple[str, str], ...] = ()  # token, why
    added: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Token:
    """A word of a base list, and what in a prompt asks for the thing."""

    asked_by: tuple[str, ...]
    but: tuple[str, ...]
    titles: bool
    said: tuple[Phrase, ...]
    why: str


def _token(row: dict[str, Any]) -> Token:
    said = [*row.get("words", ()), *row.get("phrases", ())]
    return Token(
        tuple(row["asked_by"]),
        tuple(row.get("but", ())),
        row.get("titles", False),
        tuple(phrases.read(source) for source in said),
        row["why"],
    )


@functools.cache
def _tokens() -> dict[str, Token]:
    found: dict[str, Token] = {}
    for row in vocabulary.table("negative")["token"]:
        token = _token(row)
        found.update((name.lower(), token) for name in row["tokens"])
    return found


def _by_term(token: Token, slots: Slots) -> str | None:
    families = vocabulary.style_families()
    for term in (one for outer in slots.terms for one in (outer, *outer.inner)):
        keys = {f"{term.kind}:{term.name}", f"{term.kind}:*"}
        if term.kind == "style":
            keys.add(f"style/{families[term.name]}")
        if term.kind == "camera" and term.name not in STILL:
            keys.add("moving")
        if keys & set(token.asked_by) and not keys & set(token.but):
            return term.text
    return None


def _by_words(token: Token, text: str, unsaid: tuple[Span, ...]) -> str | None:
    words = [
        one for one in tokens(text) if not any(span.start <= one.span.start < span.end for span in unsaid)
    ]
    said, breaks = [one.text for one in words], [False] * len(words)
    for at, word in enumerate(said):
        for phrase in token.said:
            for state in phrase.start.ways.get(word, ()):
                if ends := phrases.ends(said, breaks, state, at + 1):
                    return text[words[at].span.start : words[max(ends) - 1].span.end]
    return None


def _asks(token: Token, slots: Slots) -> str | None:
    """What in the prompt asks for the thing, as written."""
    if token.titles and slots.titles:
        return slots.titles[0].words
    unsaid = tuple(one.span for one in slots.excluded) + tuple(one.span for one in slots.titles)
    return _by_term(token, slots) or _by_words(token, slots.text, unsaid)


def build(prompt: str, base: str, slots: Slots) -> Negative:
    """`slots` is `parse(prompt)`."""
    asks = functools.cache(lambda token: _asks(token, slots))
    kept: list[str] = []
    dropped: list[tuple[str, str]] = []
    for part in PARTS.split(base):
        word = part.strip()
        token = _tokens().get(word.lower())
        found = asks(token) if token else None
        if token and found:
            dropped.append((word, token.why.format(found=" ".join(found.split()))))
        elif word:
            kept.append(word)
    present = {word.lower() for word in kept}
    added = {
        thing: f'the prompt excludes it ("{" ".join(prompt[one.span.start : one.span.end].split())}")'
        for one in slots.excluded
        for thing in one.things
        if thing not in present
    }
    if not dropped and not added:
        return Negative(base)
    joint = "，" if "，" in base or not base.strip().isascii() else ", "
    return Negative(joint.join([*kept, *added]), tuple(dropped), tuple(added.items()))
