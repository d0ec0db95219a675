"""Words in the picture, words spelt wrong, words of two languages or of one that the model cannot read."""

from collections.abc import Iterator

from broll.prompts.findings import Context, Edit, Finding, Fix
from broll.prompts.rules.rule import Example, Rule, quote, whole
from broll.prompts.slots import Slots


def lettering(slots: Slots, _context: Context) -> Iterator[Finding]:
    for title in slots.titles:
        blank = title.blank or "nothing in its place"
        message = (
            f"{quote(title.words)} is to be read in the picture, and the model distorts letters: "
            f"make it a title over the clip, and ask for {quote(blank) if title.blank else blank}"
        )
        fix = Fix("Lift the words into titles", (Edit(title.span, title.blank),), titles=(title.words,))
        yield Finding("TEXT-1", "warning", title.span, message, fix)


def spelling(slots: Slots, _context: Context) -> Iterator[Finding]:
    for term in slots.terms:
        if term.typo and term.meant:
            message = f"{quote(term.text)} is spelt wrong: write {quote(term.meant)}"
            fix = Fix(f"Write {quote(term.meant)}", (Edit(term.span, term.meant),))
            yield Finding("SPELL-1", "warning", term.span, message, fix)


def languages(slots: Slots, context: Context) -> Iterator[Finding]:
    unknown = "" if slots.text.isascii() else context.read(slots.text).unknown
    if unknown:
        lacks = quote(" ".join(unknown))
        message = f"the model's vocabulary lacks {lacks}: it sees none of these letters, so write in English"
        yield Finding("LANG-1", "warning", whole(slots), message)
        return
    if slots.language == "mixed":
        message = "English and Chinese in one prompt: write all of it in one of them"
        yield Finding("LANG-1", "hint", whole(slots), message)


RULES = (
    Rule(
        "TEXT-1",
        "words that are to be read in the picture: quoted, or on a sign, a title, a logo",
        "Letters come out distorted. A title drawn over the clip is sharp, and can be changed without a new clip.",
        Example('a shop front at dusk with a sign that says "OPEN", slow push in'),
        Example("a shop front at dusk with a blank sign, slow push in"),
        lettering,
    ),
    Rule(
        "SPELL-1",
        "a film word spelt wrong",
        "A text encoder reads an unknown word as pieces of others: the camera move is not asked for.",
        Example("doly in on a birthday cake"),
        Example("dolly in on a birthday cake"),
        spelling,
    ),
    Rule(
        "LANG-1",
        "English and Chinese in one prompt, or letters that the model's vocabulary lacks",
        "WAN reads both, but its own prompts are in one or the other, never in both. nano was taught English alone.",
        Example("一只猫在窗台上睡觉, camera pans left slowly, soft light"),
        Example("a cat sleeping on a windowsill, camera pans left slowly, soft light"),
        languages,
    ),
)
