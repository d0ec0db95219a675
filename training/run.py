"""A training run's folder: recipe, log, checkpoints that survive being killed, and the moving average."""

import argparse
import functools
import json
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from broll.wiring import fast_bf16

ROOT = Path(__file__).resolve().parent.parent


def recipe(path: str | Path | None = None) -> dict[str, Any]:
    """The numbers of `recipe.toml`; of another file of the same form those that it holds, and the rest of that."""
    whole = tomllib.loads((ROOT / "training" / "recipe.toml").read_text())
    try:
        return over(whole, tomllib.loads(Path(path).read_text())) if path else whole
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} is no recipe: {error}") from None


def over(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The table with these changes in it, and in the tables within."""
    within = {
        k: over(table[k], v)
        for k, v in changes.items()
        if isinstance(v, dict) and isinstance(table.get(k), dict)
    }
    return table | changes | within


def work_folder(numbers: dict[str, Any]) -> Path:
    folder = ROOT / numbers["work"]  # an absolute path in the recipe stays what it is
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill leaves either the old or the new one, never half of it."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=True) if path.exists() else None


Work = Callable[[dict[str, Any], str], object]


def command(doc: str | None, work: Work, **instead: Work) -> None:
    """The command line of one stage: `work` gets the recipe and the device; so does what a flag asks for instead."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    for flag in instead:
        parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for flag, other in instead.items():
        work = other if getattr(args, flag) else work
    work(recipe(args.recipe), args.device)


@functools.cache
def dtype(device: str) -> torch.dtype:
    """What to multiply in: bf16, but fp32 on a CPU that is slow at it (0.95 against 117 GFLOP/s on AVX2 alone)."""
    return torch.bfloat16 if device != "cpu" or fast_bf16() else torch.float32


def autocast(device: str) -> torch.autocast:
    low = dtype(device)
    return torch.autocast(device, low, enabled=low != torch.float32)


class Log:
    """One JSON object a line, to the file and to the terminal."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, **values: Any) -> None:
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()})
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


class MovingAverage:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))  # forgets the start quickly
        parameters = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(list(self.values.values()), parameters, 1 - decay)


class Clock:
    """Minutes of training so far, across restarts, and the cosine that they drive."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.minutes, self._before = minutes, spent
        self.start()

    def start(self) -> None:
        """Now: what was done since this clock was made does not count."""
        self._start = time.monotonic() - 60 * self._before

    def end_by(self, moment: float) -> None:
        """Not later than this, by time.monotonic(): the cosine comes to its end then."""
        self.minutes = min(self.minutes, self.spent + (moment - time.monotonic()) / 60)

    @property
    def spent(self) -> float:
        return (time.monotonic() - self._start) / 60

    def rate(self, step: int, warmup: int = 100) -> float:
        """Learning-rate factor: linear warm-up in steps, then a cosine over the minutes to 2 %."""
        part = min(self.spent / self.minutes, 1.0)
        cosine = 0.02 + 0.98 * (0.5 + 0.5 * float(torch.cos(torch.tensor(part * torch.pi))))
        return min(1.0, (step + 1) / warmup) * cosine

    def steps(self, start: int) -> Iterator[int]:
        step = start
        while self.spent < self.minutes:
            yield step
            step += 1
