"""What a clip shows, measured: `python -m training.measures` trains the measures and tests them.

    camera, speed   a small convolutional network over each flow on its grid, and over the ten in time; beside it the
                    mean and spread of the flows, and how the pictures look
    light           mean colours on a 3 x 4 grid and their spread, and how the pictures look
    scene, style    small convolutional networks on four frames; the style's also sees the flow

They learn from the renderer's own labels, on renders and on renders that went through the autoencoder, and are
tested on held-out ones after that round trip. They never see a generated clip.
"""

import argparse
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from broll.engine.vae import VAE
from training import run, vae
from training.camera import CAMERAS, SPEEDS, STEADY
from training.features import (
    FLOW_WIDTH,
    GRID,
    PAIRS,
    PICTURES,
    Arrays,
    Features,
    in_processes,
    needed,
    on_all_cores,
    seen,
    stack,
)
from training.render import latents_path, scene, to_uint8
from training.scenes import Scene, mirrored, render, sample
from training.styles import STYLES
from training.worlds import LIGHTS, WORLDS

FILE = Path(__file__).parent / "measures.safetensors"
TABLES = {"camera": CAMERAS, "speed": tuple(SPEEDS), "light": LIGHTS, "scene": tuple(WORLDS), "style": STYLES}
COARSE = (5, 8)  # the grid of the flows' mean and spread
STATISTICS = 2 * 2 * COARSE[0] * COARSE[1] + 2 * PAIRS
COLOURS = 3 * 3 * 4 + 3 + 2
SEEN, MOVED = 64, 96  # numbers that tell how it looks, and how it moves


def eyes(outputs: int) -> nn.Sequential:
    """One frame [b, 3, 60, 96] to numbers."""
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 48)):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.GELU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d((3, 5)), nn.Flatten(), nn.Dropout(0.2), nn.Linear(720, outputs)
    )


def words(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, outputs))


class Motion(nn.Module):
    """Flows [b, 10, 2, 10, 16] to numbers: each by itself, with its places, then all in time."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b, stride in ((4, 32, 1), (32, 48, 2), (48, 64, 2)):
            layers += [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.GELU()]
        self.each = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 3 * 4, MOVED))
        self.time = nn.Sequential(nn.Conv1d(MOVED, MOVED, 3, padding=1), nn.BatchNorm1d(MOVED), nn.GELU())
        self.all = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * MOVED, MOVED))
        rows, columns = (torch.linspace(-1, 1, n) for n in GRID)
        self.register_buffer("places", torch.stack(torch.meshgrid(rows, columns, indexing="ij")), False)

    def forward(self, flow: Tensor) -> Tensor:
        batch, pairs = flow.shape[:2]
        even = flow.sign() * (2 * flow.abs()).log1p()  # slow moves are told apart by small differences
        places = self.get_buffer("places").expand(batch * pairs, -1, -1, -1)
        each = self.each(torch.cat([even.flatten(0, 1), places], 1)).unflatten(0, (batch, pairs))
        course = self.time(each.transpose(1, 2))
        return self.all(torch.cat([course.mean(2), course.std(2)], 1))


def statistics(flow: Tensor) -> Tensor:
    """[b, 10, 2, 10, 16] to mean and spread over the clip on a grid of 5 x 8, and each flow's mean."""
    coarse = F.adaptive_avg_pool2d(flow.flatten(0, 1), COARSE).unflatten(0, flow.shape[:2])
    spread = coarse.std(1, correction=0)
    return torch.cat([coarse.mean(1).flatten(1), spread.flatten(1), flow.mean((3, 4)).flatten(1)], 1)


def colours(frames: Tensor) -> Tensor:
    """[b, 4, 3, 60, 96] in [-1, 1] to the colours of a 3 x 4 grid over all frames, their spread, and saturation."""
    grid = F.adaptive_avg_pool2d(frames.flatten(0, 1), (3, 4)).unflatten(0, frames.shape[:2]).mean(1)
    saturation = (frames.amax(2) - frames.amin(2)).flatten(1)
    vivid = torch.stack([saturation.mean(1), saturation.std(1)], 1)
    return torch.cat([grid.flatten(1), frames.std((1, 3, 4)), vivid], 1)


class Measures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scene, self.look, self.motion = eyes(len(WORLDS)), eyes(SEEN), Motion()
        self.flow, self.colours = nn.BatchNorm1d(STATISTICS), nn.BatchNorm1d(COLOURS)
        moving = SEEN + MOVED + STATISTICS
        self.camera, self.speed = words(moving, len(CAMERAS)), words(moving, len(SPEEDS))
        self.light, self.style = words(SEEN + COLOURS, len(LIGHTS)), words(moving + COLOURS, len(STYLES))

    def forward(self, of: Features) -> dict[str, Tensor]:
        """Logits of a batch, by label."""
        flow, frames = of.flow.float(), of.frames.float() / 127.5 - 1
        each, shape = frames.flatten(0, 1), frames.shape[:2]
        look, tint = self.look(each).unflatten(0, shape).mean(1), self.colours(colours(frames))
        moves = torch.cat([look, self.motion(flow), self.flow(statistics(flow))], 1)
        return {
            "camera": self.camera(moves),
            "speed": self.speed(moves),
            "light": self.light(torch.cat([look, tint], 1)),
            "scene": self.scene(each).unflatten(0, shape).mean(1),
            "style": self.style(torch.cat([moves, tint], 1)),
        }

    @torch.no_grad()
    def names(self, of: Features) -> list[dict[str, str]]:
        """All labels of a batch of clips."""
        found = {key: value.argmax(1).tolist() for key, value in self(of).items()}
        return [{key: TABLES[key][row[i]] for key, row in found.items()} for i in range(len(of))]


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
    def of(cls, seen: list[Features], scenes: list[Scene]) -> "Examples":
        return cls(stack(seen), targets(scenes))

    def to(self, device: str) -> "Examples":
        return Examples(self.features.to(device), {k: v.to(device) for k, v in self.labels.items()})

    def __getitem__(self, picked: Tensor) -> "Examples":
        return Examples(self.features[picked], {k: v[picked] for k, v in self.labels.items()})


