"""Several clips in one forward, against one after the other: whether a service should put jobs together.

nano's transformer, random weights, one prompt each, at the default clip and shorter ones.
"""

from dataclasses import replace
from functools import partial
from statistics import median

import torch

from benchmarks.on_gpu import models
from benchmarks.on_gpu.bench import Bench, Figures
from broll.engine.config import TransformerConfig
from broll.engine.shapes import Grid, token_grid
from broll.engine.transformer import Transformer

NANO = TransformerConfig(
    in_dim=32, out_dim=32, dim=256, ffn_dim=1024, num_heads=4, num_layers=9, text_dim=192
)  # nano/broll_nano/model/transformer/config.json; in its own patches of 32 pixels
LATENTS = {1: 1, 9: 3, 21: 6, 81: 21}  # by frames
CLIPS = (2, 4, 8)


def run(bench: Bench) -> None:
    model = models.transformer(bench, NANO, torch.float32)
    for frames, latents in LATENTS.items():
        for clips in CLIPS:
            grid = Grid(latents, 10, 16)
            name = f"nano, {frames} frames, {clips} clips"
            bench.attempt(name, 2, partial(together, bench, model, grid, clips))


def together(bench: Bench, model: Transformer, grid: Grid, clips: int) -> Figures:
    """`gain`: how many times as fast they are in one forward."""
    noise = torch.cat([models.noise(bench, model, grid) for _ in range(clips)])
    alone = models.context(bench, model, grid)
    time = torch.tensor([500.0], device=bench.device)

    def one_by_one() -> None:
        for one in noise:
            model(one[None], time, alone, 1)

    whole = replace(alone, text=alone.text.expand(clips, -1, -1), memory={})
    turns = [
        bench.timed(call, 5) for call in (one_by_one, lambda: model(noise, time.expand(clips), whole, 1))
    ]
    apart, at_once = (median(times) for times in turns)
    tokens = token_grid(grid, model.config.patch_size).size
    return {"tokens": tokens, "ms": 1e3 * at_once, "apart_ms": 1e3 * apart, "gain": apart / at_once}
