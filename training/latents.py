"""Encode the rendered clips with the trained autoencoder: `python -m training.latents`.

One file a clip, so that it can stop, go on, and run beside the renderer. The autoencoder is causal: the first
k latents of a clip are the latents of its first 4k - 3 frames, so one encoding serves every length.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import run, vae
from training.render import load_clip, to_float


def path(folder: Path, index: int) -> Path:
    return folder / "latents" / f"{index:05d}.pt"


@torch.no_grad()
def encode_all(numbers: dict[str, Any], device: str = "cpu") -> None:
    folder = run.work_folder(numbers)
    (folder / "latents").mkdir(exist_ok=True)
    model = vae.load(numbers).to(device)
    mean, std = model._statistics()
    for index in vae.rendered(folder):
        if path(folder, index).exists():
            continue
        clip = to_float(load_clip(folder, index)).transpose(0, 1)[None].to(device)
        with run.autocast(device):
            mu, _ = model.moments(clip, {})
        z = ((mu.float() - mean) / std)[0].half().cpu().contiguous()
        torch.save(z, path(folder, index).with_suffix(".tmp"))
        os.replace(path(folder, index).with_suffix(".tmp"), path(folder, index))
        if index % 100 == 0:
            print(f"latents of clip {index}", flush=True)


def load_all(folder: Path) -> tuple[list[int], Tensor]:
    """Indices of the clips and their latents [clips, c, f, h, w], normalised, fp16."""
    indices = sorted(int(p.stem) for p in (folder / "latents").glob("*.pt"))
    return indices, torch.stack([torch.load(path(folder, i), weights_only=True) for i in indices])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encode_all(run.recipe(args.recipe), args.device)


if __name__ == "__main__":
    main()
