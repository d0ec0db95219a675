"""Render the clips that everything is trained on: `python -m training.render`.

One .npy of uint8 [frames, 3, height, width] a clip; the scene of clip i is drawn from the recipe's seed
and i alone, so labels and captions need no file.
"""

import argparse
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import run
from training.scenes import Scene, render, sample


def scene(index: int, seed: int) -> Scene:
    return sample(random.Random(f"{seed}/{index}"))


def clip_path(folder: Path, index: int) -> Path:
    return folder / "clips" / f"{index:05d}.npy"


def load_clip(folder: Path, index: int, frames: slice = slice(None)) -> torch.Tensor:
    """[f, 3, h, w] uint8; only the frames asked for are read."""
    return torch.from_numpy(np.load(clip_path(folder, index), mmap_mode="r")[frames].copy())


def to_float(clip: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]"""
    return clip.float() / 127.5 - 1


def to_uint8(clip: torch.Tensor) -> torch.Tensor:
    return ((clip + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def render_all(numbers: dict[str, Any], device: str = "cpu") -> None:
    folder = run.work_folder(numbers)
    (folder / "clips").mkdir(exist_ok=True)
    shape = {key: numbers["clip"][key] for key in ("frames", "height", "width", "fps")}
    for index in range(numbers["render"]["count"]):
        path = clip_path(folder, index)
        if path.exists():
            continue
        clip = to_uint8(render(scene(index, numbers["seed"]), **shape, device=device)).cpu().numpy()
        with path.with_suffix(".tmp").open("wb") as file:
            np.save(file, clip)
        os.replace(path.with_suffix(".tmp"), path)
        if index % 100 == 0:
            print(f"clip {index}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    render_all(run.recipe(args.recipe), args.device)


if __name__ == "__main__":
    main()
