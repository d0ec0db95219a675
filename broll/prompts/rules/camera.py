"""How the camera moves, and from how far it looks."""

from collections.abc import Iterator

from broll.prompts import film, suggestions
from broll.prompts.findings import Context, Edit, Finding, Fix
from broll.prompts.rules.rule import Example, Rule, appended, quote, removal, whole
from broll.prompts.slots import Slots


def none(slots: Slots, context: Context) -> Iterator[Finding]:
    if not slots.text.strip() or slots.of("camera"):
        return
    found = suggestions.camera(slots, context)
    message = "no word about the camera: say how it moves, or that it stands still"
    fix = None
    if found:
        message += f"; here perhaps {quote(found.text)}"
        fix = Fix(f"Add {quote(found.text)}", (appended(slots.text, found.text),))
    yield Finding("CAM-1", "warning", whole(slots), message, fix)


def several(slots: Slots, _context: Context) -> Iterator[Finding]:
    kept, others = film.moves(slots)
    if kept is None:
        return
    for term in others:
        message = (
            f"{quote(kept.text)} and {quote(term.text)}: one clip has one camera move; "
            f"keep {quote(kept.text)}, or make two clips"
        )
        fix = Fix(f"Take out {quote(term.text)}", (removal(slots.text, film.reach(slots, term)),))
        yield Finding("CAM-2", "warning", term.span, message, fix)


def sizes(slots: Slots, _context: Context) -> Iterator[Finding]:
    kept, others = film.shots(slots)
    if kept is None:
        return
    for term in others:
        message = (
            f"{quote(kept.text)} and {quote(term.text)}: one clip has one size of shot; "
            f'keep {quote(kept.text)}, or write "ending on {term.text}"'
        )
        fix = Fix(f"Take out {quote(term.text)}", (removal(slots.text, film.reach(slots, term)),))
        yield Finding("CAM-3", "warning", term.span, message, fix)


def vague(slots: Slots, _context: Context) -> Iterator[Finding]:
    if film.asked(slots):  # then it says how
        return
    for term in film.vague(slots):
        move = suggestions.concrete(term.text, slots.text[term.span.end :])
        message = (
            f"{quote(term.text)} says nothing that a camera could do: write {quote(move)}, or another move"
        )
        fix = Fix(f"Write {quote(move)}", (Edit(term.span, move),))
        yield Finding("CAM-4", "hint", term.span, message, fix)


RULES = (
    Rule(
        "CAM-1",
        "no word about the camera",
        "Then the model chooses, a drift or a still picture. Standing still is a choice too, if it is said.",
        Example("a red bicycle leaning against a yellow wall, leaves drifting past"),
        Example("a red bicycle leaning against a yellow wall, leaves drifting past, static camera"),
        none,
    ),
    Rule(
        "CAM-2",
        "more than one camera move, opposed ones, or a move and a static camera",
        "All published guides agree: one dominant move in a clip of five seconds.",
        Example("pan left slowly over a valley, zoom in on a farmhouse"),
        Example("pan left slowly over a valley, a farmhouse at the end of it"),
        several,
    ),
    Rule(
        "CAM-3",
        'more than one size of shot, without "then" or "ending on"',
        "A frame cannot be wide and close at once. From wide to close is a move; say so.",
        Example("a close-up of a rose, wide shot of the garden"),
        Example("a wide shot of the garden, ending on a close-up of a rose"),
        sizes,
    ),
    Rule(
        "CAM-4",
        '"cinematic camera movement", "dynamic angle"',
        "There is nothing in these words that a camera could do. Name the move.",
        Example("epic camera movement around a castle at dusk"),
        Example("slow orbit around a castle at dusk"),
        vague,
    ),
)
