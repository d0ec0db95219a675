"""Prompts, looked at and rewritten: nothing is made, and no credits are used."""

from typing import Any

from fastapi import APIRouter

from broll.prompts import negative, slots
from broll.prompts.findings import Context
from broll.prompts.report import Report, checked, rewritten
from broll.server.deps import ReadCaller, Service, ServiceDep, Wish
from broll.server.problems import documented
from broll.server.schemas import AskedPrompt, AskedRewrite, Rewritten
from broll.spec import parse

router = APIRouter(tags=["prompts"], prefix="/v1/prompts")
ANSWERS = documented(401, 403, 404, 413, 422, 429, 503)


@router.post("/check", responses=ANSWERS)
def check_prompt(service: ServiceDep, _caller: ReadCaller, asked: AskedPrompt) -> Report:
    """What the prompt lacks, where, and how to mend it; and the negative prompt that fits it."""
    known = context(service, asked)
    built = negative.build(asked.prompt, known.base_negative, slots.parse(asked.prompt))
    return counted(checked(asked.prompt, known, built), asked)


@router.post("/rewrite", response_model=Rewritten, responses=ANSWERS)
def rewrite_prompt(service: ServiceDep, _caller: ReadCaller, asked: AskedRewrite) -> dict[str, Any]:
    """The prompt in order and with what it lacks; every addition can be left out, by its id."""
    made, note = service.models.better(asked.prompt, context(service, asked), tuple(asked.without))
    report = counted(rewritten(made).model_copy(update={"note": note}), asked)
    return report.model_dump() | {"diff": [{"op": op, "text": text} for op, text in made.diff()]}


def context(service: Service, asked: AskedPrompt) -> Context:
    fields: dict[str, Any] = {"prompt": asked.prompt, "model": asked.model, "guidance": asked.guidance}
    fields |= {"seconds": asked.seconds if asked.duration is None else asked.duration}
    fields |= {"negative_prompt": asked.negative_prompt}
    if asked.size is not None:
        fields["width"], fields["height"] = (int(side) for side in asked.size.split("x"))
    parse(model="any", prompt=asked.prompt)
    return service.models.context(fields, Wish("check", asked.preset, asked.style))


def counted(report: Report, asked: AskedPrompt) -> Report:
    """With the offsets in what the client counts in."""
    if asked.offsets == "codepoints":
        return report

    def units(at: int) -> int:
        return len(report.prompt[:at].encode("utf-16-le")) // 2

    def moved(thing: Any) -> dict[str, int]:
        return {"start": units(thing.start), "end": units(thing.end)}

    findings = []
    for finding in report.findings:
        fix = finding.fix
        if fix is not None:
            edits = tuple(edit.model_copy(update=moved(edit)) for edit in fix.edits)
            fix = fix.model_copy(update={"edits": edits})
        findings.append(finding.model_copy(update=moved(finding) | {"fix": fix}))
    return report.model_copy(update={"findings": tuple(findings)})
