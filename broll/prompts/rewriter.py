"""A prompt in the order that WAN likes: style, subject and action, scene, physics, light, atmosphere, camera, shot.

    repair    words in the picture become titles, "no clouds" goes to the negative prompt; one camera move and one size
              of shot stay
    arrange   what is wholly film language moves to its place; the user's own words stay as they are, in their order
    add       a phrase for each empty slot that the use case needs, each with an id by which it can be left out

Nothing is lost: `lost` names content words that are neither in the prompt nor in titles, in the negative prompt or in
the list of film words that were dropped. The same prompt gives the same, and a second time changes nothing: what does
not come to rest in a few rounds is given back as it came.

Left out: other languages than English are repaired, not arranged, and nothing is added to them.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from broll.prompts import film, layout, negative, slots, suggestions, titles, words
from broll.prompts.findings import Context, Edit, Finding
from broll.prompts.lexicon import Term
from broll.prompts.negative import Negative
from broll.prompts.rules.rule import removal
from broll.prompts.slots import Slots
from broll.prompts.suggestions import Addition
from broll.prompts.words import Span

ROUNDS = 6
MACRO = re.compile(r"(?i)(\bmacro\b[\s-]*)")
DENIED, STILL = re.compile(r"(?i)(?:no|without|zero|do|don.t|never)\b"), "static camera"

Repair = Callable[[Slots, Context], Iterator[tuple["Change", Edit]]]


@dataclass(frozen=True)
class Change:
    """What was moved, dropped or replaced; `to` is empty for what was dropped."""

    text: str
    to: str
    why: str


@dataclass(frozen=True)
class Rewrite:
    original: str
    prompt: str
    additions: tuple[Addition, ...]
    moved: tuple[Change, ...]
    dropped: tuple[Change, ...]
    replaced: tuple[Change, ...]
    negative: Negative
    titles: tuple[str, ...]
    findings_left: tuple[Finding, ...] = ()

    def diff(self) -> tuple[tuple[Literal["equal", "insert", "delete"], str], ...]:
        """By words, white space included: all but "insert" is the original, all but "delete" the prompt."""
        one, other = (re.findall(r"\s+|[^\w\s]|[^\W_]+|_", text) for text in (self.original, self.prompt))
        steps: list[tuple[Literal["equal", "insert", "delete"], str]] = []
        for tag, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
            if tag == "equal":
                steps.append(("equal", "".join(one[a:b])))
                continue
            if b > a:
                steps.append(("delete", "".join(one[a:b])))
            if d > c:
                steps.append(("insert", "".join(other[c:d])))
        return tuple(steps)


@dataclass(frozen=True)
class _Draft:
    text: str
    additions: tuple[Addition, ...] = ()
    moved: tuple[Change, ...] = ()
    dropped: tuple[Change, ...] = ()
    replaced: tuple[Change, ...] = ()
    titles: tuple[str, ...] = ()


def rewrite(prompt: str, context: Context | None = None, without: tuple[str, ...] = ()) -> Rewrite:
    """`without`: ids of additions that are not wanted."""
    context = context or Context()
    draft = _Draft(prompt)
    for _ in range(ROUNDS):
        following = _round(draft, context, frozenset(without))
        if following.text == draft.text:
            break
        draft = following
    else:
        draft = _Draft(prompt)
    base = context.base_negative if context.negative is None else context.negative
    fitting = negative.build(prompt, base, slots.parse(prompt))
    # What the rewriter added may ask for what the base pushes away.
    final = negative.build(draft.text, fitting.text, slots.parse(draft.text))
    both = replace(final, dropped=fitting.dropped + final.dropped, added=fitting.added + final.added)
    made = Rewrite(
        prompt, draft.text, draft.additions, draft.moved, draft.dropped, draft.replaced, both, draft.titles
    )
    return made if not lost(made) else replace(_as_it_was(made), negative=fitting)


def _as_it_was(made: Rewrite) -> Rewrite:
    return Rewrite(made.original, made.original, (), (), (), (), made.negative, ())


def lost(made: Rewrite) -> tuple[str, ...]:
    """Content words of the original that are nowhere any more; what is listed as dropped or replaced is not lost."""
    places = [made.prompt, made.negative.text, *made.titles]
    places += [change.text for change in made.dropped + made.replaced]
    kept = {words.stem(token.text) for place in places for token in words.tokens(place)}
    return tuple(
        token.text for token in words.content_words(made.original) if words.stem(token.text) not in kept
    )


def _round(draft: _Draft, context: Context, without: frozenset[str]) -> _Draft:
    draft = _lifted(draft)
    if not words.content_words(draft.text):
        return draft
    draft = _replaced(draft, context, _corrected)
    if context.guidance > 1:
        draft = _dropped(draft, context, _excluded)
    draft = _dropped(draft, context, _second_moves)
    draft = _replaced(draft, context, _macro_close_up)
    draft = _dropped(draft, context, _second_shots)
    if slots.parse(draft.text).language != "en":
        return draft
    draft = _replaced(draft, context, _concrete)
    draft = _replaced(draft, context, _still)
    parsed = slots.parse(draft.text)
    additions = _additions(parsed, context, without, draft.dropped)
    text, moved = layout.arrange(parsed, additions)
    changes = tuple(Change(what, text, f"{slot} stands where WAN's captions have it") for what, slot in moved)
    return replace(draft, text=text, additions=draft.additions + additions, moved=draft.moved + changes)


def _lifted(draft: _Draft) -> _Draft:
    quoted = titles.find(draft.text)
    if not quoted:
        return draft
    text, found = titles.lift(draft.text)
    changes = tuple(
        Change(draft.text[one.span.start : one.span.end], one.blank, "words in the picture are made a title")
        for one in quoted
    )
    return replace(draft, text=text, titles=draft.titles + found, replaced=draft.replaced + changes)


def _additions(
    parsed: Slots, context: Context, without: frozenset[str], dropped: tuple[Change, ...]
) -> tuple[Addition, ...]:
    """As many as the model's length allows, the most needed first."""
    taken: list[Addition] = []
    count = words.count(parsed.text)
    unwanted = {words.stem(token.text) for one in dropped for token in words.tokens(one.text)} - {"camera"}
    for given in suggestions.lacking(parsed, context):
        move = (
            given.text.split()[1:2] if given.slot == "camera" else []
        )  # "zooms" of "camera zooms in slowly"
        denied = any(words.stem(word) in unwanted for word in move)  # by "no zoom"
        found = Addition("camera:static", "camera", STILL, "no move was wanted") if denied else given
        size = words.count(found.text) + 1
        if found.id not in without and count + size <= context.words[1]:
            taken.append(found)
            count += size
    return tuple(taken)


