"""Render the clips that everything is trained on: `python -m training.render`.

One .npy of uint8 [frames, 3, height, width] a clip. The scene of clip i is
drawn from the recipe's seed and i alone, so labels and captions need no file. Several processes share the work by
--first and --stride.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import run
from training.scenes import Scene, render, sample


def scene(index: int, seed: int) -> Scene:
    return sample(random.Random(f"{seed}/{index}"))


def wanted(numbers: dict[str, Any], index: int) -> bool:
    """Whether clip `index` is rendered: moves that the recipe gives a smaller share are left out more often."""
    share, seed = numbers["render"]["share"], numbers["seed"]
    chance = share.get(scene(index, seed).camera, 1.0) / max(1.0, *share.values())
    return random.Random(f"share/{seed}/{index}").random() < chance


def clip_path(folder: Path, index: int) -> Path:
    return folder / "clips" / f"{index:05d}.npy"


def latents_path(folder: Path, index: int) -> Path:
    return folder / "latents" / f"{index:05d}.pt"


def load_clip(folder: Path, index: int, frames: slice = slice(None)) -> torch.Tensor:
    """[f, 3, h, w] uint8; only the frames asked for are read."""
    return torch.from_numpy(np.load(clip_path(folder, index), mmap_mode="r")[frames].copy())


def to_float(clip: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]"""
    return clip.float() / 127.5 - 1


def to_uint8(clip: torch.Tensor) -> torch.Tensor:
    return ((clip + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def one(numbers: dict[str, Any], index: int, device: str = "cpu") -> torch.Tensor:
    """Clip `index` of a run: [f, 3, h, w] uint8 on the device."""
    shape = {key: numbers["clip"][key] for key in ("frames", "height", "width", "fps")}
    return to_uint8(render(scene(index, numbers["seed"]), **shape, device=device))


def keep(folder: Path, index: int, clip: torch.Tensor) -> None:
    path = clip_path(folder, index)
    with path.with_suffix(f".{os.getpid()}").open("wb") as file:
        np.save(file, clip.cpu().numpy())
    os.replace(path.with_suffix(f".{os.getpid()}"), path)


def render_all(
    numbers: dict[str, Any],
    device: str = "cpu",
    first: int = 0,
    stride: int = 1,
    seconds: float = float("inf"),
) -> None:
    """Clips first, first + stride, ... that are neither rendered nor encoded yet, for so many seconds."""
    folder, end = run.work_folder(numbers), time.monotonic() + seconds
    (folder / "clips").mkdir(exist_ok=True)
    for count, index in enumerate(range(first, numbers["render"]["count"], stride)):
        if clip_path(folder, index).exists() or latents_path(folder, index).exists():
            continue
        if not wanted(numbers, index):
            continue
        while sum(1 for _ in (folder / "clips").iterdir()) >= numbers["render"]["ahead"]:
            time.sleep(0.5)
            if time.monotonic() > end or os.getppid() == 1:  # who started it is gone
                return
        if time.monotonic() > end:
            return
        keep(folder, index, one(numbers, index, device))
        if count % 100 == 0:
            print(f"clip {index}", flush=True)


@contextmanager
def beside(
    recipe: str | None, workers: int, seconds: float | None = None
) -> Iterator[list[subprocess.Popen]]:
    """Processes of one thread each that render while the block runs; at most for so many seconds."""
    command = [sys.executable, "-m", "training.render", "--stride", str(workers)]
    command += ["--recipe", recipe] if recipe else []
    command += ["--seconds", str(seconds)] if seconds is not None else []
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*command, "--first", str(k)], stdout=subprocess.DEVNULL, env=alone, cwd=run.ROOT)  # noqa: S603
        for k in range(workers)
    ]  # fmt: skip
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.nice(15)  # what it renders for must not wait for it
    render_all(run.recipe(args.recipe), args.device, args.first, args.stride, args.seconds)


if __name__ == "__main__":
    main()
