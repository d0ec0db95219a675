"""The whole recipe, one stage after the other: `python -m training.all --device cuda`.

Half of the CPU's cores render, from the first stage on until the student is taught; more of them slow the training
(training/LOG.md). What each stage leaves is exported at once, so that a run that is cut short is not
lost: call it again, and it goes on. Where the machine is lent for so many minutes, say so (`--within`): the
transformer, which takes whatever it gets, ends so early that the rest still fits. The text encoder comes first and
from captions alone (`python -m training.text`), on any CPU: a run that has one already (runs/nano/text.pt) does not
train it again. `--until` and `--after` take a part of it.
"""

import argparse
import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training import evaluate, export, measures, render, run, student, text, transformer, vae

EXPORT = 0.4  # minutes kept for it; 7.5 s were measured
Stage = tuple[str, Callable[[], object]]


def stages(
    numbers: dict[str, Any], device: str, out: Path, count: int, recipe: str | None, end: float = math.inf
) -> list[Stage]:
    """Name and work of each stage. `end`: by time.monotonic(), when the transformer is done and exported."""
    model = out / "nano" / "broll_nano" / "model"
    measured = out / "training" / measures.FILE.name if numbers["measures"]["anew"] else measures.FILE
    measured.parent.mkdir(parents=True, exist_ok=True)
    minutes = numbers["minutes"][device]
    trainer: list[transformer.Trainer] = []

    def fill() -> None:
        with render.beside(recipe, workers(), 60 * minutes["fill"]) as rendering:
            trainer.append(transformer.Trainer(numbers, device))
            trainer[0].warm()
            for process in rendering:
                process.wait()

    def learn() -> None:
        transformer.train(numbers, device, trainer[0] if trainer else None, end - 60 * EXPORT)
        export.export(numbers, model)

    def teach() -> None:
        if numbers["measures"]["anew"]:
            taught(numbers, device, recipe, measured)
        else:
            student.train(numbers, device)
        export.export(numbers, model)

    def judge() -> None:
        keep = run.work_folder(numbers) / "judged"
        runs, facts = evaluate.evaluate(model, device, count, 1, measured, keep)
        found = evaluate.report(runs, facts, out, count, 1, device, measured)
        (out / "report.json").write_text(json.dumps(found, indent=1))
        print(json.dumps(found), flush=True)

    return [
        ("fill", fill),
        ("text", lambda: text_once(numbers)),
        ("vae", lambda: vae.train(numbers, device)),
        ("decoder", lambda: vae.polish(numbers, device)),
        ("transformer", learn),
        ("student", teach),
        ("evaluate", judge),
    ]


def text_once(numbers: dict[str, Any]) -> None:
    if not (run.work_folder(numbers) / "text.pt").exists():
        text.train(numbers)


def taught(numbers: dict[str, Any], device: str, recipe: str | None, measured: Path) -> None:
    """The student, and beside it the measures, which keep the cores busy."""
    command = [sys.executable, "-m", "training.measures", "--device", device, "--out", str(measured)]
    measuring = subprocess.Popen([*command, *(("--recipe", recipe) if recipe else ())], cwd=run.ROOT)  # noqa: S603
    student.train(numbers, device)
    if measuring.wait():
        raise SystemExit("training.measures failed")


def pack(out: Path, folder: Path, piece: int = 15 * 2**20) -> None:
    """What a run leaves under `out`, as pieces of one tar: some machines give back small files only."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for path in (out / "nano", out / "docs", out / "training" / measures.FILE.name, out / "report.json"):
            if path.exists():
                tar.add(path, path.name)
    for place, start in enumerate(range(0, whole.tell(), piece)):
        (folder / f"nano.tar.{place}").write_bytes(whole.getbuffer()[start : start + piece])


def part(whole: list[Stage], after: str | None, until: str) -> list[Stage]:
    """The stages behind one, up to another."""
    names = [name for name, _ in whole]
    for name in (after, until):
        if name is not None and name not in names:
            raise SystemExit(f"no stage {name}: they are {', '.join(names)}")
    return whole[0 if after is None else names.index(after) + 1 : names.index(until) + 1]


def workers() -> int:
    """Cores that render beside."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=run.ROOT, help="folder that nano/ and docs/ are written under"
    )
    parser.add_argument("--count", type=int, default=300, help="prompts of the evaluation")
    parser.add_argument("--pack", type=Path, help="also leave the results here, in pieces of 15 MB")
    parser.add_argument("--within", type=float, default=math.inf, help="minutes, up to the taught student")
    parser.add_argument("--until", default="evaluate", help="the last stage")
    parser.add_argument("--after", help="begin behind this stage")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    numbers, begin = run.recipe(args.recipe), time.monotonic()
    log = run.Log(run.work_folder(numbers) / "all.jsonl")
    teaching = EXPORT + numbers["minutes"][args.device]["student"] if args.until != "transformer" else 0.0
    end = begin + 60 * (args.within - teaching)
    whole = stages(numbers, args.device, args.out, args.count, args.recipe, end)
    wanted = part(whole, args.after, args.until)
    with contextlib.ExitStack() as rendering:
        for name, work in wanted:
            if name == "student":
                rendering.close()  # the measures need the cores
            work()
            if name == "fill":
                rendering.enter_context(render.beside(args.recipe, workers()))
            log(stage=name, minutes=(time.monotonic() - begin) / 60)
            if args.pack and name in ("transformer", "student", "evaluate"):
                pack(args.out, args.pack)


if __name__ == "__main__":
    main()
