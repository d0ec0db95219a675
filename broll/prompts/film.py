"""What a prompt says of camera and movement, read from its slots; and film words in grammar.

    moves, shots      the one that counts, and those beside it
    slowed, sentence  "pan left" -> "slow pan left" -> "The camera pans left slowly."
    reach             how much goes with a film word when it is taken out

Rigs (a drone, a hand) carry a camera and are no move; a static camera is one, for it excludes the others.
"""

import re
from collections.abc import Iterable

from broll.prompts import wording, words
from broll.prompts.findings import Edit
from broll.prompts.lexicon import Term
from broll.prompts.slots import Slots
from broll.prompts.words import Span

RIGS = frozenset({"handheld", "fpv", "steadicam", "rack focus"})
NEAR = frozenset({"macro", "close-up"})  # said together, they mean one picture; one word is enough
STATIC = "static"
DETERMINERS = frozenset({"a", "an", "the", "his", "her", "their", "its", "some", "two", "three"})
OBJECT = re.compile(
    r"\s*(?:an?|the|it|him|her|them|his|its|their|this|that|these|those)(?![^\W_])", re.IGNORECASE
)
PACES = frozenset({"slow", "steady", "fast"})  # slow motion is time, not pace
VAGUE = "vague"  # "cinematic camera movement": asked for a camera, but for no move
AT_ITS_OWN_PACE = frozenset({STATIC, VAGUE, "whip pan", "dolly zoom", "fly over"}) | RIGS

STILL = re.compile(
    r"\b(?:still\s+frame|freeze\s+frame|frozen\s+in\s+(?:time|place|mid-?air)|(?:tranquil|still)\s+tableau|still[\s-]+life|still\s+image"
    r"|motionless|perfectly\s+still|completely\s+still)\b|静物|静止",
    re.IGNORECASE,
)
# A word in -ing; data/wording.toml lists those that name a thing or a state.
PROGRESSIVE = re.compile(r"(?<![^\W_])[a-z]{2,}ing(?![^\W_])", re.IGNORECASE)

TOGETHER = re.compile(
    r"\b(?:then|end(?:s|ing)?\s+(?:on|in|with)|finish(?:es|ing)?\s+(?:on|in)|into|to\s+an?|becom(?:es|ing)|before|until|reveal(?:s|ing)?)\b",
    re.IGNORECASE,
)
LEADING = re.compile(
    r"(?:(?<![^\W_])(?:and|then|while|before|as|that|which|it|the|camera|a|an|ending\s+(?:on|with)|finally|slowly|slow|gently|quickly|fast"
    r"|smoothly|smooth|steadily|steady|gradually)\s+)+\Z",
    re.IGNORECASE,
)
TRAILING = re.compile(
    r"(?:\s+(?:slowly|gently|quickly|smoothly|steadily|gradually|fast|shot|view|while|on|onto|over|across|around|of|from|past|through"
    r"|along|towards?|into|to|at)(?![^\W_]))+",
    re.IGNORECASE,
)

NOUN_HEADS = frozenset({"shot", "view", "camera", "footage", "perspective", "move", "movement"})


def is_still(slots: Slots) -> bool:
    """The scene itself is to stand still, not only the camera."""
    return STILL.search(slots.text) is not None


def moves_by_itself(slots: Slots) -> bool:
    """Something in the picture moves."""
    inner = (part for term in slots.terms for part in term.inner)
    if any(term.kind == "motion" or term.name == "changing light" for term in (*slots.terms, *inner)):
        return True
    covered = [t.span for t in slots.terms if t.kind not in ("motion", "physics", "speed")]
    return any(
        _acts(slots.text, found) and not any(s.start <= found.start() < s.end for s in covered)
        for found in PROGRESSIVE.finditer(slots.text)
    )


def _acts(text: str, found: re.Match[str]) -> bool:
    """A word in -ing that is a verb here: "building a house", not "a building", not "a fishing boat"."""
    known, word = wording.load(), found[0].lower()
    follows = text[found.end() :].lower().split()[:1]
    if word in known.resting and not (word in known.resting_verbs and follows and follows[0] in DETERMINERS):
        return False
    return f"{word} {follows[0].strip('.,;')}" not in known.compounds if follows else True


def rests(slots: Slots) -> bool:
    """Something leans, is parked, is broken: it does not drive off."""
    return any(token.text in wording.load().still for token in words.tokens(slots.text))


def _kin(one: str, other: str) -> bool:
    """One move said twice: "pan" and "pan left"."""
    return one == other or one.startswith(f"{other} ") or other.startswith(f"{one} ")


def moves(slots: Slots) -> tuple[Term | None, tuple[Term, ...]]:
    """The move that counts, the first one; and the others, which contradict it."""
    said = [term for term in slots.of("camera") if term.name not in RIGS and term.name != VAGUE]
    if not said:
        return None, ()
    return said[0], tuple(term for term in said[1:] if not _kin(term.name, said[0].name))


def dominant(slots: Slots) -> Term | None:
    """The camera's move, if it makes one."""
    kept, _ = moves(slots)
    return None if kept is None or kept.name == STATIC else kept


def vague(slots: Slots) -> tuple[Term, ...]:
    return tuple(term for term in slots.of("camera") if term.name == VAGUE)


