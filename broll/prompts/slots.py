"""A prompt taken apart: clauses, and what each part of it says.

A clause ends at a comma, a full stop or the like, and before a tail such as "with shallow depth of field" or
"in watercolor style" that is film language altogether. A clause that is film language throughout has the slot
of what it speaks of; every other one is the user's own content, `subject`. What stands in quotation marks or is
excluded ("no people") is in no term.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from broll.prompts import exclusions, lexicon, titles, vocabulary
from broll.prompts.exclusions import Exclusion
from broll.prompts.lexicon import Term
from broll.prompts.titles import Quoted
from broll.prompts.words import SIGN, STOP, Span, Token, tokens

SLOT = {
    "camera": "camera", "shot": "shot", "angle": "shot", "style": "style", "lens": "style", "light": "light",
    "physics": "physics", "atmosphere": "atmosphere", "speed": "camera", "duration": "other", "cut": "other",
}  # fmt: skip
FIRST = (
    "camera",
    "shot",
    "style",
    "light",
    "physics",
    "atmosphere",
    "other",
)  # the slot of a clause that speaks of several
# Say nothing without a film word beside them.
FILLER = frozenset({
    "style", "effect", "look", "feel", "quality", "video", "footage", "shot", "shots", "scene", "camera",
    "mood", "atmosphere", "tone", "tones", "featuring", "view", "perspective", "movement", "lighting",
    "lit", "light", "composition", "captured", "filmed", "using", "showing", "image",
    "frame",
})  # fmt: skip
# "in the style of" belongs to a look; "slow motion" and "time-lapse" are looks, too.
LOOKS_OF_SPEED = frozenset({"slow motion", "time-lapse", "real time"})
TAIL = re.compile(r"(?<=\s)(?:with|in|featuring|shot|filmed|captured)\s", re.IGNORECASE)
TAIL_SLOTS = frozenset({"style", "camera", "shot"})
STOPS = re.compile(r"[,;:!?…，。；：！？、\n\r]+|\.+(?=\s|$|[\"”’)])")
SHORT = re.compile(r"(?:\b(?:mr|mrs|ms|dr|st|vs|no|jr|sr|prof|e\.g|i\.e)|\b[A-Za-z])$", re.IGNORECASE)
PLACE = re.compile(
    r"\b(?:in|on|at|across|along|by|near|through|under|beneath|inside|outside|above|over|behind|beside|around|among|between|against|beyond|into)\b"
    r"(?:(?!\b(?:in|on|at|with|while|and|as|by)\b)[^,.;:!?，。；]){2,}",
    re.IGNORECASE,
)
WORN = re.compile(
    r"\b(?:wearing|dressed in|wears|with (?:[a-z]+ ){0,3}(?:hair|eyes|fur|skin|beard|coat|feathers))\b[^,.;:!?，。；]*",
    re.IGNORECASE,
)

RIGS = frozenset({"handheld", "steadicam", "fpv"})  # they carry a camera; beside a move they are none
PACES = frozenset({"slow", "fast", "steady"})
LATIN_ENOUGH = 3  # words of English that make a Chinese prompt a mixed one


@dataclass(frozen=True)
class Clause:
    span: Span
    text: str
    slot: str  # style subject physics light atmosphere camera shot other; subject: the user's own content
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Slots:
    text: str
    clauses: tuple[Clause, ...]
    terms: tuple[Term, ...]
    titles: tuple[Quoted, ...]
    language: str  # en zh mixed other
    excluded: tuple[Exclusion, ...] = ()

    def of(self, kind: str) -> tuple[Term, ...]:
        """In order; adverbs inside a move and verbs inside physics count, too."""
        return tuple(term for outer in self.terms for term in (outer, *outer.inner) if term.kind == kind)

    def _spans(self, pattern: re.Pattern[str]) -> tuple[Span, ...]:
        return tuple(
            Span(
                clause.span.start + found.start(),
                clause.span.start + len(clause.text[: found.end()].rstrip()),
            )
            for clause in self.clauses
            if clause.slot == "subject"
            for found in pattern.finditer(clause.text)
        )

    style = property(lambda self: self.of("style"))
    subject = property(lambda self: tuple(t for t in self.terms if t.kind in ("subject", "person")))
    count = property(lambda self: self.of("count"))
    action = property(lambda self: self.of("motion"))
    light = property(lambda self: self.of("light"))
    camera = property(lambda self: self.of("camera"))
    speed = property(lambda self: self.of("speed"))
    shot = property(lambda self: self.of("shot"))
    angle = property(lambda self: self.of("angle"))
    lens = property(lambda self: self.of("lens"))
    physics = property(lambda self: self.of("physics"))
    atmosphere = property(lambda self: self.of("atmosphere"))
    duration = property(lambda self: self.of("duration"))
    appearance = property(lambda self: self._spans(WORN))
    scene = property(lambda self: self._spans(PLACE))
    text_ = property(lambda self: tuple(quoted.span for quoted in self.titles))


@dataclass(frozen=True)
class Asked:
    move: str
    speed: str | None  # slow, fast or steady
    accepts: tuple[str, ...]  # the measured moves that satisfy it


def _inside(span: Span, some: tuple[Span, ...]) -> bool:
    return any(one.start < span.end and span.start < one.end for one in some)


def _cuts(prompt: str, kept_whole: tuple[Span, ...]) -> Iterator[Span]:
    """Between the marks, trimmed; a mark in a quotation or an abbreviation is none."""
    start = 0
    for mark in STOPS.finditer(prompt):
        point = mark[0].startswith(".")
        if _inside(Span(mark.start(), mark.end()), kept_whole) or (
            point and SHORT.search(prompt[max(0, mark.start() - 5) : mark.start()])
        ):
            continue
        yield Span(start, mark.start())
        start = mark.end()
    yield Span(start, len(prompt))


def _trim(prompt: str, span: Span) -> Span:
    text = prompt[span.start : span.end]
    start = span.start + len(text) - len(text.lstrip())
    return Span(start, max(start, span.start + len(text.rstrip())))


def _words(words: tuple[Token, ...], span: Span) -> Iterator[Token]:
    return (token for token in words if span.start <= token.span.start < span.end)


def _slot(span: Span, terms: tuple[Term, ...], words: tuple[Token, ...], excluded: tuple[Span, ...]) -> str:
    inside = [term for term in terms if span.start <= term.span.start < span.end]
    if any(term.kind not in SLOT for term in inside):
        return "subject"
    covered = tuple(term.span for term in inside) + excluded
    some = list(_words(words, span))
    bare = [token for token in some if not _inside(token.span, covered)]
    if any(token.text not in STOP and (token.text not in FILLER or not inside) for token in bare):
        return "subject"
    last = max(
        (i for i, token in enumerate(some) if inside and inside[-1].span.start <= token.span.start), default=0
    )
    if last and inside[-1].kind == "atmosphere" and some[last - 1].text in ("a", "an", "the"):
        return "subject"  # "a tranquil tableau of a beautiful, wrought-iron bench"
    found = {("style" if term.name in LOOKS_OF_SPEED else SLOT[term.kind]) for term in inside}
    return next((slot for slot in FIRST if slot in found), "other")


def _with_tail(prompt: str, span: Span, slot_of: "functools.partial[str]") -> Iterator[Span]:
    """The clause, parted before a tail of film language."""
    if slot_of(span) == "subject":
        for found in TAIL.finditer(prompt, span.start, span.end):
            head, tail = _trim(prompt, Span(span.start, found.start())), Span(found.start(), span.end)
            if head.end > head.start and slot_of(tail) in TAIL_SLOTS and slot_of(head) == "subject":
                yield head
                yield tail
                return
    yield span


def _language(prompt: str, words: tuple[Token, ...]) -> str:
    signs = len(SIGN.findall(prompt))
    latin = sum(
        1 for token in words if token.text[0].isascii() and token.text.isalpha() and len(token.text) > 2
    )
    foreign = sum(1 for token in words if token.text[0].isalpha() and ord(token.text[0]) > 0x24F) - signs
    if foreign > latin + signs:
        return "other"
    if not signs:
        return "en"
    known = sum(1 for token in words if token.text in STOP and token.text.isascii())
    return "mixed" if latin >= LATIN_ENOUGH and (known or latin * 4 > signs) else "zh"


@functools.lru_cache(maxsize=256)
def parse(prompt: str) -> Slots:
    quoted, excluded = titles.find(prompt), exclusions.find(prompt)
    unsaid = tuple(one.span for one in quoted) + tuple(one.span for one in excluded)
    terms = tuple(
        term for term in lexicon.find(prompt) if term.name == "static" or not _inside(term.span, unsaid)
    )
    words = tokens(prompt)
    slot_of = functools.partial(_slot, terms=terms, words=words, excluded=tuple(one.span for one in excluded))
    spans = [
        part
        for span in _cuts(prompt, tuple(one.span for one in quoted))
        for part in _with_tail(prompt, _trim(prompt, span), slot_of)
        if part.end > part.start
    ]
    slots = [slot_of(span) for span in spans]
    if "subject" not in slots:  # "sunset" is a light, but also all there is to see
        seen = next(
            (i for i, slot in enumerate(slots) if slot in ("light", "physics", "atmosphere", "other")), None
        )
        slots = ["subject" if i == seen else slot for i, slot in enumerate(slots)]
    clauses = tuple(
        Clause(
            span,
            prompt[span.start : span.end],
            slot,
            tuple(t for t in terms if span.start <= t.span.start < span.end),
        )
        for span, slot in zip(spans, slots, strict=True)
    )
    return Slots(prompt, clauses, terms, quoted, _language(prompt, words), excluded)


def _dominant(camera: tuple[Term, ...]) -> Term | None:
    """The one move; a general word for it beside it ("camera pan, pan left") is the same move."""
    known = vocabulary.moves()
    said = {term.name: term for term in reversed(camera) if known[term.name].measured}
    if len(said) > 1:
        said = {name: term for name, term in said.items() if name not in RIGS} or said
    sets = {name: frozenset(known[name].measured) for name in said}
    left = [name for name in said if not any(other < sets[name] for other in sets.values())]
    if len({sets[name] for name in left}) != 1:
        return None
    return min((said[name] for name in left), key=lambda term: term.span.start)


def asked_camera(prompt: str) -> Asked | None:
    """None: nothing is asked for, or several moves."""
    slots = parse(prompt)
    move = _dominant(slots.of("camera"))
    if move is None:
        return None
    clause = next(c for c in slots.clauses if c.span.start <= move.span.start < c.span.end)
    paces = [
        term
        for outer in clause.terms
        for term in (outer, *outer.inner)
        if term.kind == "speed" and term.name in PACES
    ]
    near = min(paces, key=lambda term: _apart(term.span, move.span), default=None)
    still = move.name == "static"
    return Asked(move.name, near.name if near and not still else None, vocabulary.moves()[move.name].measured)


def _apart(one: Span, other: Span) -> int:
    return max(one.start - other.end, other.start - one.end, 0)
