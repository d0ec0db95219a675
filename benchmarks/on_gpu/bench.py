"""What all parts share: the device, the clock, the budget, and rows that are kept the moment they are known.

One measurement is run if its seconds are left; whatever goes wrong becomes its row, and the next one runs.
"""

import gc
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from broll.engine.compiled import Compiler
from broll.engine.config import PUBLISHED, TransformerConfig
from broll.engine.shapes import Grid, latent_grid, token_grid

SIZES = {"480p": Grid(81, 480, 832), "720p": Grid(81, 720, 1280)}
TINY = {"480p": Grid(17, 16, 32), "720p": Grid(17, 32, 32)}
# Operations a second that the data sheets give: dense bf16 and fp8. https://www.nvidia.com/en-us/data-center/h200/
PEAK = {"bf16": 989e12, "fp8": 1979e12}
# Before anything is measured: to guess what will fit into the budget. bf16's is of KINDS.md, the others are guesses.
GUESS = {"bf16": 780e12, "fp8": 1200e12, "attention": 550e12, "convolution": 200e12, "fp32": 40e12}
Figures = dict[str, Any]


class Bench:
    def __init__(
        self,
        device: torch.device,
        *,
        seconds: float,
        began: float,
        json: Path | None,
        tiny: bool,
        compiled: bool,
        rows: re.Pattern[str] = re.compile(""),
    ) -> None:
        self.device, self.tiny, self.compiled = device, tiny, compiled
        self.rates: dict[
            str, float
        ] = {}  # operations a second, measured; a key is a kind, or a kind and a size
        self.best: dict[str, str] = {}  # size -> the fastest backend of attention there
        self.rows: list[Figures] = []
        self.known: dict[str, Figures] = {}  # by the name of the row
        self.part = ""
        self.compiler: Compiler | None = None  # made by the first part that wants it
        self._wanted = rows
        self._until, self._began, self._json = began + seconds, began, json

    # --- rows ---------------------------------------------------------------------------------------------

    @property
    def left(self) -> float:
        return self._until - time.time()

    def attempt(self, name: str, seconds: float, measure: Callable[[], Figures]) -> Figures | None:
        """Its figures; None if not wanted, skipped or failed. `seconds`: what it will take on a large GPU, about."""
        if not self._wanted.search(name):
            return None
        if self.left < (0 if self.tiny else seconds):
            self.add(name, {"skipped": f"takes about {seconds:.0f} s; {max(0, self.left):.0f} s are left"})
            return None
        begin = time.time()
        self.forget()
        try:
            figures = measure()
        except Exception as error:  # noqa: BLE001  one kernel that is not there must not cost all other rows
            lines = (str(error) or type(error).__name__).splitlines()
            self.add(
                name, {"failed": f"{type(error).__name__}: {lines[0][:300]}", "took_s": time.time() - begin}
            )
            return None
        if self.device.type == "cuda":
            figures = figures | {"peak_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}
        self.known[name] = figures
        self.add(name, figures | {"took_s": time.time() - begin})
        return figures

    def add(self, name: str, figures: Figures) -> None:
        row = {"part": self.part, "name": name, "elapsed_s": time.time() - self._began, **figures}
        self.rows.append(row)
        print(line(row), flush=True)
        if self._json:
            new = self._json.with_name(self._json.name + ".new")
            new.write_text(json.dumps({"machine": machine(self.device), "rows": self.rows}, indent=1))
            os.replace(new, self._json)

    def forget(self) -> None:
        """Memory of what is held no more goes back; a transformer refers to itself, so it waits for the collector."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    # --- the clock ----------------------------------------------------------------------------------------

    def mark(self) -> "Mark":
        return Mark(self.device)

    def timed(self, call: Callable[[], object], repeats: int = 3, warm: int = 1) -> list[float]:
        for _ in range(warm):
            call()
        marks = [self.mark()]
        for _ in range(1 if self.tiny else repeats):
            call()
            marks.append(self.mark())
        return between(marks)

    def kernels(self, call: Callable[[], object], most: int = 14) -> Figures:
        """What the device did in a call, and for how many milliseconds in all."""
        there = torch.profiler.ProfilerActivity
        activity = there.CUDA if self.device.type == "cuda" else there.CPU
        with torch.profiler.profile(activities=[activity]) as seen:
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        own = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        times = sorted(
            ((getattr(event, own) / 1e3, event) for event in seen.key_averages()), key=lambda x: -x[0]
        )
        listed = {f"{event.count} x {event.key[:90]}": ms for ms, event in times[:most] if ms}
        return {"ms": sum(ms for ms, _ in times), "kernels": listed}

    # --- sizes and what they cost -------------------------------------------------------------------------

    def pixels(self, size: str) -> Grid:
        return (TINY if self.tiny else SIZES)[size]

    def latent(self, size: str) -> Grid:
        return latent_grid(self.pixels(size), 8)

    def tokens(self, size: str) -> Grid:
        return token_grid(self.latent(size), (1, 2, 2))

    def transformer(self, name: str) -> TransformerConfig:
        if not self.tiny:
            return PUBLISHED[name].transformer
        return TransformerConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=3, text_dim=64, freq_dim=32)

    def rate(self, kind: str, size: str = "") -> float:
        return self.rates.get(f"{kind} {size}".strip(), GUESS[kind])


class Mark:
    """A moment in the device's own queue."""

    def __init__(self, device: torch.device) -> None:
        self.time = 0.0
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        else:
            self.time = time.perf_counter()

    def since(self, earlier: "Mark") -> float:
        """Seconds; it waits until this moment has come."""
        if self.event is None or earlier.event is None:
            return self.time - earlier.time
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1e3


def between(marks: list[Mark]) -> list[float]:
    return [later.since(earlier) for earlier, later in zip(marks, marks[1:], strict=False)]


def spread(times: list[float], unit: float = 1.0) -> Figures:
    return {
        "median": median(times) * unit,
        "least": min(times) * unit,
        "most": max(times) * unit,
        "n": len(times),
    }


def relative(out: Tensor, truth: Tensor) -> float:
    """The error of all numbers together, by the size of the truth; NaN stays NaN."""
    truth = truth.double()
    return float((out.detach().cpu().double() - truth).norm() / truth.norm())


def machine(device: torch.device) -> Figures:
    known: Figures = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": str(device)}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        known |= {
            "gpu": about.name,
            "gpu_gb": about.total_memory / 1e9,
            "processors": about.multi_processor_count,
        }
        known |= {"cudnn": torch.backends.cudnn.version(), "capability": f"{about.major}.{about.minor}"}
    return known


def line(row: Figures) -> str:
    figures = {k: v for k, v in row.items() if k not in ("part", "name", "elapsed_s")}
    told = "  ".join(f"{key} {shown(value)}" for key, value in figures.items())
    return f"[{row['elapsed_s']:6.1f} s] {row['part']:9} {row['name']:44} {told}"


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
