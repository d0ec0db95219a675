"""The report on nano: tables and contact sheets, from what training/evaluate.py measured."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors import safe_open

BARS = {"camera": 0.92, "light": 0.97, "scene": 0.92}
KEYS = ("camera", "light", "scene", "speed", "style")


@dataclass(frozen=True)
class Judged:
    prompt: str
    unseen: bool
    asked: dict[str, str]
    measured: dict[str, str]
    strip: Image.Image

    def followed(self, key: str) -> bool:
        return self.asked[key] == self.measured[key]


def shares(results: list[Judged]) -> dict[str, tuple[int, int]]:
    judged = {key: [r for r in results if key in r.asked] for key in KEYS}
    return {key: (sum(r.followed(key) for r in rows), len(rows)) for key, rows in judged.items()}


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_value(results: list[Judged], key: str) -> str:
    rows = [[key, "followed", "taken for"]]
    for value in sorted({r.asked[key] for r in results if key in r.asked}):
        mine = [r for r in results if r.asked.get(key) == value]
        wrong = sorted(r.measured[key] for r in mine if not r.followed(key))
        rows.append([value, f"{len(mine) - len(wrong)}/{len(mine)}", ", ".join(wrong)])
    return table(rows)


def percent(pair: tuple[int, int]) -> str:
    return f"{pair[0] / max(1, pair[1]):.0%} ({pair[0]}/{pair[1]})"


def adherence(runs: dict[str, list[Judged]], measured: Path) -> str:
    with safe_open(measured, framework="pt") as file:
        own = {key: float(value) for key, value in file.metadata().items()}
    names = list(runs)
    rows = [
        ["", *names, *(f"{n}, unseen words" for n in names), "bar", "the measure itself, on held-out renders"]
    ]
    for key in KEYS:
        cells = [percent(shares(runs[n])[key]) for n in names]
        cells += [percent(shares([r for r in runs[n] if r.unseen])[key]) for n in names]
        rows.append([key, *cells, f"{BARS[key]:.0%}" if key in BARS else "", f"{own[key]:.1%}"])
    return table(rows)


def pictures(facts: dict[str, float]) -> str:
    said = {
        "psnr": ("autoencoder, fresh renders without grain there and back, PSNR", "{:.1f} dB"),
        "ssim": ("the same, SSIM", "{:.3f}"),
        "grainy psnr": ("autoencoder, renders with film grain, PSNR", "{:.1f} dB"),
        "picture": ("teacher, given a picture: its first frame against the picture, PSNR", "{:.1f} dB"),
        "student's picture": ("student, the same", "{:.1f} dB"),
        "diversity": (
            "distance between clips of one prompt, over that between clips of two prompts",
            "{:.2f}",
        ),
        "renders' flicker": ("second difference over time: renders", "{:.2f} of 255"),
        "teacher's flicker": ("the same: teacher", "{:.2f} of 255"),
        "student's flicker": ("the same: student", "{:.2f} of 255"),
    }
    return table(
        [
            ["", "value"],
            *([text, form.format(facts[key])] for key, (text, form) in said.items() if key in facts),
        ]
    )


def listing(results: list[Judged]) -> str:
    rows = [["prompt", *KEYS]]
    for r in results:
        cells = [
            "-" if key not in r.asked else "yes" if r.followed(key) else f"no: {r.measured[key]}"
            for key in KEYS
        ]
        rows.append([r.prompt + (" *" if r.unseen else ""), *cells])
    return table(rows)


def sheet(results: list[Judged], count: int = 24) -> Image.Image:
    """Strips of some clips, two in a row."""
    some = results[:: max(1, len(results) // count)][:count]
    width, height = some[0].strip.size
    page = Image.new("RGB", (2 * width, height * ((len(some) + 1) // 2)))
    for place, r in enumerate(some):
        page.paste(r.strip, (width * (place % 2), height * (place // 2)))
    return page.resize((page.width // 2, page.height // 2), Image.Resampling.LANCZOS)


def write(
    out: Path, runs: dict[str, list[Judged]], facts: dict[str, float], command: str, measured: Path
) -> dict[str, float]:
    """nano/REPORT.md and docs/images/nano_*.jpg under `out`; returns the shares and facts."""
    (out / "nano").mkdir(parents=True, exist_ok=True)
    (out / "docs" / "images").mkdir(parents=True, exist_ok=True)
    for name, results in runs.items():
        sheet(results).save(out / "docs" / "images" / f"nano_{name}.jpg", quality=85)
    teacher = next(iter(runs.values()))
    text = [
        "# Does nano do what it is told?",
        f"Written by `{command}` from the committed weights. {len(teacher)} prompts and seeds that training never "
        "used; nano's default clip (5 s, 81 frames). A prompt that leaves something out is not judged on it.",
        adherence(runs, measured),
        pictures(facts),
        "Contact sheets: [teacher](../docs/images/nano_teacher.jpg)"
        + (", [student](../docs/images/nano_student.jpg)" if "student" in runs else "") + ".",
        *(by_value(teacher, key) for key in KEYS),
        "## Every prompt",
        "Of the teacher. * in words that training never used.",
        listing(teacher),
    ]  # fmt: skip
    (out / "nano" / "REPORT.md").write_text("\n\n".join(text) + "\n")
    found = {
        f"{n} {key}": good / max(1, of)
        for n, rows in runs.items()
        for key, (good, of) in shares(rows).items()
    }
    return found | facts
