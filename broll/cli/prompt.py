"""`broll prompt`: what a prompt lacks, a better one, and how it is understood. Needs no model and no torch."""

import dataclasses
import json
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from broll.cli.output import one_line
from broll.errors import BadOption, BadPrompt

if TYPE_CHECKING:
    from broll.prompts.findings import Context

prompt_app = typer.Typer(help="What a prompt lacks, and a better one.", no_args_is_help=True)

Prompt = Annotated[str, typer.Argument(help='The prompt; "-" reads it from stdin.')]
Seconds = Annotated[float | None, typer.Option(help="Length of the clip.")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT.", metavar="WxH")]
Guidance = Annotated[float | None, typer.Option(help="1 for models that were distilled to few steps.")]
Model = Annotated[str, typer.Option(help="The model that it is for: its task, length and negative prompt.")]
Preset = Annotated[str | None, typer.Option(help="The use, such as product-reveal.")]
Style = Annotated[str | None, typer.Option(help="A style, such as cinematic.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@prompt_app.command("check")
def check(
    prompt: Prompt, model: Model = "wan2.1-t2v-1.3b", seconds: Seconds = None, size: Size = None,
    guidance: Guidance = None, preset: Preset = None, style: Style = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say what the prompt lacks, where, and how to mend it."""
    from broll.prompts import negative, slots
    from broll.prompts.report import checked

    text = given(prompt)
    known = context(text, model, seconds, size, guidance, preset, style)
    report = checked(text, known, negative.build(text, known.base_negative, slots.parse(text)))
    if as_json:
        print(report.model_dump_json(exclude_none=True))
        return
    for finding in report.findings:
        print(one_line(f"{finding.severity:<8}{finding.rule:<8}{finding.message}"))
        if finding.start < finding.end < len(text):
            print(" " * 16 + one_line(f"here: {text[finding.start : finding.end]}"))
        if finding.fix:
            print(" " * 16 + one_line(f"fix: {finding.fix.label}"))
    if not report.findings:
        print("nothing to mend")
    if report.negative_prompt:
        print(one_line(f"negative prompt: {report.negative_prompt}"))


@prompt_app.command("rewrite")
def rewrite(
    prompt: Prompt, model: Model = "wan2.1-t2v-1.3b", seconds: Seconds = None, size: Size = None,
    guidance: Guidance = None, preset: Preset = None, style: Style = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this addition out, by its id; may be given again.")
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Put the prompt in order, and add what it lacks: the new prompt on stdout, every change on stderr."""
    from broll import coaching
    from broll.cli.output import say
    from broll.prompts import coach
    from broll.prompts.report import rewritten
    from broll.settings import Settings

    text = given(prompt)
    known = context(text, model, seconds, size, guidance, preset, style)
    made, note = coaching.better(text, known, coaching.endpoint(Settings()), without=tuple(without or ()))
    report = rewritten(made).model_copy(update={"note": note})
    if without:
        ids = [addition.id for addition in coach.rewrite(text, known).additions]
        for name in sorted({*without} - {*ids}):
            say(one_line(f"nothing is added as {name} here; additions are: {', '.join(ids) or 'none'}"))
    if as_json:
        print(json.dumps(report.model_dump(exclude_none=True, mode="json") | {"diff": made.diff()}))
        return
    print(one_line(report.prompt))
    for addition in report.additions:
        say(f"added [{addition.id}]: {addition.text} ({addition.why})")
    for change in (*made.replaced, *made.dropped):
        say(one_line(f"{change.text} -> {change.to or 'left out'} ({change.why})"))
    if report.note:
        say(one_line(report.note))
    for title in report.titles:
        say(one_line(f"title: {title}"))
    if report.negative_prompt:
        say(one_line(f"negative prompt: {report.negative_prompt}"))


@prompt_app.command("explain")
def explain(
    prompt: Annotated[str, typer.Argument(help="A prompt, or the id of a rule such as CAM-1.")],
    as_json: AsJson = False,
) -> None:
    """Show how a prompt is understood, slot by slot; or what a rule finds, and why."""
    from broll.prompts import coach, slots
    from broll.prompts.rules import RULES

    known = [rule.id for rule in RULES]
    if re.fullmatch(r"[A-Za-z]+-[0-9]+", prompt.strip()) and prompt.strip().upper() not in known:
        raise BadOption(f"there is no rule {prompt.strip()[:40]}; there are: {', '.join(known)}")
    if prompt.strip().upper() in known:
        rule = coach.explain(prompt)
        rows = {"rule": rule.id, "finds": rule.finds, "why": rule.why}
        rows |= {"bad": rule.bad.prompt, "good": rule.good.prompt}
    else:
        text = given(prompt)
        parsed = slots.parse(text)
        rows = {clause.slot: "" for clause in parsed.clauses}
        for clause in parsed.clauses:
            rows[clause.slot] = ", ".join(part for part in (rows[clause.slot], clause.text) if part)
        asked = slots.asked_camera(text)
        rows |= {f"{term.kind} ": "" for term in parsed.terms}
        for term in parsed.terms:
            name = f"{term.kind} "
            rows[name] = ", ".join(part for part in (rows[name], term.name) if part)
        rows |= {"asked camera": json.dumps(dataclasses.asdict(asked))} if asked else {}
        rows |= {"titles": ", ".join(quoted.words for quoted in parsed.titles)} if parsed.titles else {}
        rows["language"] = parsed.language
    if as_json:
        print(json.dumps({name.strip(): value for name, value in rows.items()}))
        return
    for name, value in rows.items():
        print(f"{name:<16}{one_line(value)}")


def given(prompt: str) -> str:
    from broll.spec import parse

    text = sys.stdin.read().strip() if prompt == "-" else prompt
    if not text.strip():
        raise BadPrompt("the prompt is empty: say what the clip shows and how the camera moves")
    return parse(model="none", prompt=text).prompt


def context(
    text: str, model: str, seconds: float | None, size: str | None, guidance: float | None,
    preset: str | None, style: str | None,
) -> "Context":  # fmt: skip
    """What the coach knows: the model's task and defaults, and what was said of the clip."""
    from broll import catalog, coaching, wiring
    from broll.cli.typed import Options, frames_of, size_of
    from broll.engine.config import PUBLISHED
    from broll.settings import Settings
    from broll.spec import parse

    settings, name = Settings(), catalog.published_name(model) or model
    config = PUBLISHED.get(name) or wiring.describe(catalog.find(settings, name))
    fields = size_of(size) | frames_of(Options(seconds=seconds), config.defaults.fps)
    spec = parse(model=name, prompt=text, guidance=guidance, **fields)
    return coaching.context(config, spec, settings, use=preset, style=style)
