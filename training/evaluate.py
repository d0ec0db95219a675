"""Does nano do what it is told? `python -m training.evaluate` generates, measures, and writes nano/REPORT.md.

Prompts come from the caption grammar with seeds that training never used, a third of them in words that it never
used, each camera move equally often; a prompt that leaves a label out is not judged on it. The measures
(training/measures.py) have never seen a generated clip, and are themselves tested first, on held-out renders after the
autoencoder's round trip.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from broll.engine import attention, kernels
from broll.engine.load import Parts, load
from broll.engine.shapes import Grid, latent_grid
from training import features, measures, quality, run
from training.camera import CAMERAS, STEADY
from training.captions import describe
from training.export import MODEL, student
from training.features import in_processes
from training.measures import decoded
from training.report import Judged, write
from training.sampling import encode, noise, sample
from training.scenes import Scene
from training.scenes import sample as draw

BATCH = {"cuda": 40, "cpu": 1}


@dataclass(frozen=True)
class Asked:
    scene: Scene
    prompt: str
    names: frozenset[str]
    unseen: bool  # in words that training never used

    def labels(self) -> dict[str, str]:
        """What the prompt asks for, of what is measured. Silence about the camera means that it stands still."""
        named = {
            k: getattr(self.scene, k)
            for k in ("camera", "scene", "speed", "light", "style")
            if k in self.names
        }
        if self.scene.camera in STEADY:
            named.pop("speed", None)
        return named | ({"camera": "static"} if self.scene.camera == "static" else {})


@dataclass
class Run:
    """The clips of one way to make them."""

    name: str
    judged: list[Judged] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)


def questions(count: int, seed: int) -> list[Asked]:
    """Scenes and captions, camera moves in turn, every third in unseen words."""
    rng, asked = random.Random(f"evaluate/{seed}"), []
    for place in range(count):
        scene = draw(rng, CAMERAS[place % len(CAMERAS)])
        unseen = place // len(CAMERAS) % 3 == 2
        caption = describe(scene, rng, unseen)
        asked.append(Asked(scene, caption.text, caption.names, unseen))
    return asked


class Maker:
    """Makes clips in batches with nano's own defaults, by the teacher or the student."""

    def __init__(self, parts: Parts, device: str, kept: Path | None = None) -> None:
        self.parts, self.device, self.kept, d = parts, device, kept, parts.config.defaults
        stride = parts.config.vae.spatial_stride
        self.grid = latent_grid(Grid(d.frames, d.size[1], d.size[0]), stride)
        self.how: dict[str, Any] = {"steps": d.steps, "guidance": d.guidance, "shift": d.shift}

    def latents(self, prompts: list[str], seeds: list[int], first: Tensor | None = None) -> Tensor:
        """[b, c, f, h, w] on the CPU; `first` [b, c, 1, h, w] are given. What was kept is not made again."""
        made, size, weights = [], BATCH[self.device], self.kept and self.digest()
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            given = None if first is None else first[part]
            if self.kept is None:
                made.append(self.batch(prompts[part], seeds[part], given))
                continue
            named = [weights, self.how, prompts[part], seeds[part], None if given is None else given.tolist()]
            file = self.kept / f"{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:24]}.pt"
            if not file.exists():
                run.save(file, {"latents": self.batch(prompts[part], seeds[part], given)})
            made.append(torch.load(file, weights_only=True)["latents"])
        return torch.cat(made)

    def batch(self, prompts: list[str], seeds: list[int], first: Tensor | None) -> Tensor:
        text, channels = self.parts.text, self.parts.config.transformer.out_dim
        ids = [text.token_ids(p) for p in prompts]  # type: ignore[union-attr]
        empty = [text.token_ids("")] * len(ids)  # type: ignore[union-attr]
        pair = encode(text, ids), encode(text, empty)  # type: ignore[arg-type]
        x = noise(self.grid, channels, seeds, self.device)
        given = None if first is None else first.to(self.device)
        return sample(self.parts.transformer, pair, x, first=given, **self.how).cpu()

    def digest(self) -> str:
        """Of the weights that latents come from: a student's, or others in the same folder, are others."""
        found = hashlib.sha256()
        for module in (self.parts.transformer, self.parts.text.model):  # type: ignore[union-attr]
            for value in module.state_dict().values():
                found.update(value.detach().float().cpu().numpy().tobytes())
        return found.hexdigest()

    def clips(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        return decoded(latents, self.parts.vae, self.device)


def judge(
    maker: Maker, asked: list[Asked], latents: dict[str, Tensor], model: measures.Measures, keep: Path | None
) -> list[Run]:
    """Decode and measure the clips of each way to make them; what was looked at stays in the folder `keep`."""
    flicker, strips = [], []

    def watched() -> Any:
        for clip in maker.clips(z for many in latents.values() for z in many):
            flicker.append(quality.flicker(clip))
            strips.append(quality.strip(clip))
            yield clip

    seen = features.stack(list(in_processes(watched())))
    if keep:
        run.save(keep / "features.pt", {"flow": seen.flow, "frames": seen.frames})
    found = model.names(seen)
    runs = []
    for place, name in enumerate(latents):
        part = slice(place * len(asked), (place + 1) * len(asked))
        rows = zip(asked, found[part], strips[part], strict=True)
        judged = [Judged(q.prompt, q.unseen, q.labels(), named, picture) for q, named, picture in rows]
        runs.append(Run(name, judged, {"flicker": sum(flicker[part]) / len(asked)}))
    return runs


def from_pictures(maker: Maker, count: int, seed: int) -> float:
    """Mean PSNR of the first frame of clips that were given a rendered one, in dB."""
    rng, firsts, asked = random.Random(f"pictures/{seed}"), [], []
    for _ in range(count):
        scene = draw(rng)
        firsts.append(quality.rendered(scene, maker.parts, frames=1))
        asked.append(describe(scene, rng).text)
    pictures = torch.stack(firsts).to(maker.device)
    first = quality.encoded(maker.parts, pictures)
    clips = maker.clips(maker.latents(asked, [2000 + i for i in range(count)], first))
    pairs = zip(clips, firsts, strict=True)
    return sum(quality.psnr(quality.to_video(clip)[:, :1], picture) for clip, picture in pairs) / count


def evaluate(
    folder: Path,
    device: str,
    count: int,
    seed: int,
    file: Path = measures.FILE,
    keep: Path | None = None,
) -> tuple[list[Run], dict[str, float]]:
    """What the model in this folder does, teacher first; measured by `file`."""
    parts, model = load(folder, "nano", device=device), measures.load(file)
    here = kernels.Here.of(torch.device(device), run.dtype(device))
    parts.transformer.use(attention.BACKENDS[kernels.best(here)].attend)
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    maker, asked = Maker(parts, device, keep), questions(count, seed)
    prompts, seeds, few = [a.prompt for a in asked], [1000 + i for i in range(count)], max(4, count // 16)
    latents = {"teacher": maker.latents(prompts, seeds)}
    facts = quality.autoencoder(parts, device, few, seed) | {"picture": from_pictures(maker, few, seed)}
    again = [p for p in prompts[: few // 2] for _ in range(3)]
    several = maker.latents(again, [3000 + i for i in range(len(again))])
    facts["diversity"] = quality.diversity(several, 3)
    wanted = student(parts.transformer, folder)
    if wanted:
        maker.how |= wanted
        latents["student"] = maker.latents(prompts, seeds)
        facts["student's picture"] = from_pictures(maker, few, seed)
    return judge(maker, asked, latents, model, keep), facts


def report(
    runs: list[Run],
    facts: dict[str, float],
    out: Path,
    count: int,
    seed: int,
    device: str,
    file: Path = measures.FILE,
) -> dict[str, float]:
    """Write nano/REPORT.md and its pictures under `out`."""
    command = f"python -m training.evaluate --count {count} --seed {seed} --device {device}"
    facts = facts | {f"{r.name}'s flicker": r.extra["flicker"] for r in runs}
    return write(out, {r.name: r.judged for r in runs}, facts, command, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=run.ROOT, help="folder of nano/REPORT.md and docs/images")
    parser.add_argument("--json", type=Path, help="also write the shares here")
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder for latents and for what the measures looked at: to go on, to try others",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs, facts = evaluate(args.model, args.device, args.count, args.seed, keep=args.keep)
    found = report(runs, facts, args.out, args.count, args.seed, args.device)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
