"""What a clip shows, measured: `python -m training.measures` trains the measures and tests them.

    camera, speed   DIS optical flow over a quarter second, ten times a clip: its mean and spread on a 6 x 10 grid, and
                    the mean of each; small networks name the move, and its speed, from these 260 numbers
    light           mean colours on a 3 x 4 grid and their spread; a linear classifier
    scene, style    small convolutional networks on the first, middle and last frame; the style's also has the flow

They learn from the renderer's own labels, on renders and on renders that went through the autoencoder, and are
tested on held-out ones after that round trip. They never see a generated clip.
"""

import argparse
import multiprocessing
import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from broll.engine.vae import VAE
from training import run, vae
from training.camera import CAMERAS, SPEEDS, STEADY
from training.clips import rendered
from training.render import latents_path, load_clip, scene, to_uint8
from training.scenes import Scene
from training.styles import STYLES
from training.worlds import LIGHTS, WORLDS

FILE = Path(__file__).parent / "measures.safetensors"
TABLES = {"camera": CAMERAS, "speed": tuple(SPEEDS), "light": LIGHTS, "scene": tuple(WORLDS), "style": STYLES}
REACH, PAIRS = 4, 10  # frames between the two pictures of a flow; flows a clip
GRID = (6, 10)
FLOWS = 2 * 2 * GRID[0] * GRID[1] + 2 * PAIRS
SMALL = (60, 96)  # height and width of what the networks see


@dataclass(frozen=True)
class Features:
    """What is measured of one clip; of many, with a first axis."""

    camera: Tensor  # [260]
    light: Tensor  # [41]
    frames: Tensor  # [3, 3, 60, 96]


def camera_features(clip: Tensor) -> Tensor:
    """[f, 3, h, w] uint8 to 260 numbers, pixels a frame at 160 pixels of width: mean, spread, and each flow's mean."""
    frames = clip.permute(0, 2, 3, 1).numpy()
    scale = 160 / frames.shape[2]
    size = (160, round(frames.shape[1] * scale))
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    starts = np.linspace(0, len(frames) - 1 - REACH, PAIRS).round().astype(int)
    needed = sorted({int(i) + step for i in starts for step in (0, REACH)})
    gray = {i: cv2.resize(cv2.cvtColor(frames[i], cv2.COLOR_RGB2GRAY), size) for i in needed}
    flows = np.stack([flow.calc(gray[i], gray[i + REACH], None) for i in starts]) / REACH
    grid = F.adaptive_avg_pool2d(torch.from_numpy(flows).permute(0, 3, 1, 2), GRID)
    spread = grid.std(0, correction=0)
    return torch.cat([grid.mean(0).flatten(), spread.flatten(), grid.mean((2, 3)).flatten()])


def light_features(clip: Tensor) -> Tensor:
    """[f, 3, h, w] uint8 to the colours of a 3 x 4 grid over four frames, their spread, and saturation."""
    some = clip[np.linspace(0, len(clip) - 1, 4).round().astype(int)].float() / 127.5 - 1
    grid = F.adaptive_avg_pool2d(some, (3, 4)).mean(0)
    saturation = some.amax(1) - some.amin(1)
    return torch.cat([grid.flatten(), some.std((0, 2, 3)), saturation.mean()[None], saturation.std()[None]])


def features(clip: Tensor) -> Features:
    """Of [f, 3, h, w] uint8."""
    some = clip[np.linspace(0, len(clip) - 1, 3).round().astype(int)].float() / 127.5 - 1
    return Features(camera_features(clip), light_features(clip), F.interpolate(some, size=SMALL, mode="area"))


def stack(many: list[Features]) -> Features:
    return Features(*(torch.stack([getattr(f, key) for f in many]) for key in ("camera", "light", "frames")))


def eyes(pooled: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 48)):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.GELU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d((3, 5)), nn.Flatten(), nn.Dropout(0.2), nn.Linear(720, pooled)
    )


def words(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 96), nn.GELU(), nn.Dropout(0.15), nn.Linear(96, outputs))


class Measures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flow = nn.BatchNorm1d(FLOWS)
        self.camera, self.speed = words(FLOWS, len(CAMERAS)), words(FLOWS, len(SPEEDS))
        self.light = nn.Sequential(nn.BatchNorm1d(41), nn.Linear(41, len(LIGHTS)))
        self.scene, self.look = eyes(len(WORLDS)), eyes(32)
        self.style = words(32 + FLOWS, len(STYLES))

    def forward(self, of: Features) -> dict[str, Tensor]:
        """Logits of a batch, by label."""
        flow, frames = self.flow(of.camera), of.frames.flatten(0, 1)
        look = self.look(frames).unflatten(0, (-1, 3)).mean(1)
        return {
            "camera": self.camera(flow),
            "speed": self.speed(flow),
            "light": self.light(of.light),
            "scene": self.scene(frames).unflatten(0, (-1, 3)).mean(1),
            "style": self.style(torch.cat([look, flow], dim=1)),
        }

    @torch.no_grad()
    def names(self, of: Features) -> list[dict[str, str]]:
        """All labels of a batch of clips."""
        found = {key: value.argmax(1).tolist() for key, value in self(of).items()}
        return [{key: TABLES[key][row[i]] for key, row in found.items()} for i in range(len(of.camera))]


def targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """Places of the labels in their tables; -1 where there is none to tell: the speed of a camera that stands."""
    found = {k: torch.tensor([t.index(getattr(s, k)) for s in scenes]) for k, t in TABLES.items()}
    found["speed"][[s.camera in STEADY for s in scenes]] = -1
    return found


@dataclass(frozen=True)
class Examples:
    features: Features
    labels: dict[str, Tensor]

    @classmethod
    def of(cls, seen: list[Features], indices: list[int], seed: int) -> "Examples":
        return cls(stack(seen), targets([scene(i, seed) for i in indices]))

    def numbers(self) -> dict[str, Tensor]:
        """What is measured of the flow [n, 260] and the light [n, 41], and every label [n]."""
        return {"flow": self.features.camera, "colours": self.features.light, **self.labels}

    def to(self, device: str) -> "Examples":
        of = self.features
        moved = Features(of.camera.to(device), of.light.to(device), of.frames.to(device))
        return Examples(moved, {k: v.to(device) for k, v in self.labels.items()})


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def in_processes(clips: Iterable[Tensor]) -> Iterator[Features]:
    """Features of clips [f, 3, h, w] uint8, in order, on all cores."""
    workers = len(os.sched_getaffinity(0))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _one_thread) as pool:
        waiting = []
        for clip in clips:
            waiting.append(pool.submit(_features, np.ascontiguousarray(clip.cpu().numpy())))
            if len(waiting) > 4 * workers:  # no more clips in memory than that
                yield unpack(waiting.pop(0).result())
        yield from (unpack(future.result()) for future in waiting)


def _features(clip: np.ndarray) -> list[np.ndarray]:
    of = features(torch.from_numpy(clip))
    return [part.numpy() for part in (of.camera, of.light, of.frames)]


def unpack(parts: list[np.ndarray]) -> Features:
    return Features(*map(torch.from_numpy, parts))


@torch.no_grad()
def decoded(latents: Iterable[Tensor], model: VAE, device: str) -> Iterator[Tensor]:
    """Clips [f, 3, h, w] uint8 on the CPU from latents [c, f, h, w]; several at once on a GPU."""
    mean, std = model._statistics()
    every = iter(latents)
    while batch := list(islice(every, 1 if device == "cpu" else 8)):
        with run.autocast(device):
            video = model.pixels(torch.stack(batch).float().to(device) * std + mean, {})
        yield from to_uint8(video.float().clamp(-1, 1)).transpose(1, 2).cpu()


def accuracy(model: Measures, examples: Examples) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        logits = model(examples.features)
    right = {k: (v.argmax(1) == examples.labels[k])[examples.labels[k] >= 0] for k, v in logits.items()}
    return {k: float(v.float().mean()) for k, v in right.items()}


def fit(model: Measures, examples: Examples, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    of, count = examples.features, len(examples.features.camera)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (count // 64 + 1))
    for _ in range(epochs):
        model.train()
        for picked in torch.randperm(count).tensor_split(count // 64 + 1):  # alike: a norm needs two
            camera = of.camera[picked]
            camera = camera * (1 + 0.1 * torch.randn_like(camera[:, :1])) + 0.03 * torch.randn_like(camera)
            logits = model(Features(camera, of.light[picked], of.frames[picked]))
            labels = {k: v[picked] for k, v in examples.labels.items()}
            value = sum(F.cross_entropy(v, labels[k], ignore_index=-1) for k, v in logits.items())
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[union-attr]
            optimizer.step()
            schedule.step()


def train(numbers: dict[str, Any], device: str = "cpu", file: Path = FILE) -> None:
    torch.manual_seed(numbers["seed"])
    own, folder, seed = numbers["measures"], run.work_folder(numbers), numbers["seed"]
    encoded = [i for i in rendered(folder) if latents_path(folder, i).exists()][
        : own["plain"] + own["held_out"]
    ]
    random.Random(seed).shuffle(encoded)
    test, plain = encoded[: own["held_out"]], encoded[own["held_out"] : own["held_out"] + own["plain"]]
    taught = plain[: own["through"]]
    decoder = vae.load(numbers).to(device)

    def through(indices: list[int]) -> Iterator[Tensor]:
        latents = (torch.load(latents_path(folder, i), weights_only=True)[0] for i in indices)
        return decoded(latents, decoder, device)

    clips = chain((load_clip(folder, i) for i in plain), through(taught), through(test))
    seen, known = list(in_processes(clips)), len(plain) + len(taught)
    examples = Examples.of(seen[:known], plain + taught, seed)
    judged = Examples.of(seen[known:], test, seed)
    # Of the flow and the light alone: small, and enough to try other classes without rendering again.
    run.save(folder / "measures.pt", {"taught": examples.numbers(), "judged": judged.numbers()})
    model = Measures().to(device)
    fit(model, examples.to(device), own["epochs"])
    model.cpu()
    found = accuracy(model, judged)
    save_file(model.state_dict(), file, {k: str(v) for k, v in found.items()})
    run.Log(folder / "measures.jsonl")(held_out=len(test), taught=len(examples.features.camera), **found)


def load(file: Path = FILE) -> Measures:
    model = Measures()
    model.load_state_dict(load_file(file))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(run.recipe(args.recipe), args.device, args.out)


if __name__ == "__main__":
    main()
