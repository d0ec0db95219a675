"""When an ambiguous phrase is film language: `counts`.

Ordinary English is full of film words (a frying pan, a crane, a zoom call), so the data marks some phrases weak
or guarded. A weak move counts where it begins its clause, is all of it, follows a camera, a speed or "with"; a
guarded one only where the camera itself does it. A weak look counts where it is all of its clause, or beside
"style", "shot" and the like.
"""

from dataclasses import dataclass

from broll.prompts.vocabulary import Entry
from broll.prompts.words import Token

# Who moves when a camera moves; and who may, when a move and its direction are named.
CAMERAS = frozenset({
    "camera", "cameras", "cam", "lens", "shot", "shots", "viewpoint", "perspective", "footage", "drone",
    "dolly", "steadicam",
})  # fmt: skip
VIEWS = CAMERAS | frozenset({
    "view", "frame", "scene", "video", "clip", "image", "picture", "animation", "film", "we",
})  # fmt: skip
# Words between a camera and what it does.
PASSED = frozenset({
    "a", "an", "the", "and", "or", "then", "as", "while", "is", "are", "be", "being", "has", "that",
    "which", "to", "also", "starts", "start", "begins", "begin", "starting", "beginning", "continues",
    "very", "just", "smooth", "steady", "gentle", "cinematic", "dynamic", "single", "long",
    "with", "by", "in", "movement", "motion", "move", "up", "down", "left", "right",
})  # fmt: skip
INVITES = frozenset({
    "with", "then", "as", "featuring", "via", "using", "by", "cinematic", "dramatic", "single", "one",
    "long", "continuous",
})  # fmt: skip
SHOWN = frozenset({
    "shot", "shots", "view", "footage", "camera", "movement", "move", "motion", "angle", "angles",
    "effect",
})  # fmt: skip
LOOKS = frozenset({
    "style", "styled", "look", "aesthetic", "inspired",
})  # fmt: skip
FAR = 12  # words; company keeps near, and a long text is read in a time like its length
AFTER = frozenset({
    "in", "as", "by", "style",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Match:
    entry: Entry
    first: int
    end: int  # in tokens
    inner: tuple[tuple[int, int, str], ...]
    wrong: tuple[int, ...]


@dataclass(slots=True)
class Reading:
    """One text while it is read."""

    text: str
    tokens: tuple[Token, ...]
    said: list[str]  # the words, put right
    breaks: list[bool]  # before each token
    adverbs: list[tuple[int, str] | None]  # that begin at each token
    adverbial: list[bool]  # a token that may begin an adverb
    clauses: list[tuple[int, int]]  # first and end of the clause of each token
    terms: dict[int, Match]  # by the token after their last

    def clause(self, at: int) -> tuple[int, int]:
        return self.clauses[at]


def _vetoed(match: Match, reading: Reading) -> bool:
    said, phrase = reading.said, match.entry.phrase
    if any(tuple(said[match.end : match.end + len(veto)]) == veto for veto in phrase.not_before):
        return not (match.end < len(said) and reading.breaks[match.end])
    return match.first > 0 and said[match.first - 1] in phrase.not_after


def _is_speed(reading: Reading, at: int) -> bool:
    match = reading.terms.get(at + 1)
    return match is not None and match.entry.kind == "speed"


def _led_by_camera(match: Match, reading: Reading, leaders: frozenset[str]) -> bool | None:
    """True: a camera or an invitation leads here; None: it begins its clause; False: something else does it."""
    at, invited = match.first, False
    while at > max(0, match.first - FAR) and not reading.breaks[at]:
        before = reading.terms.get(at)
        word = reading.said[at - 1]
        if word in leaders or (before and before.entry.kind == "camera" and before.entry.name != "vague"):
            return True
        if before and before.entry.kind in ("speed", "shot", "angle"):
            invited = invited or before.entry.kind == "speed"
            at = before.first
            continue
        if word not in PASSED and not reading.adverbial[at - 1]:
            return invited or (at < match.first and reading.said[at] in INVITES)
        invited = invited or word in INVITES
        at -= 1
    far = at > 0 and not reading.breaks[at]
    return True if invited else False if far else None


def _sentence_of_camera(match: Match, reading: Reading) -> bool:
    """As in "the camera pans over the field, following a horse" and "... and rises": the camera still moves."""
    first, _ = reading.clause(match.first)
    joined = match.first > first and reading.said[match.first - 1] in ("and", "then", "before")
    if match.first != first and not joined:
        return False
    if match.first == first and first > 0:
        between = reading.text[reading.tokens[first - 1].span.end : reading.tokens[first].span.start]
        if "," not in between and "，" not in between:
            return False
        first, _ = reading.clause(first - 1)
    lead = next((word for word in reading.said[first : first + 3] if word not in ("the", "a")), "")
    near = (reading.terms.get(end) for end in range(first + 1, min(first + FAR, match.first) + 1))
    return lead in ("camera", "shot", "drone") and any(one and one.entry.kind == "camera" for one in near)


def _alone(match: Match, reading: Reading) -> bool:
    """All of its clause, but for words of speed; and there are other clauses."""
    first, end = reading.clause(match.first)
    if end - first > FAR:
        return False
    rest = [i for i in range(first, end) if not match.first <= i < match.end]
    around = any(i < first or i >= end for i in (0, len(reading.said) - 1))
    return around and all(
        reading.said[i] in ("camera", "shot", "in", "very") or reading.adverbial[i] or _is_speed(reading, i)
        for i in rest
    )


def _meant_by_camera(match: Match, reading: Reading) -> bool:
    said, mode = reading.said, match.entry.phrase.mode
    behind = said[match.end] if match.end < len(said) and not reading.breaks[match.end] else ""
    if behind in SHOWN:
        return True
    guarded, single = mode == "!", match.end - match.first == 1
    led = _led_by_camera(match, reading, CAMERAS if guarded else VIEWS)
    if guarded:
        return (bool(led) and _near_camera(match, reading)) or _sentence_of_camera(match, reading)
    if led is None and not single:
        return True
    if led:
        return not single or _near_camera(match, reading) or _is_speed(reading, match.first - 1)
    at_end = match.end == len(said) or reading.breaks[match.end]
    base = not said[match.first].endswith(("s", "ing", "ed"))
    if not single and at_end and base and match.first > 0 and not _is_plural(reading, match.first - 1):
        return True  # "a panda in Paris zoom in": a comma was forgotten
    return single and (_alone(match, reading) or _leads_on(match, reading))


def _leads_on(match: Match, reading: Reading) -> bool:
    """As in "orbiting a lighthouse": a move that begins its clause, and what it goes to."""
    behind = reading.said[match.end] if match.end < len(reading.said) else ""
    begins = match.first == reading.clause(match.first)[0]
    return begins and reading.said[match.first].endswith("ing") and behind in ("a", "an", "the", "around")


def _is_plural(reading: Reading, at: int) -> bool:
    """Of something that may zoom by itself: "cars zoom in", but not "Paris zoom in"."""
    return reading.said[at].endswith("s") and reading.text[reading.tokens[at].span.start].islower()


def _near_camera(match: Match, reading: Reading) -> bool:
    """A camera itself leads here, not only "with" or "slow"."""
    at = match.first
    while at > max(0, match.first - FAR) and not reading.breaks[at]:
        before = reading.terms.get(at)
        moves = before is not None and before.entry.kind == "camera" and before.entry.name != "vague"
        if moves and at == match.first:
            return False  # "pans over rolling hills"
        if reading.said[at - 1] in CAMERAS or moves:
            return True
        if reading.said[at - 1] not in PASSED and not reading.adverbial[at - 1] and not before:
            return False
        at = before.first if before else at - 1
    return False


def _meant_as_look(match: Match, reading: Reading) -> bool:
    """A style, an angle or a light that is also a thing: "oil painting", "overhead", "night"."""
    said = reading.said
    first, end = reading.clause(match.first)
    behind = said[match.end] if match.end < end else ""
    if behind in LOOKS or (behind in SHOWN and match.entry.kind != "style"):
        return True
    if match.first > first and said[match.first - 1] in AFTER and match.entry.kind == "style":
        return match.end == end
    begins = match.first - first < FAR and all(
        word in ("a", "an", "the", "in") for word in said[first : match.first]
    )
    if begins and match.end == end:
        return first > 0 or end < len(said)
    return begins and match.entry.kind in ("style", "angle", "shot") and behind == "of"


def counts(match: Match, reading: Reading) -> bool:
    if _vetoed(match, reading):
        return False
    if not match.entry.phrase.mode:
        return True
    return (
        _meant_by_camera(match, reading) if match.entry.kind == "camera" else _meant_as_look(match, reading)
    )
