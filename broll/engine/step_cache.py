"""The stack seam, with all blocks left out of a step where what they added before still tells what they would add.

    residual = stack(x) - x       kept by a step that is computed, one for each branch
    y        = x + residual       instead of the blocks, in a step that is skipped

Which steps are skipped is known before the first, from how much the blocks add in each (magnitudes.py). With m the
product of the ratios since the last computed step, a step is skipped while

    sum of |1 - m| < threshold,   at most `most` in a row,   never in the first `retention` of the steps

Threshold 0 skips nothing and changes no bit. A step in which a LoRA begins or has ended is computed: what was kept is
of other weights. A snapshot needs no residual if it is taken before a step that is computed. TeaCache chooses the steps
in another way (tea_cache.py).

    MagCache      https://arxiv.org/abs/2506.09045
    settings      MagCache4Wan2.1/README.md: E012K2R02, and E024K6R02
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from broll.engine import magnitudes, tea_cache
from broll.engine.config import ModelConfig
from broll.engine.schedule import schedule
from broll.engine.shapes import Tokens
from broll.engine.transformer import Context, Stack, Transformer
from broll.errors import BadOption
from broll.spec import VideoSpec

FEW = 8  # steps: a model that makes do with so few has nothing to spare


@dataclass(frozen=True)
class Dial:
    """How much is skipped."""

    threshold: float
    most: int  # steps in a row
    retention: float  # share of the steps, at the beginning, that are all computed


Skips = frozenset[int]  # the steps of a clip that leave out the blocks, counted from 0
QUALITY = {"standard": Dial(0.12, 2, 0.2), "draft": Dial(0.24, 6, 0.2)}  # best: every step is computed


# --- which steps ------------------------------------------------------------------------------------------


def skipped(branches: Sequence[Sequence[float]], dial: Dial, fresh: Collection[int] = ()) -> Skips:
    """With a ratio of each step in each branch; steps in `fresh` are computed.

    All branches skip the same steps, or there would be few to go on from after a stop: what changes most decides.
    """
    found, steps = set(), len(branches[0])
    sizes, errors, count = [1.0] * len(branches), [0.0] * len(branches), 0
    for step in range(max(1, int(dial.retention * steps + 0.5)), steps):
        sizes = [size * ratios[step] for size, ratios in zip(sizes, branches, strict=True)]
        errors = [error + abs(1 - size) for error, size in zip(errors, sizes, strict=True)]
        count += 1
        if max(errors) < dial.threshold and count <= dial.most and step not in fresh:
            found.add(step)
        else:
            sizes, errors, count = [1.0] * len(branches), [0.0] * len(branches), 0
    return frozenset(found)


def of(spec: VideoSpec, config: ModelConfig, model: Transformer) -> Skips:
    """What a resolved spec skips."""
    if not skips_any(spec):
        return frozenset()
    if spec.step_cache != "teacache":
        return by_magnitude(spec, config)
    assert spec.quality and spec.steps and spec.shift and spec.grid and spec.sampler
    levels = schedule(spec.steps, shift=spec.shift, grid=spec.grid, sampler=spec.sampler)
    fit = tea_cache.fits()[config.name]
    moved = tea_cache.moved(model, levels.times)
    return tea_cache.skipped(moved, fit.coefficients, fit.thresholds[spec.quality], fresh(spec))


def by_magnitude(spec: VideoSpec, config: ModelConfig) -> Skips:
    """Known without the weights."""
    check(spec, config)  # again: a device may know less of its model than the machine that took the job
    ratios = magnitudes.of(config)
    assert ratios is not None
    branches = (ratios.positive,) if spec.guidance == 1 else (ratios.positive, ratios.negative)
    rows = [magnitudes.at(row, spec.steps or 1) for row in branches]
    return skipped(rows, QUALITY[spec.quality or ""], fresh(spec))


def fresh(spec: VideoSpec) -> set[int]:
    """The steps in which a LoRA begins or has ended."""
    return {step for use in spec.loras if use.first is not None for step in (use.first, (use.last or 0) + 1)}


def skips_any(spec: VideoSpec) -> bool:
    return spec.quality in QUALITY and not few(spec)


def few(spec: VideoSpec) -> bool:
    """Steps of a distilled model are few, and each does much."""
    return (spec.steps or 0) <= FEW or spec.grid == "distilled"


def check(spec: VideoSpec, config: ModelConfig) -> None:
    """Refuse what this model has no numbers for, and what does not pay."""
    if skips_any(spec) and spec.guidance_until not in (None, 1):
        raise BadOption(
            f"guidance_until is {spec.guidance_until:g} and quality is {spec.quality}: skipping steps alone saves as "
            "much and stays as near to the exact clip; ask for one of them"
        )
    if spec.step_cache == "teacache":
        if config.name not in tea_cache.fits():
            known = ", ".join(tea_cache.fits())
            raise BadOption(
                f"step_cache is teacache, which is known for {known}; {config.name} is none of them"
            )
    elif skips_any(spec) and magnitudes.of(config) is None:
        raise BadOption(
            f"quality is {spec.quality}, but nothing is known of how much {config.name} changes from step to step; "
            f"to measure it: broll bench calibrate --model {config.name}; or use quality best"
        )


def computed(spec: VideoSpec, config: ModelConfig) -> int:
    """How many steps are computed; of TeaCache about, since only the weights say which."""
    steps = spec.steps or 0
    if not skips_any(spec):
        return steps
    if spec.step_cache == "teacache":
        return round(steps * tea_cache.fits()[config.name].share(spec.quality or ""))
    return steps - len(by_magnitude(spec, config))


def forwards(spec: VideoSpec, config: ModelConfig) -> int:
    """How many are computed, under both prompts; of TeaCache about."""
    if not skips_any(spec):
        return (spec.steps or 0) + spec.guided
    return computed(spec, config) * (1 if spec.guidance == 1 else 2)


def choice(spec: VideoSpec, config: ModelConfig) -> str:
    """For the record: the steps that are skipped, or what else, beside the weights, says which."""
    if not skips_any(spec):
        return ""
    if spec.step_cache == "teacache":
        return f"teacache {tea_cache.fits()[config.name].thresholds[spec.quality or '']:g}"
    return " ".join(map(str, sorted(by_magnitude(spec, config))))


def told(spec: VideoSpec, config: ModelConfig) -> str:
    """One line on what the quality asked for comes to; empty for the exact clip."""
    if spec.quality not in QUALITY:
        idle = f"{spec.step_cache} changes nothing: quality best computes every step"
        return idle if spec.step_cache else ""
    if few(spec) and spec.quality == "draft" and spec.student:
        how = " without guidance" if spec.guidance == 1 else ""
        return f"quality draft: {spec.student.name} makes it in {spec.steps} steps{how}"
    if few(spec):
        why = f"{spec.steps} steps" if (spec.steps or 0) <= FEW else "the steps of a distilled model"
        return f"quality {spec.quality} changes nothing: {why} are too few to skip any"
    about = "about " if spec.step_cache == "teacache" else ""
    left = f"{about}{computed(spec, config)}"
    return f"quality {spec.quality}: {left} of {spec.steps} steps are computed, the others made from those before"


# --- the stack --------------------------------------------------------------------------------------------


class StepCache:
    """A stack around a stack, for one clip: it keeps a residual only while the next step will need it."""

    def __init__(self, stack: Stack, skips: Skips) -> None:
        self._stack, self._skips = stack, skips
        self._residuals: dict[str, Tensor] = {}

    def __call__(self, tokens: Tokens, context: Context) -> Tokens:
        branch = context.branch
        if context.step in self._skips and branch in self._residuals:
            return tokens + self._residuals[branch]
        self._residuals.pop(branch, None)
        after = self._stack(tokens, context)
        if context.step + 1 in self._skips:
            self._residuals[branch] = after - tokens
        return after


@contextmanager
def on(model: Transformer, skips: Skips) -> Iterator[None]:
    """Around whatever stack the model has; without skips, nothing is changed."""
    before = model.stack
    if skips:
        model.stack = StepCache(before, skips)
    try:
        yield
    finally:
        model.stack = before


def kept_bytes(spec: VideoSpec, config: ModelConfig, tokens: int) -> int:
    """Of the residuals, in fp32 as the tokens are."""
    branches = 1 if spec.guidance == 1 else 2
    return 4 * tokens * config.transformer.dim * branches if computed(spec, config) < (spec.steps or 0) else 0


# --- measuring --------------------------------------------------------------------------------------------


class Observed:
    """A stack around a stack that changes nothing and notes how much it adds, against the step before."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._before: dict[str, Tensor] = {}
        self.ratios: dict[str, list[float]] = {branch: [] for branch in magnitudes.BRANCHES}

    def __call__(self, tokens: Tokens, context: Context) -> Tokens:
        after = self._stack(tokens, context)
        size = torch.linalg.vector_norm((after - tokens).float(), dim=-1)
        before = self._before.get(context.branch)
        ratio = 1.0 if before is None else float((size / (before + 1e-8)).mean())
        self.ratios[context.branch].append(ratio)
        self._before[context.branch] = size
        return after
