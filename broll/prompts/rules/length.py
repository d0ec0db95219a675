"""Too few words, too many, and a picture of the wrong size for them."""

import re
from collections.abc import Iterator

from broll.prompts import words
from broll.prompts.findings import Context, Finding
from broll.prompts.rules.rule import Example, Rule, quote, whole
from broll.prompts.slots import Slots
from broll.prompts.words import Span

TOKENS = 512  # what the text encoder of WAN reads
SMALL_PIXELS = 832 * 480

UPRIGHT = re.compile(
    r"\b(?:portrait(?:\s+of)?|full[\s-]?body|head\s+to\s+toe|vertical\s+(?:shot|video|frame)|skyscraper|9:16)\b|竖屏|全身",
    re.IGNORECASE,
)
BROAD = re.compile(
    r"\b(?:panoram(?:a|ic)|vista|skyline|extreme\s+wide|ultra[\s-]?wide|widescreen|16:9|21:9)\b|全景",
    re.IGNORECASE,
)


def length(slots: Slots, context: Context) -> Iterator[Finding]:
    low, high = context.words
    count = words.count(slots.text)
    long = len(slots.text) >= TOKENS  # a token is a letter at least
    tokens = context.read(slots.text).tokens if long else 0
    if tokens > TOKENS:
        message = (
            f"{tokens} tokens, and the text encoder reads {TOKENS}: the end is cut off, so shorten the prompt"
        )
        yield Finding("LEN-1", "error", whole(slots), message)
    elif count > high:
        message = f"{count} words, and the model reads up to {high} well: keep what can be seen"
        yield Finding("LEN-1", "warning", whole(slots), message)
    elif count < low:
        message = f"{count} words, and the model wants {low} or more: say what moves, the camera, the light"
        yield Finding("LEN-1", "hint", whole(slots), message)


def size(slots: Slots, context: Context) -> Iterator[Finding]:
    width, height = context.width, context.height
    if context.small and width * height > SMALL_PIXELS:
        message = f"{width}x{height} is more than this model was trained for: choose 832x480 or 480x832"
        yield Finding("RES-1", "warning", whole(slots), message)
    if width > height and (found := UPRIGHT.search(slots.text)) and not BROAD.search(slots.text):
        message = f"{quote(found[0])} in a picture of {width}x{height}: {height}x{width} suits it"
        yield Finding("RES-1", "hint", Span(found.start(), found.end()), message)
    if height > width and (found := BROAD.search(slots.text)) and not UPRIGHT.search(slots.text):
        message = f"{quote(found[0])} in a picture of {width}x{height}: {height}x{width} suits it"
        yield Finding("RES-1", "hint", Span(found.start(), found.end()), message)


RULES = (
    Rule(
        "LEN-1",
        "fewer than 12 words, more than 110, or more than 512 tokens",
        "WAN was trained on long captions; its own expander aims at 80 to 100 words. More words alone do not help: "
        "say what is missing.",
        Example("mountain lake at sunset"),
        Example(
            "mountain lake at sunset, water rippling gently, camera pans slowly to the left, golden reflections"
        ),
        length,
    ),
    Rule(
        "RES-1",
        "an upright subject in a wide picture, a panorama in an upright one, 720p on the small model",
        "The model fills the frame that it gets: a tall subject in a wide one is cut or small.",
        Example("portrait of a lighthouse keeper, wind in his coat, slow push in"),
        Example(
            "portrait of a lighthouse keeper, wind in his coat, slow push in", Context(width=480, height=832)
        ),
        size,
    ),
)
