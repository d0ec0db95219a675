"""What WAN does badly, whoever asks; names that it does not know; words that the operator does not allow."""

import re
from collections.abc import Iterator

from broll.prompts import wording, words
from broll.prompts.findings import Context, Edit, Finding, Fix
from broll.prompts.rules.rule import Example, Rule, quote
from broll.prompts.slots import Slots
from broll.prompts.words import Span

MANY = 4
CROWD_FROM = 20  # then nobody counts
SUBJECTS = 3
KINDS = frozenset({"animal", "person", "vehicle", "product"})

HANDS = re.compile(r"\b(?:hands?|fingers?)\b|手指|双手", re.IGNORECASE)
MIRROR = re.compile(r"\bmirrors?\b|镜子", re.IGNORECASE)
CROWD = re.compile(
    r"\b(?:marathon|stampede|mosh\s+pit|(?:crowds?|runners|people|hundreds\s+of\s+people)\s+(?:running|racing|rushing|jumping|dancing))\b",
    re.IGNORECASE,
)
NAME = re.compile(
    r"(?<![\w@])((?:(?:Captain|Doctor|Dr\.?|Mr\.?|Mrs\.?|Ms\.?|Professor|Queen|King|Detective)\s)?[A-Z][a-zà-ÿ]{2,}(?:\s[A-Z][a-zà-ÿ]{2,})?)"
    r"(?=\s+(?:is|was|and\s+[A-Z]|wearing|opens|walks|runs|sits|stands|looks|turns|smiles|holds|steers|reading|playing|walking|looking"
    r"|standing|sitting|smiling|holding|running)\b|'s\b)"
)
CARD = re.compile(r"@\w+")


def hard(slots: Slots, _context: Context) -> Iterator[Finding]:
    text = slots.text
    close = any(term.name.endswith(("close-up", "macro")) for term in slots.of("shot"))
    for term in slots.of("count"):
        if MANY < _number(term.name) < CROWD_FROM:
            yield _note(
                term.span,
                f"{quote(term.text)}: the model counts to about {MANY}; ask for fewer, or for a crowd",
            )
    if close and (found := HANDS.search(text)):
        note = f"{quote(found[0])} from near: fingers come out wrong; show them from farther away"
        yield _note(Span(found.start(), found.end()), note)
    if found := MIRROR.search(text):
        note = f"{quote(found[0])}: what it shows will not match the room; keep it out of the centre"
        yield _note(Span(found.start(), found.end()), note)
    if found := CROWD.search(text):
        note = f"{quote(found[0])}: many fast people melt into each other; show them from afar, or slower"
        yield _note(Span(found.start(), found.end()), note)
    subjects = {
        words.stem(t.text): t for t in slots.terms if t.kind in ("subject", "person") and t.name in KINDS
    }
    if len(subjects) > SUBJECTS:
        last = max(subjects.values(), key=lambda term: term.span.start)
        yield _note(
            last.span,
            f"{len(subjects)} different subjects: the model mixes more than {SUBJECTS}; leave some out",
        )


def _number(name: str) -> int:
    """The vocabulary names counts by their number; "several" and "many" are no exact ones."""
    return int(name) if name.isdecimal() and len(name) < 10 else 0


def _note(span: Span, message: str) -> Finding:
    return Finding("CNT-1", "hint", span, message)


def names(slots: Slots, context: Context) -> Iterator[Finding]:
    cast = {name.lstrip("@").casefold(): name.lstrip("@") for name in context.cast}
    for found in CARD.finditer(slots.text):
        if found[0][1:].casefold() not in cast:
            message = f"{found[0]} is not in the cast: say how this character looks"
            yield Finding("CHR-1", "warning", Span(found.start(), found.end()), message)
    seen: set[str] = set()
    for found in NAME.finditer(slots.text):
        name = found[1]
        if name.split()[0].casefold() in wording.load().no_name or name in seen:
            continue
        seen.add(name)
        span = Span(found.start(1), found.end(1))
        message = (
            f"{quote(name)} is a name, and the model knows no names: describe the same looks in every shot"
        )
        card = cast.get(name.casefold())
        fix = Fix(f"Use the cast card @{card}", (Edit(span, f"@{card}"),)) if card else None
        yield Finding("CHR-1", "hint", span, message, fix)


def blocked(slots: Slots, context: Context) -> Iterator[Finding]:
    for blocked_phrase in context.blocklist:
        tokens = [re.escape(token.text) for token in words.tokens(blocked_phrase)]
        if not tokens:
            continue
        phrase = r"[\W_]+".join(tokens)
        for found in re.finditer(rf"(?<![^\W_]){phrase}(?![^\W_])", slots.text, re.IGNORECASE):
            message = f"{quote(found[0])} is on this server's list of blocked words: take it out"
            yield Finding("SAFE-1", "error", Span(found.start(), found.end()), message)


RULES = (
    Rule(
        "CNT-1",
        "what goes wrong often: exact numbers above four, four subjects or more, hands from near, mirrors, fast crowds",
        "A note, not a fault: expect to make several takes.",
        Example("seven clowns juggling on a stage, slow push in"),
        Example("two clowns juggling on a stage, slow push in"),
        hard,
    ),
    Rule(
        "CHR-1",
        "a character's name",
        "Each clip is made by itself, and the model knows no characters. Only the same words give similar looks.",
        Example("Mira opens an umbrella on a bridge at night"),
        Example("a young woman with short red hair opens an umbrella on a bridge at night"),
        names,
    ),
    Rule(
        "SAFE-1",
        "words on the operator's list",
        "Whoever runs the server answers for what it makes.",
        Example("a burning flag on a square", Context(blocklist=("burning flag",))),
        Example("a flag on a square, waving in the wind", Context(blocklist=("burning flag",))),
        blocked,
    ),
)
