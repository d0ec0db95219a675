"""Time saved against what it costs, for each lossy lever: `python -m benchmarks.levers [--json FILE] [--plot FILE]`.

The prompts are of training's grammar, by seeds that training never used, so what each asks for is known
(training/evaluate.py). Each is made with every lever, in one process, in turn, from the same seed.

    forwards, pairs    of the transformer that are computed; of self-attention's pairs of tokens, the share
    seconds, saved     of text and denoising, which is all that they change (one of them decoding): the median over the
                       prompts; and that of the share that is saved beside the exact clip of the same turn
    PSNR, SSIM         of all frames, to those of the exact clip (SSIM: 11 x 11 Gaussian, luma); means
    camera, light,     how many clips show what was asked for, of those that ask for it, by nano's trained measures
    scene, adherence   (training/measures.py), which know its kind of pictures only; adherence: all three together
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.plots import Axis, Point, scatter
from broll import catalog, clips, loras, wiring
from broll.engine import pipeline, sparse, step_cache
from broll.engine.config import ModelConfig
from broll.engine.load import Parts
from broll.engine.pipeline import Frames
from broll.engine.sampler import Step
from broll.settings import Settings
from broll.spec import VideoSpec, parse
from training import features, measures
from training.evaluate import Asked, questions

EXACT = "exact"
LEVERS: Mapping[str, Mapping[str, Any]] = {  # fields of the spec; the exact clip comes first
    EXACT: {},
    "quality standard": {"quality": "standard"},
    "quality draft, steps skipped": {"quality": "draft", "step_cache": "magcache"},
    "student, quality draft": {"quality": "draft"},  # the model's own, where it brings one
    **{f"guidance until {value:g}": {"guidance_until": value} for value in (0.5, 0.2)},
    **{f"sparsity {value:g}": {"sparsity": value} for value in (0.3, 0.5, 0.7)},
    "int8": {},
    "decoded in bfloat16": {},
}
LOADED = {  # fields of the settings
    "int8": {"int8": True},
    "decoded in bfloat16": {"vae_precision": "bfloat16"},
}
KEYS = ("camera", "light", "scene")
Pictures = NDArray[np.uint8]  # f h w 3
Row = dict[str, Any]


def make(spec: VideoSpec, parts: Parts) -> tuple[float, Pictures]:
    """Seconds until the last step, and the frames."""
    begin, seconds, frames = time.perf_counter(), 0.0, []
    for event in pipeline.generate(spec, parts):
        if isinstance(event, Frames):
            frames.append(clips.to_rgb(event))
        elif isinstance(event, Step):
            seconds = time.perf_counter() - begin
    return seconds, np.concatenate(frames)


def psnr(one: Pictures, other: Pictures) -> float:
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(one: Pictures, other: Pictures) -> float:
    """Wang et al. 2004, mean over all frames."""
    return fmean(_ssim(a, b) for a, b in zip(one, other, strict=True))


def _ssim(one: NDArray[Any], other: NDArray[Any]) -> float:
    a, b = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float64) for frame in (one, other))

    def blurred(x: NDArray[Any]) -> NDArray[Any]:
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    both = blurred(a * b) - mean_a * mean_b
    score = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float(np.mean(score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def loaded(model: catalog.Installed, chosen: list[str]) -> dict[str, Parts]:
    """By lever; those that the model is not loaded otherwise for share one."""
    plain = wiring.load(model, wiring.describe(model))

    def by(lever: str) -> Parts:
        if lever not in LOADED:
            return plain
        return wiring.load(model, plain.config, Settings(**LOADED[lever]).loading())

    return {lever: by(lever) for lever in chosen}


def seen(frames: Pictures, judge: measures.Measures) -> dict[str, str]:
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    return judge.names(features.stack([features.features(clip)]))[0]


def turn(
    number: int, asked: Asked, models: Mapping[str, Parts], settings: Settings, given: Mapping[str, Any]
) -> Iterator[Row]:
    """One prompt with every lever, each on its model."""
    judge, exact = measures.load(), np.zeros(0, np.uint8)
    for lever, parts in models.items():
        config = parts.config
        fields = dict(given) | {"model": config.name, "prompt": asked.prompt, "seed": number} | LEVERS[lever]
        spec = pipeline.resolve(loras.fitted(parse(**fields), settings, {})[0], config)
        styled, _ = loras.on(parts, spec, settings)
        seconds, frames = make(spec, styled)
        exact = frames if lever == EXACT else exact
        yield {
            "lever": lever, "prompt": asked.prompt, "seconds": seconds,
            "psnr": psnr(frames, exact), "ssim": ssim(frames, exact), **counted(spec, config),
            "asked": {key: value for key, value in asked.labels().items() if key in KEYS},
            "measured": seen(frames, judge),
        }  # fmt: skip


def counted(spec: VideoSpec, config: ModelConfig) -> dict[str, float]:
    forwards = step_cache.forwards(spec, config)
    return {"forwards": forwards, "pairs": sparse.share(spec, config, forwards)}


# --- what it comes to -------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> dict[str, Row]:
    """Of each lever, over all prompts."""
    by_lever: dict[str, list[Row]] = {}
    for row in rows:
        by_lever.setdefault(row["lever"], []).append(row)
    exact = {row["prompt"]: row["seconds"] for row in by_lever[EXACT]}
    found = {}
    for lever, own in by_lever.items():
        hits = {
            key: [r["measured"][key] == r["asked"][key] for r in own if key in r["asked"]] for key in KEYS
        }
        found[lever] = {
            **{key: fmean(r[key] for r in own) for key in ("forwards", "pairs", "psnr", "ssim")},
            "seconds": median(r["seconds"] for r in own),
            "saved": median(1 - r["seconds"] / exact[r["prompt"]] for r in own),
            "hits": {key: (sum(said), len(said)) for key, said in hits.items()},
            "adherence": sum(map(sum, hits.values())) / max(1, sum(map(len, hits.values()))),
        }
    return found


def table(found: Mapping[str, Row]) -> str:
    lines = [f"| | forwards | pairs | seconds | saved | PSNR | SSIM | {' | '.join(KEYS)} | adherence |"]
    lines.append("|" + "---|" * (8 + len(KEYS)))
    for lever, row in found.items():
        how = f"{row['forwards']:.0f} | {row['pairs']:.0%} | {row['seconds']:.1f} | {row['saved']:.0%}"
        close = "the same | 1" if lever == EXACT else f"{row['psnr']:.1f} dB | {row['ssim']:.3f}"
        shown = " | ".join(f"{good}/{of}" for good, of in row["hits"].values())
        lines.append(f"| {lever} | {how} | {close} | {shown} | {row['adherence']:.0%} |")
    return "\n".join(lines)


def plot(found: Mapping[str, Row]) -> str:
    """Each lever by what it saves and how near it stays; beside it, its adherence."""
    points = [
        Point(100 * row["saved"], row["psnr"], f"{lever}: {row['adherence']:.0%}", lever.split()[0])
        for lever, row in found.items()
        if lever != EXACT
    ]
    low = 5 * (min(point.y for point in points) // 5)
    high = 5 * (max(point.y for point in points) // 5 + 1)
    left = min(0.0, 10 * (min(point.x for point in points) // 10))
    of_exact = f"{found[EXACT]['adherence']:.0%}"
    across = Axis(
        f"% of denoising time saved; beside each point its adherence (exact: {of_exact})", left, 100, 10
    )
    return scatter(points, across, Axis("PSNR to the exact clip, dB", low, high, 5))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--prompts", type=int, default=12, help="how many")
    parser.add_argument("--seed", type=int, default=5, help="of the prompts")
    parser.add_argument("--levers", nargs="*", default=list(LEVERS), choices=LEVERS, metavar="NAME")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--json", type=Path, help="every clip's row, written after each prompt")
    parser.add_argument("--plot", type=Path, help="an SVG")
    parser.add_argument("--show", type=Path, help="make nothing: the table and plot of this file of rows")
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.show.read_text()) if args.show else []
    if not args.show:
        settings = Settings()
        wiring.use_threads(settings)
        model = catalog.find(settings, args.model)
        models = loaded(model, [EXACT, *(name for name in args.levers if name != EXACT)])
        given = {"frames": args.frames, "steps": args.steps}
        for number, asked in enumerate(questions(args.prompts, args.seed), 1):
            rows += turn(number, asked, models, settings, given)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
    found = summary(rows)
    print(table(found))
    if args.plot:
        args.plot.write_text(plot(found))


if __name__ == "__main__":
    main()
