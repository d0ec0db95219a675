"""TeaCache's way to choose the steps that are skipped: by how far the time, as the blocks are given it, has moved.

    e         the six vectors of the time that every block gets (Transformer.forward)
    moved[i]  mean |e(t[i]) - e(t[i - 1])| / mean |e(t[i - 1])|
    skipped   while the sum of p(moved) since the last computed step < threshold; never one of the first five

p is a polynomial that was fitted to each model. It may be below zero, as in TeaCache's own code; threshold 0 skips
nothing all the same.

    TeaCache    https://arxiv.org/abs/2411.19108

Left out: the variant without retained steps, which decides by e before it is projected.
"""

import functools
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from broll.engine.transformer import Transformer, time_features

FIRST = 5  # steps that are always computed


@dataclass(frozen=True)
class Fit:
    """What is published for a model; thresholds and seconds by quality."""

    coefficients: tuple[float, ...]
    thresholds: Mapping[str, float]
    seconds: Mapping[str, int]

    def share(self, quality: str) -> float:
        """Of the time of the exact clip, and so about that of the steps that are computed."""
        return self.seconds[quality] / self.seconds["best"]


@functools.cache
def fits() -> Mapping[str, Fit]:
    """By model."""
    table = tomllib.loads(Path(__file__).with_name("tea_cache.toml").read_text())
    return {
        name: Fit(tuple(row["coefficients"]), row["thresholds"], row["seconds"])
        for name, row in table.items()
    }


def moved(model: Transformer, times: Sequence[float]) -> list[float]:
    """Of each step against the one before; 0 in the first."""
    t = torch.tensor(times, device=model.head.modulation.device)
    e = model.time_projection(model.time_embedding(time_features(t, model.config.freq_dim)))
    return [0.0, *((e[1:] - e[:-1]).abs().mean(1) / e[:-1].abs().mean(1)).tolist()]


def skipped(
    moved: Sequence[float], coefficients: Sequence[float], threshold: float, fresh: Collection[int] = ()
) -> frozenset[int]:
    """The steps that leave out the blocks; those in `fresh` are computed."""
    found, total = set(), 0.0
    for step in range(FIRST, len(moved)):
        total += functools.reduce(lambda value, c: value * moved[step] + c, coefficients, 0.0)
        if threshold > 0 and total < threshold and step not in fresh:
            found.add(step)
        else:
            total = 0.0
    return frozenset(found)
