"""Time saved against distance to the exact clip, for each lossy lever: `python -m benchmarks.levers [--json FILE]`.

The same prompts and seeds with every lever (`--quality`, `--sparsity`), in one process, in turn; seconds are those of
text and denoising, which is all that they change. `steps` are those computed, `pairs` the share of self-attention's.
PSNR and SSIM (11 x 11 Gaussian, luma) compare every frame with that of the exact clip.
"""

import argparse
import json
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from broll import catalog, clips, wiring
from broll.engine import pipeline, sparse, step_cache
from broll.engine.load import Parts
from broll.engine.pipeline import Frames
from broll.engine.sampler import Step
from broll.settings import Settings
from broll.spec import VideoSpec, parse

PROMPTS = (
    "aerial drone shot slowly circling a lighthouse on rocky coast, ocean waves below, golden hour",
    "a city street at night in the rain, camera pans left slowly",
    "snow falling in a pine forest, static shot, overcast morning",
)
EXACT = "exact"
LEVERS: Mapping[str, Mapping[str, Any]] = {  # fields of the spec; the exact clip comes first
    EXACT: {},
    **{f"quality {name}": {"quality": name} for name in step_cache.QUALITY},
    **{f"sparsity {value:g}": {"sparsity": value} for value in (0.3, 0.5, 0.7)},
}
Pictures = NDArray[np.uint8]  # f h w 3


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the three")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = Settings()
    wiring.use_threads(settings)
    model = catalog.find(settings, args.model)
    config = wiring.describe(model)
    parts = wiring.load(model, config)
    seen: dict[str, list[dict[str, float]]] = {lever: [] for lever in LEVERS}
    exact: Pictures = np.zeros(0, np.uint8)
    for (number, prompt), lever in product(enumerate(PROMPTS[: args.prompts], 1), LEVERS):
        given = {"prompt": prompt, "seed": number, "frames": args.frames, "steps": args.steps}
        spec = pipeline.resolve(parse(model=model.name, **given, **LEVERS[lever]), config)
        seconds, frames = make(spec, parts)
        exact = frames if lever == EXACT else exact
        row = {"seconds": seconds, "psnr": psnr(frames, exact), "ssim": ssim(frames, exact)}
        row |= {"steps": step_cache.computed(spec, config), "pairs": sparse.share(spec, config)}
        seen[lever].append(row)
    rows = {lever: {key: fmean(r[key] for r in runs) for key in runs[0]} for lever, runs in seen.items()}
    print(f"{'':18}{'steps':>6}{'pairs':>7}{'seconds':>9}{'saved':>7}{'PSNR':>7}{'SSIM':>7}")
    for lever, row in rows.items():
        saved = 1 - row["seconds"] / rows[EXACT]["seconds"]
        print(
            f"{lever:18}{row['steps']:>6.0f}{row['pairs']:>7.0%}{row['seconds']:>9.2f}{saved:>7.0%}"
            f"{row['psnr']:>7.1f}{row['ssim']:>7.3f}"
        )
    if args.json:
        args.json.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
