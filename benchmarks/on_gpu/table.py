"""The file that a run left, as tables for docs/performance.md."""

import json
from pathlib import Path
from typing import Any

NUMBERS = {  # title: (key, how it is written)
    "seconds": ("step_s", "{:.2f}"),
    "over the roof": ("over_roof", "{:.2f}"),
    "share of peak": ("share_of_peak", "{:.0%}"),
    "ms": ("ms", "{:.2f}"),
    "apart, ms": ("apart_ms", "{:.2f}"),
    "dense, ms": ("dense_ms", "{:.2f}"),
    "copying, ms": ("copy_ms", "{:.2f}"),
    "first call, ms": ("first_ms", "{:.0f}"),
    "pairs": ("pairs", "{:.0%}"),
    "gain": ("gain", "{:.2f}"),
    "TFLOP/s": ("tflops", "{:.0f}"),
    "GB/s": ("gb_per_s", "{:.0f}"),
    "whole, s": ("seconds", "{:.2f}"),
    "error": ("error", "{:.1e}"),
    "same bits": ("same_bits", "{}"),
    "peak memory, GB": ("peak_gb", "{:.1f}"),
    "run": ("blocks", "{}"),
    "latents": ("latents", "{}"),
}


def markdown(file: Path) -> str:
    known = json.loads(file.read_text())
    parts = list(dict.fromkeys(row["part"] for row in known["rows"]))
    about = ", ".join(f"{key} {value}" for key, value in known["machine"].items())
    tables = [of_part(part, [row for row in known["rows"] if row["part"] == part]) for part in parts]
    return "\n\n".join([about, *filter(None, tables)])


def of_part(part: str, rows: list[dict[str, Any]]) -> str:
    rows = [row for row in rows if any(key in row for key, _ in NUMBERS.values())]
    titles = [title for title, (key, _) in NUMBERS.items() if any(key in row for row in rows)]
    if not rows:
        return ""
    lines = [f"| {part} | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for row in rows:
        cells = [NUMBERS[t][1].format(row[NUMBERS[t][0]]) if NUMBERS[t][0] in row else "" for t in titles]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