# Repairs: each names a change and its edit; edits of one kind are applied one at a time, since each may move the
# others.


def _corrected(parsed: Slots, _context: Context) -> Iterator[tuple[Change, Edit]]:
    for term in parsed.terms:
        if term.typo and term.meant and term.meant.casefold() != term.text.casefold():
            meant = term.meant[:1].upper() + term.meant[1:] if term.text[:1].isupper() else term.meant
            yield Change(term.text, meant, "spelt wrong"), Edit(term.span, meant)


def _concrete(parsed: Slots, _context: Context) -> Iterator[tuple[Change, Edit]]:
    for term in () if film.asked(parsed) else film.vague(parsed):
        move = suggestions.concrete(term.text, parsed.text[term.span.end :])
        yield Change(term.text, move, "nothing that a camera could do"), Edit(term.span, move)


def _still(parsed: Slots, _context: Context) -> Iterator[tuple[Change, Edit]]:
    for term in parsed.of("camera"):
        if term.name == film.STATIC and DENIED.match(term.text):
            yield Change(term.text, STILL, "the model paints what is named"), Edit(term.span, STILL)


def _excluded(parsed: Slots, _context: Context) -> Iterator[tuple[Change, Edit]]:
    for exclusion in parsed.excluded:
        said = parsed.text[exclusion.span.start : exclusion.span.end]
        yield (
            Change(said, "", "the negative prompt says it: the model paints what is named"),
            removal(parsed.text, exclusion.span),
        )


def _second_moves(parsed: Slots, _context: Context) -> Iterator[tuple[Change, Edit]]:
    kept, others = film.moves(parsed)
    for term in others:
        assert kept is not None
        yield _without(parsed, term, f'one camera move: "{kept.text}" stays')


def _macro_close_up(parsed: Slots, _context: Context) -> Iterator[tuple[Change, Edit]]:
    """One size of shot that is said in two places, "close-up. macro.", becomes one, "macro close-up."."""
    said = {term.name: term for term in parsed.of("shot")}
    if said.keys() != film.NEAR:
        return
    near, word = said["close-up"], MACRO.search(parsed.text, said["macro"].span.start, said["macro"].span.end)
    rest = said["macro"].text[len(word.group()) :].casefold() if word else "view"
    if word is None or not (
        rest == "" or rest.startswith("slo")
    ):  # "macro shot of a bee" stays; the other one goes
        return
    alone = rest == ""
    gone = removal(parsed.text, Span(*word.span())) if alone else Edit(Span(*word.span(1)), "")
    there = Edit(Span(near.span.start, near.span.start), "macro ")
    first, second = sorted((gone, there), key=lambda edit: edit.span.start)
    between = parsed.text[first.span.end : second.span.start]
    edit = Edit(Span(first.span.start, second.span.end), f"{first.text}{between}{second.text}")
    yield (
        Change(
            f"{near.text} ... {word.group().strip()}", f"macro {near.text}", "one size of shot, said once"
        ),
        edit,
    )


def _second_shots(parsed: Slots, _context: Context) -> Iterator[tuple[Change, Edit]]:
    kept, others = film.shots(parsed)
    for term in others:
        assert kept is not None
        yield _without(parsed, term, f'one size of shot: "{kept.text}" stays')


def _without(parsed: Slots, term: Term, why: str) -> tuple[Change, Edit]:
    span = film.reach(parsed, term)
    said = " ".join(parsed.text[span.start : span.end].split())
    return Change(said, "", why), removal(parsed.text, span, comma=True)


def _repaired(text: str, context: Context, repair: Repair) -> tuple[str, tuple[Change, ...]]:
    changes: list[Change] = []
    for _ in range(len(text)):
        change, edit = next(repair(slots.parse(text), context), (None, None))
        if change is None or edit is None:
            break
        after = text[: edit.span.start] + edit.text + text[edit.span.end :]
        if after == text or not words.content_words(after):
            break
        text = after
        changes.append(change)
    return text, tuple(changes)


def _dropped(draft: _Draft, context: Context, repair: Repair) -> _Draft:
    text, changes = _repaired(draft.text, context, repair)
    return replace(draft, text=text, dropped=draft.dropped + changes)


def _replaced(draft: _Draft, context: Context, repair: Repair) -> _Draft:
    text, changes = _repaired(draft.text, context, repair)
    return replace(draft, text=text, replaced=draft.replaced + changes)
