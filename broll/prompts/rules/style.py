"""One look, and that there is one."""

from collections.abc import Iterator

from broll.prompts import suggestions, vocabulary
from broll.prompts.findings import Context, Edit, Finding, Fix
from broll.prompts.lexicon import Term
from broll.prompts.rules.rule import Example, Rule, quote, removal, whole
from broll.prompts.slots import Slots
from broll.prompts.words import Span

MOODS = 3


def contradictory(slots: Slots, _context: Context) -> Iterator[Finding]:
    kept: Term | None = None
    families = vocabulary.style_families()
    for term in (term for term in slots.of("style") if families.get(term.name, "any") != "any"):
        if kept is None:
            kept = term
        elif families[kept.name] != families[term.name]:
            message = f"{quote(kept.text)} and {quote(term.text)} cannot both be: keep one"
            fix = Fix(f"Take out {quote(term.text)}", (removal(slots.text, term.span),))
            yield Finding("STY-1", "warning", term.span, message, fix)
    moods = slots.of("atmosphere")
    for term in moods[MOODS:]:
        message = f"{len(moods)} words of mood, and {quote(term.text)} is one too many: keep one or two"
        fix = Fix(f"Take out {quote(term.text)}", (removal(slots.text, term.span),))
        yield Finding("STY-1", "hint", term.span, message, fix)


def missing(slots: Slots, context: Context) -> Iterator[Finding]:
    if context.task != "t2v" or not slots.text.strip() or slots.of("style") or slots.of("lens"):
        return
    phrase = suggestions.style(context)
    if phrase:
        message = f"no word of style: the look is left to chance; for example {quote(phrase, 70)}"
        start = len(slots.text) - len(slots.text.lstrip())
        fix = Fix(f"Put {quote(phrase)} in front", (Edit(Span(start, start), f"{phrase}, "),))
        yield Finding("STY-2", "hint", whole(slots), message, fix)


RULES = (
    Rule(
        "STY-1",
        "two styles that exclude each other, or more than three words of mood",
        "Half a photograph and half a drawing is neither, and each further adjective takes weight from the others.",
        Example("a photorealistic portrait of a pirate, anime style"),
        Example("a photorealistic portrait of a pirate"),
        contradictory,
    ),
    Rule(
        "STY-2",
        "no word of style",
        "A style anchor holds the look from the first frame to the last, and from one clip to the next.",
        Example("an old typewriter on a desk, keys moving, slow push in"),
        Example(
            "4K cinematic, shallow depth of field, an old typewriter on a desk, keys moving, slow push in"
        ),
        missing,
    ),
)
