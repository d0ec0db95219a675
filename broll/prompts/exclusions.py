"""What a prompt says that it does not want: "no clouds", "without any people or cars", 没有人.

A model reads the noun and overlooks the "no"; so such things belong in the negative prompt.
"""

import re
from dataclasses import dataclass

from broll.prompts.words import STOP, Span, is_sign, tokens

LEAD = re.compile(
    r"(?<![^\W_])(?:(?:with\s+|there\s+(?:is|are)\s+)?no|without|(?:free|devoid|empty)\s+of|lacking|(?:do\s+not|don['’]t|never)\s+(?:show|include|add|have)|avoid|excluding"
    r"|not\s+any)(?:\s+(?:any|a|an|the|visible|single|other|extra))*\s+",
    re.IGNORECASE,
)
NOBODY = re.compile(r"(?<![^\W_])(?:no\s?one|nobody|unpopulated|uninhabited)(?![^\W_])", re.IGNORECASE)
CHINESE = re.compile(
    r"(?:没有|不要|不含|避免|无(?!人机|数|缝|限|论|声|尽|边|比|垠|机|意|线|奈|法|需|忧|敌|辜|处|形|情))((?:(?!的)[㐀-鿿]){1,6})的?"
)
ITSELF = frozenset(
    {
        "longer",
        "doubt",
        "more",
        "matter",
        "less",
        "sooner",
        "end",
        "way",
        "problem",
        "need",
        "time",
        "wonder",
        "hurry",
        "rush",
        "stopping",
        "pause",
        "pausing",
        "effort",
        "warning",
    }
)
# A camera without these stands still (data/camera.toml): nothing that a picture could be kept clear of.
MOVES = frozenset({f"camera {word}{s}" for word in ("movement", "move", "motion") for s in ("", "s")})
JOIN = frozenset({"or", "and", "nor"})
MOST = 3  # words of one thing


@dataclass(frozen=True)
class Exclusion:
    span: Span  # of the whole phrase: "without any people or cars"
    things: tuple[str, ...]  # ("people", "cars")


def _things(text: str, start: int) -> tuple[int, tuple[str, ...]]:
    """The nouns that follow, and where they end."""
    things: list[list[str]] = [[]]
    end = at = start
    for token in tokens(text[start:]):
        where = start + token.span.start
        if text[at:where].strip() or is_sign(token.text) or len(things[-1]) == MOST:
            break
        at = start + token.span.end
        if token.text in JOIN and things[-1]:
            things.append([])
            continue
        if token.text in STOP or (things[-1] and token.text.endswith("ing")):
            break
        things[-1].append(text[where:at].lower())
        end = at
    return end, tuple(" ".join(words) for words in things if words)


def find(text: str) -> tuple[Exclusion, ...]:
    found: list[Exclusion] = []
    for lead in LEAD.finditer(text):
        end, things = _things(text, lead.end())
        if things and things[0].split()[0] not in ITSELF and not MOVES.issuperset(things):
            found.append(Exclusion(Span(lead.start(), end), things))
    found += [Exclusion(Span(lead.start(), lead.end()), ("people",)) for lead in NOBODY.finditer(text)]
    for lead in CHINESE.finditer(text):
        things = tuple(thing for thing in re.split("[和或与]", lead[1]) if thing)
        if things:
            found.append(Exclusion(Span(lead.start(), lead.end()), things))
    found.sort(key=lambda one: one.span.start)
    return tuple(one for i, one in enumerate(found) if i == 0 or one.span.start >= found[i - 1].span.end)
