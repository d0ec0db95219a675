"""What a rule is, and edits of a text that leave its commas right.

A rule is a function from a prompt taken apart, and what is known of the clip, to findings. It carries its own
documentation: what it finds, why that matters, and a pair of prompts, of which it finds the bad one.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from broll.prompts.findings import Context, Edit, Finding
from broll.prompts.slots import Slots
from broll.prompts.words import Span

Check = Callable[[Slots, Context], Iterator[Finding]]

END = ".!?…。！？"
BEFORE = re.compile(
    r"(?:[\s,;，；、]|(?<![^\W_])(?:and|then|while|with)(?![^\W_])|[\-–—](?=\s))*\Z", re.IGNORECASE
)
AFTER = re.compile(r"[\s,;，；、]*")


@dataclass(frozen=True)
class Example:
    prompt: str
    context: Context = field(default_factory=Context)


@dataclass(frozen=True)
class Rule:
    id: str
    finds: str
    why: str
    bad: Example
    good: Example
    check: Check


def whole(slots: Slots) -> Span:
    return Span(0, len(slots.text))


def removal(text: str, span: Span, *, comma: bool = False) -> Edit:
    """Takes `span` out, and the comma or the "and" that held it; `comma`: what stood around it is to be parted."""
    head = BEFORE.search(text, 0, span.start)
    start = head.start() if head else span.start
    follows = AFTER.match(text, span.end)
    end = follows.end() if follows else span.end
    left, right = text[:start].rstrip(), text[end:]
    if not left:
        return Edit(Span(0, end), "")
    if not right.strip() or right.lstrip()[0] in END:
        return Edit(Span(start, end), "")
    if left[-1] in END:
        return Edit(Span(start, end), " ")
    comma = comma or any(sign in text[start:end] for sign in ",;，；、")
    return Edit(Span(start, end), ", " if comma else " ")


def appended(text: str, phrase: str) -> Edit:
    """Puts `phrase` at the end: after a comma, or as a sentence where the text ends with a full stop."""
    end = len(text.rstrip())
    if not end:
        return Edit(Span(0, len(text)), phrase)
    if text[end - 1] in END:
        return Edit(Span(end, end), f" {phrase[:1].upper()}{phrase[1:]}.")
    bare = len(text[:end].rstrip(" ,;:，；、"))
    return Edit(Span(bare, end), f", {phrase}" if bare else phrase)


def quote(text: str, limit: int = 40) -> str:
    """For a message: short, on one line."""
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= limit else f'"{line[: limit - 1]}…"'
