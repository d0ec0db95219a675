"""What moves, how fast, and what moves it."""

import re
from collections.abc import Iterator

from broll.prompts import film, suggestions
from broll.prompts.findings import Context, Edit, Finding, Fix
from broll.prompts.rules.rule import Example, Rule, appended, quote, whole
from broll.prompts.slots import Slots
from broll.prompts.words import Span

NUMERIC = re.compile(
    r"(?:\bat\s+)?(?<![\w.])(\d+(?:\.\d+)?)\s*(km/h|kmh|kph|mph|m/s|knots)(?![\w/])", re.IGNORECASE
)
IN_KMH = {"km/h": 1.0, "kmh": 1.0, "kph": 1.0, "mph": 1.6, "m/s": 3.6, "knots": 1.85}
SLOW_KMH, FAST_KMH = 8, 30


def nothing_moves(slots: Slots, context: Context) -> Iterator[Finding]:
    if not slots.text.strip() or film.is_still(slots) or film.moves_by_itself(slots):
        return
    stative = slots.of("stative")
    if stative:
        span = stative[0].span
        message = f"{quote(stative[0].text)} is a state, and a clip needs something that moves"
    else:
        span = whole(slots)
        message = "nothing moves: say what does, with a verb"
    found = suggestions.motion(slots, context)
    fix = None
    if found:
        message += f", such as {quote(found.text)}"
        fix = Fix(f"Add {quote(found.text)}", (appended(slots.text, found.text),))
    yield Finding("MOT-1", "warning", span, message, fix)


def no_speed(slots: Slots, _context: Context) -> Iterator[Finding]:
    for found in NUMERIC.finditer(slots.text):
        kmh = float(found[1]) * IN_KMH[found[2].lower()]
        word = "slowly" if kmh < SLOW_KMH else "fast" if kmh > FAST_KMH else "steadily"
        span = Span(found.start(), found.end())
        message = f'{quote(found[0])}: the model does not measure speed; write "{word}", or set the amount of motion'
        yield Finding("MOT-2", "hint", span, message, Fix(f'Write "{word}"', (Edit(span, word),)))
    move = film.dominant(slots)
    if move is None or move.name in film.AT_ITS_OWN_PACE or film.has_speed(slots, move):
        return
    if NUMERIC.search(slots.text):
        return
    message = f'{quote(move.text)} has no speed: write "slow", "steady" or "fast"'
    edit = film.slowed(move, follows=slots.text[move.span.end :])
    fix = Fix(f"Write {quote(edit.text.strip())}", (edit,)) if edit else None
    yield Finding("MOT-2", "hint", move.span, message, fix)


def no_anchor(slots: Slots, context: Context) -> Iterator[Finding]:
    found = suggestions.physics(slots, context)
    if found:
        term = suggestions.fluid(slots)
        assert term is not None
        message = f"say what moves {quote(term.text)}: gravity, wind, its pace; such as {quote(found.text)}"
        fix = Fix(f"Add {quote(found.text)}", (appended(slots.text, found.text),))
        yield Finding("PHY-1", "hint", term.span, message, fix)


RULES = (
    Rule(
        "MOT-1",
        "no verb of motion, or only a state",
        "The first thing that makes a clip better: say what moves. Else it may look like a photograph.",
        Example("mountain lake at sunset, slow camera pan"),
        Example("mountain lake at sunset, water rippling gently, slow camera pan"),
        nothing_moves,
    ),
    Rule(
        "MOT-2",
        "a camera move without a speed, or a speed in numbers",
        "Without a word for it the model chooses the speed. It does not measure, so a number is no speed either.",
        Example("a village square in the snow, people walking, pan left"),
        Example("a village square in the snow, people walking, slow pan left"),
        no_speed,
    ),
    Rule(
        "PHY-1",
        "water, cloth, smoke, leaves with nothing that moves them",
        "Fluids and cloth look right if the prompt says what drives them: gravity, wind, a pace.",
        Example("a silk scarf, close-up"),
        Example("a silk scarf lifting and falling in a light breeze, close-up"),
        no_anchor,
    ),
)
