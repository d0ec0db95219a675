"""The coach: what a prompt lacks, why, and the prompt that lacks nothing.

check     findings, in the order of the text; each rule once over a prompt that was taken apart once
explain   a rule, with its bad and its good prompt
apply     a fix, to the text that its finding belongs to
rewrite   the prompt in WAN's order, with what it lacks; and what is left to say about it
"""

from dataclasses import replace

from broll.errors import BadOption
from broll.prompts import rewriter, slots
from broll.prompts.findings import Context, Finding, Fix
from broll.prompts.rewriter import Rewrite
from broll.prompts.rules import RULES
from broll.prompts.rules.rule import Rule

WEIGHT = {"error": 0, "warning": 1, "hint": 2}


def check(prompt: str, context: Context | None = None) -> tuple[Finding, ...]:
    context = context or Context()
    parsed = slots.parse(prompt)
    found = [finding for rule in RULES for finding in rule.check(parsed, context)]
    return tuple(sorted(found, key=lambda f: (f.span.start, WEIGHT[f.severity], f.rule)))


def explain(rule: str) -> Rule:
    for known in RULES:
        if known.id == rule.strip().upper():
            return known
    raise BadOption(f'no rule "{rule}"; there are {", ".join(known.id for known in RULES)}')


def apply(prompt: str, fix: Fix) -> str:
    for edit in sorted(fix.edits, key=lambda edit: edit.span.start, reverse=True):
        prompt = prompt[: edit.span.start] + edit.text + prompt[edit.span.end :]
    return prompt


def rewrite(prompt: str, context: Context | None = None, without: tuple[str, ...] = ()) -> Rewrite:
    """`without`: ids of additions to leave out, as an earlier rewrite named them."""
    context = context or Context()
    made = rewriter.rewrite(prompt, context, without)
    return replace(made, findings_left=check(made.prompt, context))
