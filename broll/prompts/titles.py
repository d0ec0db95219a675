"""Words that are meant to be read in the picture, and the prompt without them.

    a red sign that says "SALE"              ->  a red blank sign             SALE
    the words "Happy Birthday" on a cake     ->  a blank cake                 Happy Birthday
    a man says "hello"                       ->  a man                        hello

A model of this size draws letters badly; the words are set as titles later, and the model is asked for the
surface to put them on. Text without quotation marks counts only after a surface that "says" it, or that is
"reading" something in capitals.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from broll.prompts.words import Span

# Regular expressions in the verbose notation: blanks count only where they are written \s.
# "a blank neon sign", not "a neon blank sign"
COMPOUND = r"""(?:(?:neon|street|road|traffic|stop|shop|store|coffee|tea|beer|wine|water|paper|cardboard|plastic|brick
    |stone|wooden|metal|movie|birthday|departure|bulletin|name|gift|pizza|leather|glass|train|bus)\s+)?"""
SURFACE = (
    COMPOUND
    + r"""(?:
    signboards?|signs?|billboards?|banners?|posters?|placards?|labels?|screens?|t-?shirts?|shirts?|hoodies?|hats?|caps?
    |mugs?|cups?|boards?|whiteboards?|chalkboards?|blackboards?|cards?|notes?|envelopes?|books?|magazines?|newspapers?
    |storefronts?|shops?|marquees?|flags?|license\s+plates?|plates?|walls?|doors?|windows?|stickers?|tags?|badges?
    |plaques?|displays?|menus?|papers?|pages?|box(?:es)?|bottles?|cans?|packages?|bags?|cakes?|balloons?|jerseys?
    |trucks?|vans?|bus(?:es)?|towers?|buildings?|tombstones?|gravestones?|monitors?|tv|television)"""
)
LETTERING = r"""(?:
    texts?|words?|titles?|captions?|subtitles?|letters|lettering|slogans?|headlines?|logos?|inscriptions?|phrases?
    |message|name|graffiti|tattoo)"""
THAT_SAYS = r"(?:that|which)\s+(?:says?|reads?|spells?|displays?|shows?)"
READING = rf"(?:reading|reads|says|saying|{THAT_SAYS}|labell?ed|titled|entitled|spelling)"
BEARING = r"(?:inscribed|marked|emblazoned|printed|with|that\s+has|bearing|displaying|showing|featuring)"
ARTICLE = r"(?:a|an|the|his|her|its|their|my|your)"
SET = r"(?:written|printed|painted|carved|displayed|glowing|projected|embroidered)"

QUOTED = r"""(?:
    "(?P<q1>[^"“”\n]{1,120})" | [“”](?P<q2>[^"“”\n]{1,120})[“”"] | «(?P<q3>[^«»\n]{1,120})»
    | 「(?P<q4>[^「」\n]{1,60})」 | 『(?P<q5>[^『』\n]{1,60})』"""
SINGLE = r"""| (?<![^\W_])[‘'](?P<q6>[^‘’'\n]{1,80})[’'](?![^\W_]))"""
CAPITALS = r"""(?P<bare>[A-Z0-9][A-Z0-9'’&!?%$-]*(?:\s+[A-Z0-9][A-Z0-9'’&!?%$-]*){0,7})(?![^\W_])"""
WORDING = r"""(?P<wording>(?:
    (?!(?:on|in|at|above|over|and|hanging|behind|near|while|with|as|under|next|outside|to)\b)
    [^\W_][\w'’&!?-]*\s*){1,6})"""
LEAD = rf"(?P<an>\ban\s+)?\b(?P<surface>{SURFACE})"

PATTERNS = (
    # the words "SALE" (written) on a red wall
    rf"""(?i:(?:\b(?:the|a|an)\s+)? \b{LETTERING}\s+ (?:(?:{READING}|{BEARING})\s+)?) {QUOTED}{SINGLE}
        (?i:\s+(?:(?:is|are|was|appears?|glows?)\s+)? (?:{SET}\s+)? (?:on|across|over|in|onto)\s+
        (?P<article>{ARTICLE})\s+ (?P<adjectives>(?:[a-z-]+\s+){{0,2}}?) (?P<under>{SURFACE})) (?![^\W_])""",
    # an old sign that says "SALE"; a shirt with the word "SALE" on it
    rf"""(?i:{LEAD} \s*,?\s+ (?:{READING}|{BEARING})\s+ (?:(?:the|a)\s+)?
        (?:{LETTERING}\s+ (?:{READING}\s+|of\s+)?)?) {QUOTED}{SINGLE}
        (?i:\s+(?:(?:{SET}\s+)?(?:on|across|over)\s+(?:it|them)|{SET}\s+in\s+[a-z]+)\b)?""",
    # a sign that says SALE; a sign reading WELCOME HOME
    rf"(?i:{LEAD} \s+{READING}\s+ (?:(?:the\s+)?{LETTERING}\s+)?) {CAPITALS}",
    # a sign that says open
    rf"(?i:{LEAD} \s+(?:that\s+|which\s+)?(?:says|saying)\s+) {WORDING}",
    # 写着“欢迎”的牌子
    rf"""(?:写着|印着|写有|刻着) {QUOTED}{SINGLE} 的?
        (?P<sign>牌子|招牌|横幅|标志|海报|木牌|路牌|墙|屏幕|T恤|衣服|卡片|纸)?""",
    # with the text "SALE"; a man says "hello"
    rf"""(?i:(?:\b(?:with|and)\s+)? (?:\b(?:the|a|an)\s+)? \b{LETTERING}\s+ (?:{READING}\s+|of\s+)?
        |\b(?:that\s+)?(?:says|saying|said|titled|entitled|reading|reads|called|named)\s+)? {QUOTED})
        (?i:\s+(?:appears?|appearing|(?:fades?|fading)\s+in)\b)?""",
)
GROUPS = ("q1", "q2", "q3", "q4", "q5", "q6", "bare", "wording")


@dataclass(frozen=True)
class Quoted:
    span: Span  # of all that is replaced: `sign that says "SALE"`
    words: str  # what is to be read, without quotation marks
    surface: str  # "sign"; "" if none is named
    blank: str  # what stands there instead: "blank sign"


def _quoted(found: re.Match[str]) -> Quoted | None:
    got = found.groupdict()
    words = " ".join(next(got[group] for group in GROUPS if got.get(group)).split())
    if not any(letter.isalnum() for letter in words):
        return None
    if got.get("under"):
        surface = got["under"]
        blank = f"{got['article']} {got['adjectives']}blank {surface}"
        if got["article"].lower() == "an" and not got["adjectives"]:
            blank = blank.replace(got["article"], "a", 1)
    elif got.get("sign"):
        surface, blank = got["sign"], "空白的" + got["sign"]
    else:
        surface = got.get("surface") or ""
        blank = ("a " if got.get("an") else "") + f"blank {surface}" if surface else ""
    end = found.end() if not got.get("wording") else found.start("wording") + len(got["wording"].rstrip())
    return Quoted(Span(found.start(), end), words, surface, blank)


def _is_all(quoted: Quoted, text: str) -> bool:
    """A prompt in quotation marks is a prompt."""
    return not quoted.blank and quoted.span.end - quoted.span.start >= len(text.strip()) - 1


@functools.cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.VERBOSE) for pattern in PATTERNS)


def _candidates(text: str) -> Iterator[tuple[int, int, Quoted]]:
    for rank, pattern in enumerate(_patterns()):
        for found in pattern.finditer(text):
            quoted = _quoted(found)
            if quoted and not _is_all(quoted, text):
                yield rank, quoted.span.start, quoted


def find(text: str) -> tuple[Quoted, ...]:
    """From first to last, without overlaps; the pattern that knows most wins."""
    kept: list[Quoted] = []
    for _, _, quoted in sorted(_candidates(text), key=lambda one: one[:2]):
        if all(quoted.span.end <= other.span.start or other.span.end <= quoted.span.start for other in kept):
            kept.append(quoted)
    return tuple(sorted(kept, key=lambda one: one.span.start))


def lift(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with blank surfaces, and the words to be set as titles."""
    titles = find(text)
    parts, at = [], 0
    for quoted in titles:
        before = text[at : quoted.span.start]
        parts.append(before if quoted.blank else before.rstrip())
        parts.append(quoted.blank)
        at = quoted.span.end
    if not titles:
        return text, ()
    lifted = "".join([*parts, text[at:]])
    return (lifted.lstrip() if titles[0].span.start == 0 else lifted), tuple(one.words for one in titles)
