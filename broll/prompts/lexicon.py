"""Film language and subjects found in a text: `find`.

From left to right, the longest phrase first; terms never overlap. Between the words of a camera move adverbs may
stand; they are terms `inner` to the move. Which of the ambiguous phrases count, company.py says; which wrong words
are put right, spelling.py.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from broll.prompts import measures, spelling, vocabulary
from broll.prompts.company import Match, Reading, counts
from broll.prompts.phrases import State, ends
from broll.prompts.vocabulary import Entry
from broll.prompts.words import Span, tokens

# Of two phrases with the same words the first kind wins.
KINDS = (
    "camera", "shot", "angle", "lens", "style", "light", "speed", "cut", "duration", "count", "physics",
    "person", "subject", "motion", "atmosphere", "stative",
)  # fmt: skip
NEEDS_COMPANY = 5  # a wrong word as short as this is put right only beside another film word

BREAKS = frozenset('.,;:!?…()[]{}"“”«»|\n\r，。；：！？、（）「」『』—–')


@dataclass(frozen=True)
class Term:
    kind: str  # one of KINDS
    name: str  # canonical: "pan left", "close-up", "water"
    span: Span
    text: str  # as written
    typo: bool = False
    meant: str = ""  # of a typo: the text as it should be
    inner: tuple["Term", ...] = ()  # adverbs inside a move: "pans slowly to the left"


@functools.cache
def _index() -> dict[str, tuple[tuple[Entry, State], ...]]:
    """First word -> what may follow."""
    found: dict[str, list[tuple[Entry, State]]] = {}
    for entry in vocabulary.entries():
        for word, states in entry.phrase.start.ways.items():
            found.setdefault(word, []).extend((entry, state) for state in states)
    return {word: tuple(some) for word, some in found.items()}


@functools.cache
def _adverbs() -> dict[str, tuple[tuple[str, State], ...]]:
    found: dict[str, list[tuple[str, State]]] = {}
    for name, phrase in vocabulary.adverbs():
        for word, states in phrase.start.ways.items():
            found.setdefault(word, []).extend((name, state) for state in states)
    return {word: tuple(some) for word, some in found.items()}


def _adverb_at(said: list[str], breaks: list[bool], at: int) -> tuple[int, str] | None:
    """The end and the name of the longest adverb that begins here."""
    found = [
        (end, name)
        for name, state in _adverbs().get(said[at], ())
        for end in ends(said, breaks, state, at + 1)
    ]
    return max(found, default=None)


Inner = tuple[tuple[int, int, str], ...]


def _ends_of_move(reading: Reading, state: State, at: int, inner: Inner = ()) -> Iterator[tuple[int, Inner]]:
    """The same, where adverbs may stand between two words; two at most."""
    if state.done and not (inner and inner[-1][1] == at):
        yield at, inner
    if not state.ways or at >= len(reading.said) or reading.breaks[at]:
        return
    for behind in state.ways.get(reading.said[at], ()):
        yield from _ends_of_move(reading, behind, at + 1, inner)
    skip = reading.adverbs[at]
    if skip and len(inner) < 2:
        yield from _ends_of_move(reading, state, skip[0], (*inner, (at, *skip)))


def _ends_of(entry: Entry, reading: Reading, state: State, at: int) -> Iterable[tuple[int, Inner]]:
    if entry.kind == "camera":
        return _ends_of_move(reading, state, at)
    return ((end, ()) for end in ends(reading.said, reading.breaks, state, at))


def _matches(reading: Reading, at: int) -> list[Match]:
    """What begins here, the longest first."""
    found: dict[tuple[str, str, str, int], Match] = {}
    last = at + 1 == len(reading.said) or reading.breaks[at + 1]
    behind, skip = ("", None) if last else (reading.said[at + 1], reading.adverbs[at + 1])
    for entry, state in _index().get(reading.said[at], ()):
        if not state.done and not skip and behind not in state.ways:
            continue
        for end, inner in _ends_of(entry, reading, state, at + 1):
            wrong = tuple(i for i in range(at, end) if reading.said[i] != reading.tokens[i].text)
            match = Match(entry, at, end, inner, wrong)
            if not wrong or _may_be_put_right(match, reading):
                found.setdefault((entry.kind, entry.name, entry.phrase.mode, end), match)
    return sorted(found.values(), key=lambda m: (-m.end, KINDS.index(m.entry.kind), m.entry.phrase.mode))


def _may_be_put_right(match: Match, reading: Reading) -> bool:
    if match.entry.kind not in spelling.FILM:
        return False
    return match.end - match.first > len(match.wrong) or all(
        len(reading.said[i]) > NEEDS_COMPANY or sorted(reading.said[i]) == sorted(reading.tokens[i].text)
        for i in match.wrong
    )


def _clauses(breaks: list[bool]) -> list[tuple[int, int]]:
    """First and end of the clause of each token."""
    edges = [0, *(i for i, broken in enumerate(breaks) if broken), len(breaks)]
    return [(first, end) for first, end in pairwise(edges) for _ in range(first, end)]


def _read(text: str) -> Reading:
    some = tokens(text)
    said = [spelling.meant(token.text) or token.text for token in some]
    breaks = [
        i > 0 and not BREAKS.isdisjoint(text[some[i - 1].span.end : token.span.start])
        for i, token in enumerate(some)
    ]
    adverbs = [_adverb_at(said, breaks, i) for i in range(len(said))]
    return Reading(
        text, some, said, breaks, adverbs, [word in _adverbs() for word in said], _clauses(breaks), {}
    )


def _inner(match: Match, reading: Reading) -> tuple[Term, ...]:
    """The adverbs of a move; the motion and its pace in "rippling gently", which is physics."""
    found = list(match.inner)
    kinds = ["speed"] * len(found)
    if match.entry.kind == "physics":
        for at in range(match.first, match.end):
            adverb = reading.adverbs[at]
            if adverb and adverb[0] <= match.end:
                found.append((at, *adverb))
                kinds.append("speed")
            elif motion := next(
                (e for e, s in _index().get(reading.said[at], ()) if e.kind == "motion" and s.done), None
            ):
                found.append((at, at + 1, motion.name or reading.said[at]))
                kinds.append("motion")
    some = reading.tokens
    spans = [Span(some[first].span.start, some[end - 1].span.end) for first, end, _ in found]
    return tuple(
        Term(kind, name, span, reading.text[span.start : span.end])
        for kind, (_, _, name), span in zip(kinds, found, spans, strict=True)
    )


def _term(match: Match, reading: Reading) -> Term:
    some = reading.tokens
    span = Span(some[match.first].span.start, some[match.end - 1].span.end)
    text = reading.text[span.start : span.end]
    term = Term(match.entry.kind, match.entry.name or text.lower(), span, text, inner=_inner(match, reading))
    if not match.wrong:
        return term
    meant, at = "", span.start
    for i in match.wrong:
        right = reading.said[i]
        if reading.text[some[i].span.start].isupper():
            right = right.capitalize()
        meant, at = meant + reading.text[at : some[i].span.start] + right, some[i].span.end
    return replace(term, typo=True, meant=meant + reading.text[at : span.end])


def find(text: str) -> tuple[Term, ...]:
    reading = _read(text)
    terms: list[Term] = []
    at = 0
    while at < len(reading.said):
        measure = measures.at(reading.tokens, reading.breaks, at)
        match = next((m for m in _matches(reading, at) if counts(m, reading)), None)
        if measure and (match is None or measure.end > match.end):
            span = Span(reading.tokens[at].span.start, reading.tokens[measure.end - 1].span.end)
            terms.append(Term(measure.kind, measure.name, span, text[span.start : span.end]))
            at = measure.end
        elif match:
            reading.terms[match.end] = match
            terms.append(_term(match, reading))
            at = match.end
        else:
            at += 1
    return tuple(terms)
