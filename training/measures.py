"""What a clip shows, measured: `python -m training.measures` trains the measures and tests them.

    camera    DIS optical flow over a quarter second, ten times a clip, averaged on a 6 x 10 grid;
              a small network names the move from these 120 numbers
    light     mean colours on a 3 x 4 grid and their spread; a linear classifier
    scene     a small convolutional network on three frames, one in three a second apart

They learn from the renderer's own labels, on renders and on renders that went through the autoencoder, and are
tested on held-out ones after that round trip. They never see a generated clip.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training import latents, run, vae
from training.render import load_clip, scene, to_uint8
from training.scenes import CAMERAS, LIGHTS, SCENES

FILE = Path(__file__).parent / "measures.safetensors"
TABLES = {"camera": CAMERAS, "light": LIGHTS, "scene": SCENES}
REACH, PAIRS = 4, 10  # frames between the two pictures of a flow; flows a clip


def camera_features(clip: Tensor) -> Tensor:
    """[f, 3, h, w] uint8 to mean flow [2, 6, 10] in pixels a frame, at 160 pixels of width."""
    frames = clip.permute(0, 2, 3, 1).numpy()
    scale = 160 / frames.shape[2]
    size = (160, round(frames.shape[1] * scale))
    gray = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size) for f in frames]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    starts = np.linspace(0, len(gray) - 1 - REACH, PAIRS).round().astype(int)
    flows = np.mean([flow.calc(gray[i], gray[i + REACH], None) for i in starts], axis=0) / REACH
    return F.adaptive_avg_pool2d(torch.from_numpy(flows).permute(2, 0, 1), (6, 10))


def light_features(clip: Tensor) -> Tensor:
    """[f, 3, h, w] uint8 to the colours of a 3 x 4 grid over four frames, their spread, and saturation."""
    some = clip[np.linspace(0, len(clip) - 1, 4).round().astype(int)].float() / 127.5 - 1
    grid = F.adaptive_avg_pool2d(some, (3, 4)).mean(0)
    saturation = some.amax(1) - some.amin(1)
    return torch.cat([grid.flatten(), some.std((0, 2, 3)), saturation.mean()[None], saturation.std()[None]])


def scene_frames(clip: Tensor) -> Tensor:
    """[f, 3, h, w] uint8 to three frames [3, 3, 48, 80] in [-1, 1]."""
    some = clip[np.linspace(0, len(clip) - 1, 3).round().astype(int)].float() / 127.5 - 1
    return F.interpolate(some, size=(48, 80), mode="area")


class Measures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(
            nn.BatchNorm1d(120), nn.Linear(120, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, len(CAMERAS))
        )
        self.light = nn.Sequential(nn.BatchNorm1d(41), nn.Linear(41, len(LIGHTS)))
        layers: list[nn.Module] = []
        for a, b in ((3, 16), (16, 32), (32, 48)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.GELU()]
        layers += [nn.AdaptiveAvgPool2d((3, 5)), nn.Flatten(), nn.Dropout(0.2), nn.Linear(720, len(SCENES))]
        self.scene = nn.Sequential(*layers)

    def forward(self, camera: Tensor, light: Tensor, scenes: Tensor) -> dict[str, Tensor]:
        """Logits of a batch: [b, 2, 6, 10], [b, 41], [b, 3, 3, 48, 80]."""
        return {
            "camera": self.camera(camera.flatten(1)),
            "light": self.light(light),
            "scene": self.scene(scenes.flatten(0, 1)).unflatten(0, (-1, 3)).mean(1),
        }

    @torch.no_grad()
    def name(self, clip: Tensor) -> dict[str, str]:
        """camera, light and scene of one clip, [f, 3, h, w] uint8."""
        parts = (camera_features(clip), light_features(clip), scene_frames(clip))
        logits = self(*(part[None] for part in parts))
        return {key: TABLES[key][int(value[0].argmax())] for key, value in logits.items()}


@dataclass(frozen=True)
class Examples:
    camera: Tensor
    light: Tensor
    scene: Tensor
    labels: dict[str, Tensor]

    @classmethod
    def of(cls, clips: Any, indices: list[int], seed: int) -> "Examples":
        camera, light, frames = [], [], []
        for clip in clips:
            camera.append(camera_features(clip))
            light.append(light_features(clip))
            frames.append(scene_frames(clip))
        scenes = [scene(i, seed) for i in indices]
        labels = {k: torch.tensor([t.index(getattr(s, k)) for s in scenes]) for k, t in TABLES.items()}
        return cls(torch.stack(camera), torch.stack(light), torch.stack(frames), labels)

    def __add__(self, other: "Examples") -> "Examples":
        labels = {k: torch.cat([v, other.labels[k]]) for k, v in self.labels.items()}
        pairs = ((self.camera, other.camera), (self.light, other.light), (self.scene, other.scene))
        return Examples(*(torch.cat(pair) for pair in pairs), labels)


@torch.no_grad()
def round_trip(folder: Path, indices: list[int], model: Any) -> Any:
    """Clips as the decoder gives them back, one by one."""
    for i in indices:
        z = torch.load(latents.path(folder, i), weights_only=True).float()
        with run.autocast("cpu"):
            yield to_uint8(model.decode(z[None])[0].float()).transpose(0, 1)


def accuracy(model: Measures, examples: Examples) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        logits = model(examples.camera, examples.light, examples.scene)
    return {k: float((v.argmax(1) == examples.labels[k]).float().mean()) for k, v in logits.items()}


def fit(model: Measures, examples: Examples, epochs: int = 60) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    count = len(examples.camera)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * (count // 64 + 1))
    for _ in range(epochs):
        model.train()
        for picked in torch.randperm(count).split(64):
            camera = examples.camera[picked]
            camera = camera * (1 + 0.1 * torch.randn(len(picked), 1, 1, 1)) + 0.03 * torch.randn_like(camera)
            logits = model(camera, examples.light[picked], examples.scene[picked])
            value = sum(F.cross_entropy(v, examples.labels[k][picked]) for k, v in logits.items())
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()


def train(numbers: dict[str, Any], through: int, held_out: int) -> None:
    """`through`: clips that also teach after the autoencoder; `held_out`: clips that only test."""
    torch.manual_seed(numbers["seed"])
    folder, seed = run.work_folder(numbers), numbers["seed"]
    indices = vae.rendered(folder)
    encoded = [i for i in indices if latents.path(folder, i).exists()]
    random.Random(seed).shuffle(encoded)
    test, taught = encoded[:held_out], encoded[held_out : held_out + through]
    plain = [i for i in indices if i not in set(test)]
    model, decoder = Measures(), vae.load(numbers)
    examples = Examples.of((load_clip(folder, i) for i in plain), plain, seed)
    examples = examples + Examples.of(round_trip(folder, taught, decoder), taught, seed)
    fit(model, examples)
    judged = Examples.of(round_trip(folder, test, decoder), test, seed)
    model.eval()
    save_file(model.state_dict(), FILE, {k: str(v) for k, v in accuracy(model, judged).items()})
    run.Log(folder / "measures.jsonl")(
        held_out=len(test), taught=len(examples.camera), **accuracy(model, judged)
    )


def load() -> Measures:
    model = Measures()
    model.load_state_dict(load_file(FILE))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--through", type=int, default=150)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    train(run.recipe(args.recipe), args.through, args.held_out)


if __name__ == "__main__":
    main()
