"""What the coach said and what was measured, for people: lines of the terminal."""

from typing import TYPE_CHECKING

from broll.cli.output import one_line, say
from broll.prompts.report import CameraOut, FindingOut, Report, camera

if TYPE_CHECKING:
    from broll.clips import Record, Tried
    from broll.media.camera import Camera
    from broll.media.checks import Checks

UNITS = {
    "pan": ("pan", "% of the width"), "truck": ("pan", "% of the width"), "orbit": ("pan", "% of the width"),
    "tilt": ("tilt", "% of the height"), "pedestal": ("tilt", "% of the height"),
    "roll": ("roll", " degrees"), "zoom": ("zoom", " times as large"), "dolly": ("zoom", " times as large"),
}  # fmt: skip


def announce_coach(report: Report) -> None:
    """Before a run: what to mend, and every change; hints are counted only."""
    announce_changes(report)
    if report.note:
        say(one_line(report.note))
    for finding in report.findings:
        if finding.severity != "hint":
            say(told(finding))
    hints = sum(finding.severity == "hint" for finding in report.findings)
    if hints:
        count = "1 hint" if hints == 1 else f"{hints} hints"
        say(f"the coach has {count} more: broll prompt check; --fix follows them, --no-coach is quiet")
    for title in report.titles:
        say(f"to be read in the clip, and left out of the picture: {one_line(title)}")
    if report.negative_prompt:
        say(f"negative prompt: {one_line(report.negative_prompt)}")
        for dropped in report.negative_dropped:
            say(f"  without {dropped.text} ({dropped.why})")


def announce_changes(report: Report) -> None:
    if report.given is not None:
        say(f"prompt: {one_line(report.prompt)}")
        for addition in report.additions:
            say(f"  added [{addition.id}]: {addition.text} ({addition.why})")
        for change in report.dropped:
            say(f"  dropped: {one_line(change.text)} ({change.why})")


def told(finding: FindingOut) -> str:
    fix = f" [fix: {finding.fix.label}]" if finding.fix else ""
    return one_line(f"{finding.severity} {finding.rule}: {finding.message}{fix}")


def measured(record: "Record") -> dict[str, str]:
    """Asked beside measured, and what is wrong with the clip, if anything is."""
    checks = record.checks
    if checks is None:
        return {}
    rows = {"camera": camera_line(camera(record.spec.prompt), checks)}
    wish = f", asked for {record.spec.motion}" if record.spec.motion else ""
    slower = f", slowed down {record.retimed:.1f} times" if record.retimed != 1 else ""
    rows["motion"] = f"{checks.motion_class} ({checks.motion:.1f} % of the frame a second){wish}{slower}"
    found = faults(checks)
    rows |= {"watch out": "; ".join(found)} if found else {}
    rows |= {"takes": ", ".join(map(take_line, record.takes))} if record.takes else {}
    return rows


def camera_line(asked: CameraOut | None, checks: "Checks") -> str:
    have = move_line(checks.camera)
    if asked is None:
        return f"measured {have}"
    wish = f"asked {asked.move}" + (f", {asked.speed}" if asked.speed else "")
    return f"{wish}; measured {have}: {'as asked' if checks.camera.move in asked.accepts else 'not as asked'}"


def move_line(have: "Camera") -> str:
    kind = have.move.split()[0]
    if kind not in UNITS:
        return have.move
    name, unit = UNITS[kind]
    amount: float = getattr(have, name)
    number = f"{amount:.2f}" if name == "zoom" else f"{abs(amount):.0f}"
    return f"{have.move} ({number}{unit}, {have.speed})"


def take_line(take: "Tried") -> str:
    return f"seed {take.seed} {take.camera}, motion {take.motion:.1f}, sharpness {take.sharpness:.1f} -> {take.score:g}"


def faults(checks: "Checks") -> list[str]:
    found = []
    if checks.cuts:
        found.append(f"cuts at frame {', '.join(map(str, checks.cuts))}")
    if checks.freezes:
        found.append("stands still in frames " + ", ".join(f"{a} to {b}" for a, b in checks.freezes))
    if checks.black:
        found.append(f"{checks.black:.0%} of the frames are black")
    return found
