"""More than one clip can hold: events, cuts, years; and what cannot be a loop."""

import re
from collections.abc import Iterator

from broll.prompts.findings import Context, Edit, Finding, Fix
from broll.prompts.lexicon import Term
from broll.prompts.rules.rule import Example, Rule, quote, removal
from broll.prompts.slots import Slots
from broll.prompts.words import Span

SECONDS_PER_EVENT = 2.5
BEAT = "beat"

TRAVEL = re.compile(
    r"\b(?:walk|run|driv|fl(?:y|i)|sail|ride|swim|mov|drift|roll|ski)\w*\s+(?:away|off|out\s+of\s+(?:the\s+)?(?:frame|shot|picture))\b"
    r"|\b(?:arriv|depart|enter|exit|vanish|disappear)(?:e|es|s|ing)?\b|\btak(?:es|ing)\s+off\b|\bleav(?:es|ing)\b(?!\s+fall)"
    r"|\bland(?:s|ing)\s+(?:on|at|in)\b|\b(?:walk|run|driv|com)(?:s|es|ing)\s+(?:in|into)\b",
    re.IGNORECASE,
)
LASTING = re.compile(
    r"\b(?:a\s+)?(\d+(?:\.\d+)?)[\s-]*(seconds?|secs?|s|minutes?|mins?|hours?)(?:[\s-]+long)?(?=\s+(?:video|clip|film|shot|long)|\s*(?:,|$))",
    re.IGNORECASE,
)  # fmt: skip
IN_SECONDS = {"s": 1, "m": 60, "h": 3600}

# Moves that end where they began, or nowhere.
RETURNING = frozenset({"static", "orbit", "handheld", "orbit left", "orbit right"})


def events(slots: Slots, context: Context) -> Iterator[Finding]:
    marks = _beats(slots)
    fits = max(1, int(context.seconds / SECONDS_PER_EVENT))
    if len(marks) > fits:
        first = marks[fits]
        message = (
            f"{len(marks) + 1} things happen one after the other, and {context.seconds:g} s hold about {fits + 1}: "
            f"make a clip of its own of what follows {quote(first.text)}"
        )
        yield Finding("SEQ-1", "warning", first.span, message)


def _beats(slots: Slots) -> list[Term]:
    """Words that begin the next event; "then suddenly" begins one."""
    found: list[Term] = []
    for term in slots.of("cut"):
        between = slots.text[found[-1].span.end : term.span.start] if found else ", "
        if term.name == BEAT and between.strip():
            found.append(term)
    return found


def cuts(slots: Slots, context: Context) -> Iterator[Finding]:
    for term in (term for term in slots.of("cut") if term.name != BEAT):
        message = f"{quote(term.text)}: a clip is one shot; make a clip of each, and cut them afterwards"
        fix = Fix(f"Take out {quote(term.text)}", (removal(slots.text, term.span),))
        yield Finding("SEQ-2", "warning", term.span, message, fix)
    for found in LASTING.finditer(slots.text):
        if float(found[1]) * IN_SECONDS[found[2][0].lower()] > context.seconds:
            yield _too_long(slots, Span(found.start(), found.end()), context)
    for term in slots.of("duration"):
        if not any(c.isdigit() for c in term.text) and _beyond(term.name, term.text):
            yield _too_long(slots, term.span, context)


def _beyond(name: str, text: str) -> bool:
    """Years and seasons do not fit, however they are said; "slow motion" and "time-lapse" are ways to show time."""
    return bool(
        re.search(r"year|month|week|day|hour|minute|season|centur|decade|lifetime|年|月", f"{name} {text}")
    )


def _too_long(slots: Slots, span: Span, context: Context) -> Finding:
    said = slots.text[span.start : span.end]
    message = (
        f"{quote(said)} is longer than this clip of {context.seconds:g} s: make it longer, or a time-lapse"
    )
    edit = Edit(span, "a") if re.match(r"a\s", said, re.IGNORECASE) else removal(slots.text, span)
    return Finding("SEQ-2", "warning", span, message, Fix(f"Take out {quote(said)}", (edit,)))


def loops(slots: Slots, context: Context) -> Iterator[Finding]:
    if not context.loop:
        return
    for found in TRAVEL.finditer(slots.text):
        message = (
            f"{quote(found[0])} has an end, and a loop has none: let it move in place, or come round again"
        )
        yield Finding("LOOP-1", "warning", Span(found.start(), found.end()), message)
    for clause in slots.clauses:
        for term in (term for term in clause.terms if term.kind == "camera" and term.name not in RETURNING):
            message = (
                f"the camera of a loop comes back, and {quote(term.text)} does not: keep it still, or orbit"
            )
            fix = Fix("Keep the camera still", (Edit(clause.span, "static camera"),))
            yield Finding("LOOP-1", "warning", term.span, message, fix if clause.slot == "camera" else None)


RULES = (
    Rule(
        "SEQ-1",
        "more events than the clip has time for",
        "Five seconds hold about three things one after the other, briefly. More are left out, or happen at once.",
        Example("she opens the door, then the lights go out, then a dog barks, then it rains"),
        Example("she opens the door, then the lights go out"),
        events,
    ),
    Rule(
        "SEQ-2",
        "cuts, montages, and more time than the clip has",
        "A clip is one shot of a few seconds. Make a clip of each shot and cut them afterwards.",
        Example("a montage of a city waking up, cut to a train"),
        Example("a city waking up, lights going on in the windows, time-lapse"),
        cuts,
    ),
    Rule(
        "LOOP-1",
        "a loop in which something leaves, arrives, or the camera travels",
        "The last picture has to lead to the first. What walks away has to jump back.",
        Example("a man walks away into the fog", Context(loop=True)),
        Example(
            "a man stands in the fog, the fog drifting slowly around him, static camera", Context(loop=True)
        ),
        loops,
    ),
)
