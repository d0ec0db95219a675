"""Clips that start from a picture: words for what the picture cannot say."""

from collections.abc import Iterator

from broll.prompts.findings import Context, Finding, Fix
from broll.prompts.rules.rule import Example, Rule, quote, removal, whole
from broll.prompts.slots import Clause, Slots

# What a clause is about if it is about the change and not about the picture.
MOVING = frozenset({"camera", "speed", "motion", "physics", "duration"})
STAYS = frozenset({"camera", "shot", "physics"})


def moves(clause: Clause) -> bool:
    return clause.slot in STAYS or any(term.kind in MOVING for term in clause.terms)


def redescribed(slots: Slots, context: Context) -> Iterator[Finding]:
    if context.task == "t2v":
        return
    still = [clause for clause in slots.clauses if not moves(clause) and clause.text.strip()]
    if not any(moves(clause) for clause in slots.clauses):
        if len(still) > 1 or any(len(clause.text.split()) > 5 for clause in still):
            message = "the picture shows this already: say only what moves in it, and how the camera moves"
            yield Finding("I2V-1", "warning", still[0].span, message)
        return
    for clause in still:
        message = f"{quote(clause.text)} describes the picture, which the model sees: say only what changes"
        fix = Fix(f"Take out {quote(clause.text)}", (removal(slots.text, clause.span),))
        yield Finding("I2V-1", "hint", clause.span, message, fix)


def english(slots: Slots, context: Context) -> Iterator[Finding]:
    if context.task == "flf2v" and slots.language == "en" and slots.text.strip():
        message = (
            "the model between two pictures learned mostly from Chinese: a Chinese prompt is followed better"
        )
        yield Finding("FLF-1", "hint", whole(slots), message)


RULES = (
    Rule(
        "I2V-1",
        "a prompt for a picture that says again what the picture shows",
        "The first frame is given; words that differ ask for another. WAN's own guide: motion and camera only.",
        Example(
            "a woman in a red dress, long dark hair, stone wall, her hair blowing in the wind, slow push in",
            Context(task="i2v"),
        ),
        Example("her hair blowing gently in the wind, slow push in", Context(task="i2v")),
        redescribed,
    ),
    Rule(
        "FLF-1",
        "an English prompt for the model between a first and a last picture",
        "It was trained mostly on Chinese captions; its authors recommend Chinese.",
        Example("the flower opens slowly, static camera", Context(task="flf2v")),
        Example("花朵缓慢绽放，固定镜头", Context(task="flf2v")),
        english,
    ),
)