def shots(slots: Slots) -> tuple[Term | None, tuple[Term, ...]]:
    """The size of shot that counts, and those that contradict it: not one that the shot leads to."""
    said = slots.of("shot")
    if not said:
        return None, ()
    first = said[0]
    if {term.name for term in said} == NEAR:  # the one that a sentence leans on: "closeup of beans"
        first = max(said, key=lambda term: _clause_length(slots, term))
    others = tuple(term for term in said if term.name != first.name)
    if others and TOGETHER.search(slots.text, first.span.end, others[0].span.start):
        others = tuple(term for term in others[1:] if term.name != others[0].name)
    return first, others


def _clause_length(slots: Slots, term: Term) -> int:
    return max(
        (len(c.text) for c in slots.clauses if c.span.start <= term.span.start < c.span.end), default=0
    )


def asked(slots: Slots) -> bool:
    """Something is said of the camera: a move, a rig, or that it stands still."""
    return any(term.name != VAGUE for term in slots.of("camera"))


def has_speed(slots: Slots, move: Term) -> bool:
    """Some word of pace in the clause of the move, or inside it: "pans slowly to the left"."""
    clause = next((c for c in slots.clauses if c.span.start <= move.span.start < c.span.end), None)
    if clause is None:
        return True
    known = wording.load().adverbs
    inside = (inner for term in clause.terms for inner in (term, *term.inner))
    said = {token.text for token in words.tokens(clause.text)}
    return any(t.kind == "speed" and t.name in PACES for t in inside) or bool(
        said & {*known, *known.values()}
    )


def has_pace(slots: Slots) -> bool:
    """Some word of pace that is not the camera's."""
    behind = [clause for clause in slots.clauses if clause.slot != "camera"]
    return any(
        term.kind == "speed" and term.name in PACES
        for clause in behind
        for outer in clause.terms
        for term in (outer, *(outer.inner if outer.kind != "camera" else ()))
    )


def reach(slots: Slots, term: Term) -> Span:
    """The film word with what has no meaning without it: "then slowly [zoom in] on"."""
    before = LEADING.search(slots.text, 0, term.span.start)
    after = TRAILING.match(slots.text, term.span.end)
    return Span(before.start() if before else term.span.start, after.end() if after else term.span.end)


def slowed(term: Term, speed: str = "slowly", follows: str = "") -> Edit | None:
    """The move with its speed: an adverb behind a verb and where it goes, or before the verb if its object `follows`;
    an adjective before a noun.
    """
    said, known = words.tokens(term.text), wording.load()
    if not said or words.is_sign(said[0].text):
        return None
    verb = next((i for i, token in enumerate(said) if _is_verb(token.text)), None)
    if verb is None or NOUN_HEADS & {token.text for token in said[verb:]}:
        adjective = {adverb: adjective for adjective, adverb in known.adverbs.items()}.get(speed, speed)
        text = f"{adjective} {_lower(term.text)}"
        return Edit(term.span, text[0].upper() + text[1:] if term.text[0].isupper() else text)
    if OBJECT.match(follows):
        at = term.span.start + said[verb].span.start
        return Edit(Span(at, at), f"{speed} ")
    last = verb
    while last + 1 < len(said) and said[last + 1].text in known.whither:
        last += 1
    at = term.span.start + said[last].span.end
    return Edit(Span(at, at), f" {speed}")


def _is_verb(word: str) -> bool:
    known = wording.load()
    return word in known.verbs.values() or (word.endswith("ing") and words.stem(word) in _stems(known.verbs))


def _stems(some: Iterable[str]) -> frozenset[str]:
    return frozenset(words.stem(word) for word in some)


def _lower(text: str) -> str:
    """As it is written within a sentence; "FPV" stays."""
    return text[0].lower() + text[1:] if text[1:2].islower() or len(text) == 1 else text


def sentence(clause: str, *, speed: str = "") -> str:
    """A clause about the camera as a sentence: "slow pan left" -> "The camera pans left slowly."."""
    known = wording.load()
    text = clause.strip(" .,;")
    text = f"{text} camera" if text.lower() == "handheld" else text
    said = re.sub(r"\A(?:the\s+)?camera\s+", "", text, flags=re.IGNORECASE).split()
    small = [word.lower() for word in said]
    if not said:
        return ""
    if small[0] in known.verbs and not NOUN_HEADS & set(small):
        return _verbal(said, speed)
    if (
        len(said) > 1
        and small[0] in known.adverbs
        and small[1] in known.verbs
        and not NOUN_HEADS & set(small)
    ):
        return _verbal(said[1:], known.adverbs[small[0]])
    if speed and re.match(r"(?:the\s+)?camera\b", text, re.IGNORECASE):
        text = f"{text} {speed}"
    elif speed:
        adjectives = {adverb: adjective for adjective, adverb in known.adverbs.items()}
        text = f"{adjectives.get(speed, speed)} {_lower(text)}"
    return f"{text[:1].upper()}{text[1:]}."


def _verbal(said: list[str], speed: str) -> str:
    known = wording.load()
    cut = next((i for i, word in enumerate(said[1:], 1) if word.lower() not in known.whither), len(said))
    verb = known.verbs[said[0].lower()]
    before = OBJECT.match(" ".join(said[cut:])) is not None
    parts = [speed, verb, *said[1:]] if before else [verb, *said[1:cut], speed, *said[cut:]]
    return f"The camera {' '.join(part for part in parts if part)}."
