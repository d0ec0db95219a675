"""What the coach said of one prompt, as plain data: for the API, a clip's file and the terminal."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from broll.prompts import coach
from broll.prompts.findings import Context, Finding
from broll.prompts.negative import Negative
from broll.prompts.rewriter import Rewrite
from broll.prompts.slots import asked_camera

Text = Annotated[str, Field(max_length=20_000)]
Line = Annotated[str, Field(max_length=1000)]


class Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class EditOut(Plain):
    start: int
    end: int
    text: Text


class FixOut(Plain):
    label: Line
    edits: tuple[EditOut, ...] = ()
    negative_prompt: Text | None = None
    titles: tuple[Line, ...] = ()


class FindingOut(Plain):
    """`start` and `end` are code points of the prompt that was checked."""

    rule: Line
    severity: Literal["error", "warning", "hint"]
    start: int
    end: int
    message: Line
    fix: FixOut | None = None


class AdditionOut(Plain):
    id: Line
    slot: Line
    text: Line
    why: Line


class Why(Plain):
    text: Line
    why: Line


class CameraOut(Plain):
    """The one camera move that is asked for; `accepts` are the measured moves that satisfy it."""

    move: Line
    speed: Line | None = None
    accepts: tuple[Line, ...] = ()


class Report(Plain):
    """Findings are about `prompt`; where it was rewritten, `given` is what was typed."""

    prompt: Text
    given: Text | None = None
    findings: Annotated[tuple[FindingOut, ...], Field(max_length=500)] = ()
    additions: Annotated[tuple[AdditionOut, ...], Field(max_length=100)] = ()
    dropped: Annotated[tuple[Why, ...], Field(max_length=500)] = ()  # film words
    negative_prompt: Text = ""
    negative_dropped: Annotated[tuple[Why, ...], Field(max_length=500)] = ()
    negative_added: Annotated[tuple[Why, ...], Field(max_length=500)] = ()
    titles: Annotated[tuple[Line, ...], Field(max_length=20)] = ()
    camera: CameraOut | None = None
    note: Line = ""  # of the language model, if one was asked


def finding(found: Finding) -> FindingOut:
    fix = found.fix
    edits = tuple(EditOut(start=e.span.start, end=e.span.end, text=e.text) for e in fix.edits) if fix else ()
    told = None
    if fix is not None:
        told = FixOut(label=fix.label, edits=edits, negative_prompt=fix.negative, titles=fix.titles)
    return FindingOut(
        rule=found.rule, severity=found.severity, start=found.span.start, end=found.span.end,
        message=found.message, fix=told,
    )  # fmt: skip


def camera(prompt: str) -> CameraOut | None:
    asked = asked_camera(prompt)
    return None if asked is None else CameraOut(move=asked.move, speed=asked.speed, accepts=asked.accepts)


def checked(prompt: str, context: Context, built: Negative) -> Report:
    return Report(
        prompt=prompt,
        findings=tuple(finding(found) for found in coach.check(prompt, context)),
        camera=camera(prompt),
        **of_negative(built),
    )


def rewritten(made: Rewrite) -> Report:
    return Report(
        prompt=made.prompt,
        given=made.original if made.original != made.prompt else None,
        findings=tuple(finding(found) for found in made.findings_left),
        additions=tuple(AdditionOut(id=a.id, slot=a.slot, text=a.text, why=a.why) for a in made.additions),
        dropped=tuple(Why(text=change.text, why=change.why) for change in made.dropped),
        titles=made.titles,
        camera=camera(made.prompt),
        **of_negative(made.negative),
    )


def of_negative(built: Negative) -> dict[str, Any]:
    return {
        "negative_prompt": built.text,
        "negative_dropped": tuple(Why(text=text, why=why) for text, why in built.dropped),
        "negative_added": tuple(Why(text=text, why=why) for text, why in built.added),
    }
