"""Clauses in WAN's order, as sentences that a person would write.

    [In the style of X, ] the user's words, what moves them, light, atmosphere. The camera pans left slowly. Close-up.

Only what is wholly film language moves, and only out of a prompt of one sentence, or as a sentence of its own: a
sentence that somebody wrote among others is not taken apart.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from broll.prompts import film, lexicon, wording, words
from broll.prompts.rules.rule import END
from broll.prompts.slots import Clause, Slots, parse
from broll.prompts.suggestions import Addition

BEHIND = ("physics", "light", "atmosphere")  # after the user's words, in this order
LAST = ("camera", "shot")
FILM = ("style", *BEHIND, *LAST)

STOP = re.compile(r"[.!?…。！？](?=\s|\Z|[^\w\s])")


# "..., with an intense shaking effect" hangs on what stands before it.
TIED = re.compile(r"\s*(?:with|in|featuring|by|using|through|as|via|and|then)\b", re.IGNORECASE)


def arrange(slots: Slots, additions: Sequence[Addition]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The text, and what moved: (clause, slot)."""
    clauses = _clauses(slots)
    away = _movable(slots, clauses)
    content = _content(slots, clauses, away)
    if not words.tokens(content):  # film language alone: nothing to arrange it around
        away, content = [], _content(slots, clauses, [])
    said = {slot: [clause.text.strip(" \t\n.,;") for clause in away if clause.slot == slot] for slot in FILM}
    new = {
        slot: [found.text for found in additions if found.slot == slot] for slot in ("motion", "speed", *FILM)
    }
    speed = (new["speed"] or [""])[0]
    if speed and not said["camera"]:
        content = _hurried(content, speed)
    behind = new["motion"] + [phrase for slot in BEHIND for phrase in said[slot] + new[slot]]
    camera = [film.sentence(text, speed=speed) for text in said["camera"]]
    camera += [film.sentence(text) for text in new["camera"]]
    text = _written(said["style"] + new["style"], content, behind, camera, said["shot"] + new["shot"])
    moved = [clause for clause in away if not _stays(clause, clauses, away)]
    return text, tuple((clause.text.strip(), clause.slot) for clause in moved)


def _hurried(content: str, speed: str) -> str:
    """A move within the user's own words gets its speed there."""
    move = film.dominant(parse(content))
    edit = film.slowed(move, speed, content[move.span.end :]) if move else None
    return content[: edit.span.start] + edit.text + content[edit.span.end :] if edit else content


def _clauses(slots: Slots) -> list[Clause]:
    """As parsed; but "tilt up from the river" behind the subject is the camera's, though the river is not film."""
    clauses = [clause for clause in slots.clauses if clause.text.strip()]
    others = [clause for clause in clauses if clause.slot == "subject"] or clauses
    clauses = [
        replace(clause, slot="subject") if clause.slot == "camera" and not _camera(clause) else clause
        for clause in clauses
    ]
    return [
        replace(clause, slot="camera")
        if clause.slot == "subject" and clause is not others[0] and _of_camera(clause)
        else clause
        for clause in clauses
    ]


def _camera(clause: Clause) -> bool:
    """Pace alone may be anything's: "light shifting slowly"."""
    return any(term.kind == "camera" for term in clause.terms)


def _of_camera(clause: Clause) -> bool:
    first = clause.terms[0] if clause.terms else None
    skipped = re.match(r"\s*(?:the\s+)?(?:camera\s+)?", clause.text, re.IGNORECASE)
    start = clause.span.start + (skipped.end() if skipped else 0)
    return (
        first is not None
        and first.kind == "camera"
        and first.name != film.VAGUE
        and first.span.start <= start
    )


def _movable(slots: Slots, clauses: list[Clause]) -> list[Clause]:
    """Wholly film language, held by commas alone; in a text of several sentences, only sentences of their own."""
    sentences = _sentences(slots, clauses)
    found: list[Clause] = []
    for sentence in sentences:
        if len(sentences) > 1 and any(clause.slot not in FILM for clause in sentence):
            continue
        found += [clause for clause in sentence if _may_move(slots, clauses, clause)]
    return found


