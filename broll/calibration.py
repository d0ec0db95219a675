"""How much a model's blocks add in each step, measured in one clip that is not decoded, and kept in its folder.

One clip is enough: what the blocks add hardly depends on what the clip shows (MagCache: a single sample).
"""
# ruff: noqa: PLC0415  torch is there once a model is loaded

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from broll import wiring
from broll.engine import magnitudes
from broll.engine.config import Ratios
from broll.spec import VideoSpec

if TYPE_CHECKING:
    from broll.engine.load import Parts
    from broll.engine.sampler import Step


def measure(
    spec: VideoSpec, parts: "Parts", pictures: Sequence[wiring.Picture] = ()
) -> "Generator[Step, None, Ratios]":
    """Every step of a resolved spec; hands back the ratios of both branches."""
    from broll.engine import pipeline, step_cache
    from broll.engine.sampler import Step

    images = {picture.artifact.sha256: picture.image for picture in pictures}
    exact = spec.model_copy(update={"quality": None})
    before = parts.transformer.stack
    observed = step_cache.Observed(before)
    parts.transformer.stack = observed
    try:
        with contextlib.closing(pipeline.generate(exact, parts, images)) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Step):
                    yield event
                    if event.index + 1 == exact.steps:
                        break
    finally:
        parts.transformer.stack = before
    positive, negative = (tuple(observed.ratios[branch]) for branch in magnitudes.BRANCHES)
    return Ratios(positive, negative or positive, source(exact))


def source(spec: VideoSpec) -> str:
    return (
        f"broll bench calibrate: {spec.width}x{spec.height}, {spec.frames} frames, {spec.steps} steps, "
        f"guidance {spec.guidance:g}, shift {spec.shift:g}, {spec.sampler}, seed {spec.seed}"
    )


def keep(folder: Path, ratios: Ratios) -> Path:
    path = folder / magnitudes.NAME
    wiring.write_whole(path, magnitudes.written(ratios).encode())
    return path
