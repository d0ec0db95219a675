"""Distance to the dense clip, for some values of `--sparsity`: `python -m benchmarks.sparsity [--seed N]`."""

import argparse
import math

import torch
from torch import Tensor

from broll import catalog, wiring
from broll.engine import pipeline, sparse
from broll.engine.pipeline import Frames
from broll.settings import Settings
from broll.spec import VideoSpec, parse

PROMPT = "aerial drone shot slowly circling a lighthouse, golden hour"
VALUES = (0.3, 0.5, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    settings = Settings()
    wiring.use_threads(settings)
    model = catalog.find(settings, args.model)
    config = wiring.describe(model)
    parts = wiring.load(model, config)

    def made(**fields: float) -> tuple[VideoSpec, Tensor]:
        given = {"model": model.name, "prompt": PROMPT, "seed": args.seed}
        asked = parse(**given, frames=args.frames, steps=args.steps, **fields)
        spec = pipeline.resolve(asked, config)
        events = pipeline.generate(spec, parts)
        return spec, torch.cat([event.frames for event in events if isinstance(event, Frames)], dim=1)

    _, dense = made()
    for value in VALUES:
        spec, frames = made(sparsity=value)
        error = ((frames - dense) / 2).square().mean().item()  # of frames in 0..1
        print(
            f"{value:g}  {sparse.share(spec, config):.0%} of the pairs  {10 * math.log10(1 / error):.1f} dB",
            flush=True,
        )


if __name__ == "__main__":
    main()
