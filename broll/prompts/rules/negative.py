"""What is not wanted: the negative prompt, and what a prompt says it does not want."""

from collections.abc import Iterator

from broll.prompts import negative
from broll.prompts.findings import Context, Finding, Fix
from broll.prompts.rules.rule import Example, Rule, quote, removal, whole
from broll.prompts.slots import Slots

OWN = "blurry, static, oversaturated"


def contradiction(slots: Slots, context: Context) -> Iterator[Finding]:
    if not context.negative:  # the built one never contradicts
        return
    built = negative.build(slots.text, context.negative, slots)
    if built.dropped:
        tokens = ", ".join(token for token, _ in built.dropped)
        message = (
            f"the negative prompt pushes away what the prompt asks for ({built.dropped[0][1]}): drop {tokens}"
        )
        fix = Fix(
            f"Drop {tokens} from the negative prompt", negative=_without(context.negative, built.dropped)
        )
        yield Finding("NEG-1", "warning", whole(slots), message, fix)


def _without(own: str, dropped: tuple[tuple[str, str], ...]) -> str:
    gone = {token.strip().casefold() for token, _ in dropped}
    tokens = [token.strip() for token in own.replace("，", ",").split(",")]
    return ", ".join(token for token in tokens if token and token.casefold() not in gone)


def exclusions(slots: Slots, context: Context) -> Iterator[Finding]:
    for exclusion in slots.excluded:
        things = ", ".join(exclusion.things)
        said = quote(slots.text[exclusion.span.start : exclusion.span.end])
        if context.guidance <= 1:
            message = (
                f"{said}: the model paints what is named, and guidance 1 has no negative: say what is there"
            )
            yield Finding("NEG-2", "warning", exclusion.span, message)
            continue
        message = f"{said}: the model paints what is named: move {quote(things)} to the negative prompt"
        fix = Fix(
            "Move it to the negative prompt",
            (removal(slots.text, exclusion.span),),
            negative=_with(slots, context, exclusion.things),
        )
        yield Finding("NEG-2", "warning", exclusion.span, message, fix)


def _with(slots: Slots, context: Context, things: tuple[str, ...]) -> str:
    own = context.negative
    active = own if own is not None else negative.build(slots.text, context.base_negative, slots).text
    tokens = {token.strip().casefold() for token in active.replace("，", ",").split(",")}
    return ", ".join([active] * bool(active) + [thing for thing in things if thing.casefold() not in tokens])


def without_effect(slots: Slots, context: Context) -> Iterator[Finding]:
    if context.negative and context.guidance <= 1:
        message = "at guidance 1 a negative prompt has no effect: drop it, and say in the prompt what is there instead"
        yield Finding("NEG-3", "warning", whole(slots), message, Fix("Drop the negative prompt", negative=""))


RULES = (
    Rule(
        "NEG-1",
        "a negative prompt of your own that pushes away what the prompt asks for",
        "WAN's published negative prompt holds static, style, subtitles, bright tones and crowds. Whoever asks for a "
        "static shot and "
        "leaves it as it is works against it. The coach's own negative prompt leaves such words out.",
        Example("a static wide shot of a gas station at night", Context(negative=OWN)),
        Example("a static wide shot of a gas station at night", Context(negative="blurry, oversaturated")),
        contradiction,
    ),
    Rule(
        "NEG-2",
        '"no clouds", "without people"',
        "A text encoder hears clouds and people. What is not wanted belongs into the negative prompt.",
        Example("a beach at sunrise with no people, waves rolling in gently"),
        Example("a deserted beach at sunrise, waves rolling in gently"),
        exclusions,
    ),
    Rule(
        "NEG-3",
        "a negative prompt while guidance is 1",
        "Few-step models run at guidance 1: the negative prompt is never computed.",
        Example("a lake at dawn, mist drifting slowly", Context(negative="people", guidance=1.0, steps=4)),
        Example("a deserted lake at dawn, mist drifting slowly", Context(guidance=1.0, steps=4)),
        without_effect,
    ),
)