def with_mirrored(seen: list[Features], scenes: list[Scene]) -> Examples:
    """Each clip, and then each flipped left to right."""
    sides = torch.tensor([-1.0, 1.0]).view(2, 1, 1).half()
    flipped = [Features(f.flow.flip(3) * sides, f.frames.flip(3)) for f in seen]
    return Examples.of([*seen, *flipped], [*scenes, *map(mirrored, scenes)])


@torch.no_grad()
def decoded(latents: Iterable[Tensor], model: VAE, device: str) -> Iterator[Tensor]:
    """Clips [f, 3, h, w] uint8 on the CPU from latents [c, f, h, w]; several at once on a GPU."""
    mean, std = model._statistics()
    every = iter(latents)
    while batch := list(islice(every, 1 if device == "cpu" else 16)):
        z = torch.stack([latent.float() for latent in batch]).to(device)
        with run.autocast(device):
            video = model.pixels(z * std + mean, {})
        yield from to_uint8(video.float().clamp(-1, 1)).transpose(1, 2).cpu()


def accuracy(model: Measures, examples: Examples) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        logits = model(examples.features)
    right = {k: (v.argmax(1) == examples.labels[k])[examples.labels[k] >= 0] for k, v in logits.items()}
    return {k: float(v.float().mean()) for k, v in right.items()}


def fit(model: Measures, examples: Examples, steps: int, batch: int = 128) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        some = examples[
            torch.randint(len(examples.features), (batch,), device=examples.labels["camera"].device)
        ]
        flow = some.features.flow.float()
        flow = flow * (1 + 0.1 * torch.randn_like(flow[:, :1, :1, :1, :1])) + 0.03 * torch.randn_like(flow)
        two = torch.randperm(PICTURES)[:2]  # half the work, and less is learned by heart
        logits = model(Features(flow, some.features.frames[:, two]))
        wrong = [
            F.cross_entropy(v, some.labels[k], ignore_index=-1, label_smoothing=0.05)
            for k, v in logits.items()
        ]
        optimizer.zero_grad(set_to_none=True)
        sum(wrong).backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()


def train(numbers: dict[str, Any], device: str = "cpu", file: Path = FILE) -> None:
    torch.manual_seed(numbers["seed"])
    own, folder, seed = numbers["measures"], run.work_folder(numbers), numbers["seed"]
    encoded = sorted(int(path.stem) for path in (folder / "latents").glob("*.pt"))
    random.Random(seed).shuffle(encoded)
    encoded = encoded[: own["through"] + own["held_out"]]
    latents = (torch.load(latents_path(folder, i), weights_only=True)[0] for i in encoded)
    through = list(in_processes(decoded(latents, vae.load(numbers).to(device), device)))
    scenes, test = [scene(i, seed) for i in encoded], own["held_out"]
    rng = random.Random(f"measures/{seed}")
    plain = [sample(rng) for _ in range(own["plain"])]
    looked_at = [*rendered(plain, numbers["clip"]), *through[test:]]
    examples = with_mirrored(looked_at, [*plain, *scenes[test:]])
    judged = Examples.of(through[:test], scenes[:test])
    keep(folder / "measures.pt", examples[torch.arange(len(looked_at))], judged)
    model = Measures().to(device)
    fit(model, examples.to(device), own["steps"])
    model.cpu()
    found = accuracy(model, judged)
    save_file(model.state_dict(), file, {k: str(v) for k, v in found.items()})
    run.Log(folder / "measures.jsonl")(held_out=test, taught=len(looked_at), **found)


def rendered(scenes: list[Scene], clip: dict[str, Any]) -> Iterator[Features]:
    """What would be looked at in each one's clip; only that is rendered, and as small as flow is measured at."""
    shape = {"frames": clip["frames"], "fps": clip["fps"], "width": FLOW_WIDTH}
    shape["height"] = round(clip["height"] * FLOW_WIDTH / clip["width"])
    return map(Features.of, on_all_cores(_of_scene, ((s, shape) for s in scenes)))


def _of_scene(asked: tuple[Scene, dict[str, Any]]) -> Arrays:
    which, shape = asked
    frames = needed(shape["frames"])
    shown = dict(zip(frames, to_uint8(render(which, only=frames, **shape)), strict=True))
    return seen(shown, shape["frames"]).arrays


def keep(path: Path, taught: Examples, judged: Examples) -> None:
    """What they were taught and tested with: enough to try other networks without rendering again."""
    parts = {"taught": taught, "judged": judged}
    run.save(
        path,
        {n: {"flow": e.features.flow, "frames": e.features.frames, **e.labels} for n, e in parts.items()},
    )


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