def _may_move(slots: Slots, clauses: list[Clause], clause: Clause) -> bool:
    if clause.slot not in FILM or not _loose(slots, clause) or film.STILL.search(clause.text):
        return False
    if clause.slot == "camera" and TIED.match(clause.text):
        return False
    if clause.slot == "style" and _goes_on(clauses, clause):
        return False
    if clause.slot in BEHIND:  # not if it is there; and "epic, dreamy forest" is no list of clauses
        content = next((c.span.start for c in clauses if c.slot not in FILM), 0)
        return clause.span.start < content and (clause.slot == "light" or len(clause.text.split()) > 1)
    if clause.slot == "style" and all(term.kind == "lens" for term in clause.terms):
        at = clauses.index(clause)
        beside = clauses[max(0, at - 1) : at] + clauses[at + 1 : at + 2]
        return any(c.slot == "style" and any(t.kind == "style" for t in c.terms) for c in beside)
    return True


def _sentences(slots: Slots, clauses: list[Clause]) -> list[list[Clause]]:
    groups: list[list[Clause]] = []
    end = 0
    for clause in clauses:
        between = slots.text[end : clause.span.start]
        before = slots.text[: clause.span.start].rstrip()
        if not groups or any(sign in END for sign in between) or before[-1:] in END:
            groups.append([])
        groups[-1].append(clause)
        end = clause.span.end
    return groups


def _goes_on(clauses: list[Clause], clause: Clause) -> bool:
    """As in "waves by Hokusai, in the style of Ukiyo"."""
    at = clauses.index(clause)
    before = clauses[at - 1] if at else None
    last = before.terms[-1] if before and before.terms else None
    return before is not None and before.slot == "subject" and last is not None and last.kind == "style"


def _loose(slots: Slots, clause: Clause) -> bool:
    before = slots.text[: clause.span.start].rstrip()
    after = slots.text[clause.span.end :].lstrip()
    return (not before or not before[-1].isalnum()) and (not after or not after[0].isalnum())


def _content(slots: Slots, clauses: list[Clause], away: list[Clause]) -> str:
    """What stays, with the user's own commas where nothing was taken out."""
    gone = {clause.span.start for clause in away}
    text, last = "", -1
    for index, clause in enumerate(clauses):
        if clause.span.start in gone:
            continue
        if last >= 0:
            between = slots.text[clauses[last].span.end : clause.span.start]
            if index != last + 1:
                stop = next((sign for sign in between if sign in END), "")
                between = f"{stop} " if stop else ", "
            text += between
        text += clause.text
        last = index
    return text.strip().lstrip(",;:. ").rstrip(" ,;:")


def _stays(clause: Clause, clauses: list[Clause], away: list[Clause]) -> bool:
    """It was where it belongs: nothing of lower rank came after it, nothing of higher rank before."""
    moving = {other.span.start for other in away}
    rank = _rank(clause, moving)
    return all(
        _rank(other, moving) <= rank if other.span.start < clause.span.start else _rank(other, moving) >= rank
        for other in clauses
    )


def _rank(clause: Clause, moving: set[int]) -> int:
    order = ("style", "content", *BEHIND, *LAST)
    return order.index(clause.slot if clause.span.start in moving else "content")


def _written(style: list[str], content: str, behind: list[str], camera: list[str], shot: list[str]) -> str:
    text = _behind_style(", ".join(style), content) if style else content
    for phrase in behind:
        text = _joined(text, phrase)
    sentences = [text, *camera, ", ".join(shot)]
    return " ".join(_ended(_capital(one)) for one in sentences if one)


def _behind_style(style: str, text: str) -> str:
    if not text:
        return style
    if STOP.search(text[:-1]) or ":" in text:
        return f"{_ended(style)} {_capital(text)}"
    first = words.tokens(text)[0]
    known = first.span.start == 0 and (first.text in wording.load().small or _is_thing(text))
    return f"{style}, {text[0].lower()}{text[1:]}" if known else f"{style}, {text}"


def _is_thing(text: str) -> bool:
    """The first word is one of the vocabulary's, and so no name."""
    found = lexicon.find(text)
    return bool(found) and found[0].span.start == 0 and found[0].kind in ("subject", "motion", "count")


def _joined(text: str, phrase: str) -> str:
    """After a comma in a single sentence; as a sentence of its own behind several."""
    if not text:
        return phrase
    bare = text.rstrip()
    several = STOP.search(bare[:-1]) is not None
    if several:
        return f"{_ended(bare)} {_capital(phrase)}"
    return (
        f"{bare.rstrip('.,;: ')}, {phrase}" if bare[-1] not in "!?…。！？" else f"{bare} {_capital(phrase)}"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ended(text: str) -> str:
    text = text.rstrip(" ,;:")
    return text if text[-1:] in END or text[-2:-1] in END else f"{text}."
