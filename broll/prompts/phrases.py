"""The short notation in which the data writes phrases, compiled.

    (a|b)   alternatives, in one another if need be       [a]   may be left out
    ~pan    pan, pans, panning, panned                    +cat  cat, cats; a plural ends its phrase: "+fire truck"
    ?x      weak: counts only where film is meant         !x    guarded: only where the camera does it
    x / a b-c    not before "a" nor before "b c"          x < a     not after "a"

A phrase becomes states, each a table from a word to the states behind it. They are built from the end, so that
alternatives share what follows them: written out, the data would be 34,000 phrases.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from broll.prompts import words

VOWELS = "aeiou"
PART = re.compile(r"[()\[\]|]|[^()\[\]|]+")


@dataclass(frozen=True, slots=True, eq=False)
class State:
    done: bool
    ways: dict[str, tuple["State", ...]] = field(default_factory=dict)


END = State(done=True)


@dataclass(frozen=True, slots=True)
class Phrase:
    mode: str  # "", "?" or "!"
    start: State
    not_before: tuple[tuple[str, ...], ...]
    not_after: tuple[str, ...]
    words: frozenset[str]


def ends(said: Sequence[str], breaks: Sequence[bool], state: State, at: int) -> list[int]:
    """Every place where a phrase that stands in `state` before the word `at` may end."""
    found = [at] if state.done else []
    if state.ways and at < len(said) and not breaks[at]:
        for behind in state.ways.get(said[at], ()):
            found += ends(said, breaks, behind, at + 1)
    return found


@functools.cache
def verb(base: str) -> tuple[str, ...]:
    """walk, walks, walking, walked: regular verbs, in English spelling."""
    if base.endswith("e"):
        return base, base + "s", (base if base.endswith("ee") else base[:-1]) + "ing", base[:-1] + "ed"
    if base.endswith("y") and base[-2] not in VOWELS:
        return base, base[:-1] + "ies", base + "ing", base[:-1] + "ied"
    short = len(re.findall(f"[{VOWELS}]+", base)) == 1 and len(base) > 2
    if short and base[-1] not in VOWELS + "wxy" and base[-2] in VOWELS and base[-3] not in VOWELS:
        return base, base + "s", base + base[-1] + "ing", base + base[-1] + "ed"
    return base, _with_s(base), base + "ing", base + "ed"


def noun(base: str) -> tuple[str, ...]:
    if base.endswith("y") and base[-2:-1] not in VOWELS:
        return base, base[:-1] + "ies"
    return base, _with_s(base)


def _with_s(base: str) -> str:
    return base + ("es" if base.endswith(("s", "x", "sh", "ch", "z")) else "s")


def _either(some: list[State]) -> State:
    """Whatever any of them accepts."""
    if len(some) == 1:
        return some[0]
    ways: dict[str, tuple[State, ...]] = {}
    for state in some:
        for word, behind in state.ways.items():
            ways[word] = ways.get(word, ()) + tuple(new for new in behind if new not in ways.get(word, ()))
    return State(any(state.done for state in some), ways)


def _words(text: str) -> list[tuple[str, ...]]:
    """Every word of a piece of text, in all its forms."""
    found: list[tuple[str, ...]] = []
    plural = False
    for piece in text.split():
        plural = plural or piece.startswith("+")
        if piece.startswith("~"):
            found.append(verb(piece[1:]))
        else:
            found.extend((token.text,) for token in words.tokens(piece))
    if plural:
        found[-1] = noun(found[-1][0])
    return found


def _sequence(text: str, behind: State, seen: set[str]) -> State:
    for forms in reversed(_words(text)):
        seen.update(forms)
        behind = State(done=False, ways=dict.fromkeys(forms, (behind,)))
    return behind


Node = str | tuple[list["list[Node]"], bool]  # words; or alternatives, and whether they may be left out


def _parse(parts: Iterator[str]) -> list[list[Node]]:
    """Alternatives of sequences, up to the bracket that closes."""
    found: list[list[Node]] = [[]]
    for part in parts:
        if part in ")]":
            break
        if part == "|":
            found.append([])
        elif part in "([":
            found[-1].append((_parse(parts), part == "["))
        else:
            found[-1].append(part)
    return found


def _compile(ways: list[list[Node]], behind: State, seen: set[str]) -> State:
    starts = []
    for way in ways:
        state = behind
        for node in reversed(way):
            if isinstance(node, str):
                state = _sequence(node, state, seen)
            else:
                inner = _compile(node[0], state, seen)
                state = _either([inner, state]) if node[1] else inner
        starts.append(state)
    return _either(starts)


def read(source: str) -> Phrase:
    mode = source[0] if source[0] in "?!" else ""
    body, _, after = source[len(mode) :].partition(" < ")
    body, _, before = body.partition(" / ")
    seen: set[str] = set()
    start = _compile(_parse(iter(PART.findall(body))), END, seen)
    vetoes = tuple(tuple(token.text for token in words.tokens(veto)) for veto in before.split())
    return Phrase(mode, start, vetoes, tuple(after.split()), frozenset(seen))
