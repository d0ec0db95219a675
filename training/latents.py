"""Encode the rendered clips with the trained autoencoder: `python -m training.latents`.

One file a clip, of the clip and its mirror image, so that it can stop, go on, and run beside the renderer. The
autoencoder is causal: the first k latents of a clip are the latents of its first 4k - 3 frames, so one encoding
serves every length. An encoded clip's pixels are deleted, but for the few that the preview is fitted to.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from broll.engine.vae import VAE
from training import run, vae
from training.clips import rendered
from training.render import clip_path, latents_path, load_clip, to_float


@torch.no_grad()
def encode(model: VAE, clips: Tensor) -> Tensor:
    """[b, f, 3, h, w] uint8 to normalised latents [b, c, f, h, w], fp16."""
    mean, std = model._statistics()
    video = to_float(clips).transpose(1, 2)
    with run.autocast(video.device.type):
        mu, _ = model.moments(video, {})
    return ((mu.float() - mean) / std).half()


def with_mirrored(model: VAE, clips: Tensor) -> Tensor:
    """[b, 2, c, f, h, w]: of clips and mirror images."""
    return encode(model, torch.stack([clips, clips.flip(4)], dim=1).flatten(0, 1)).unflatten(0, (-1, 2))


class Latents:
    """All latents of a run, on a device. `grow` encodes what was rendered since."""

    def __init__(self, numbers: dict[str, Any], device: str, model: VAE | None = None) -> None:
        self.folder, self.device, self.model = run.work_folder(numbers), device, model
        self.kept = numbers["render"]["kept"]
        (self.folder / "latents").mkdir(exist_ok=True)
        self.indices: list[int] = []
        self._parts: list[Tensor] = []
        self._known: set[int] = set()
        self._helpers = ThreadPoolExecutor(4)
        self._reading: dict[int, Future[Tensor]] = {}
        self._writing: list[Future[None]] = []
        self.reload()

    def __len__(self) -> int:
        return len(self.indices)

    def pick(self, places: list[int], mirrored: list[bool], frames: int) -> Tensor:
        """[b, c, frames, h, w] in fp32."""
        chosen = [self._parts[p][int(m), :, :frames] for p, m in zip(places, mirrored, strict=True)]
        return torch.stack(chosen).float()

    def reload(self) -> None:
        """Take in the files that another process has written."""
        for path in sorted((self.folder / "latents").glob("*.pt")):
            if int(path.stem) not in self._known:
                self._take(int(path.stem), torch.load(path, weights_only=True).to(self.device))

    def grow(self, at_most: int, *, wait: bool = True) -> int:
        """Encode up to so many waiting clips, and say how many there were; without `wait`, of those already read."""
        assert self.model is not None
        for index in rendered(self.folder):
            if len(self._reading) >= at_most:
                break
            if index not in self._known and index not in self._reading:
                self._reading[index] = self._helpers.submit(self._read, index)
        ready = [i for i, clip in self._reading.items() if wait or clip.done()][:at_most]
        size = 1 if self.device == "cpu" else 32
        for start in range(0, len(ready), size):
            part = ready[start : start + size]
            clips = torch.stack([self._reading.pop(i).result() for i in part])
            for index, z in zip(part, with_mirrored(self.model, clips), strict=True):
                self._take(index, z)
                self._writing.append(self._helpers.submit(self._keep, index, z))
        self._writing = [one for one in self._writing if not one.done() or one.result()]
        return len(ready)

    def finish(self) -> None:
        """Wait until all is written."""
        for one in self._writing:
            one.result()

    def _read(self, index: int) -> Tensor:
        return load_clip(self.folder, index).to(self.device)

    def _keep(self, index: int, z: Tensor) -> None:
        save(self.folder, index, z)
        if index >= self.kept:
            clip_path(self.folder, index).unlink()

    def _take(self, index: int, z: Tensor) -> None:
        self._known.add(index)
        self.indices.append(index)
        self._parts.append(z)


def save(folder: Path, index: int, z: Tensor) -> None:
    path = latents_path(folder, index)
    torch.save(z.cpu().contiguous().clone(), path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def encode_all(numbers: dict[str, Any], device: str = "cpu") -> None:
    """Everything that is rendered."""
    model = vae.load(numbers).to(device)
    pool = Latents(numbers, device, model)
    while pool.grow(64):
        print(f"{len(pool)} clips encoded", flush=True)
    pool.finish()


if __name__ == "__main__":
    run.command(__doc__, encode_all)
