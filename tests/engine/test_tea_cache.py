"""TeaCache's choice of steps, against its own loop, which decides while it runs."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broll.engine import snapshot, step_cache, tea_cache
from broll.engine.config import PUBLISHED
from broll.engine.load import load
from broll.engine.pipeline import digest, generate, resolve
from broll.engine.sampler import Step
from broll.engine.schedule import schedule
from broll.errors import BadOption
from broll.spec import parse

NAME = "wan2.1-t2v-1.3b"
STEPS = 30


@pytest.fixture(scope="module")
def parts(tiny_models):
    """A tiny model under a published name, whose polynomial is then its."""
    loaded = load(tiny_models / "tiny", "tiny")
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, name=NAME))


def ask(parts, **fields):
    given = {"model": NAME, "prompt": "a lake", "seed": 4, "steps": STEPS, "step_cache": "teacache"} | fields
    return resolve(parse(**given), parts.config)


def steps_of(spec, parts):
    with torch.inference_mode():
        return [event for event in generate(spec, parts) if isinstance(event, Step)]


class Their:
    """teacache_generate.py, with use_ret_steps: it looks at what the blocks are given of the time."""

    def __init__(self, stack, coefficients, threshold):
        self.stack, self.coefficients, self.threshold = stack, coefficients, threshold
        self.total, self.time, self.added, self.computed = {}, {}, {}, []

    def __call__(self, tokens, context):
        branch, time = context.branch, context.time
        compute = context.step < 5
        if not compute:
            before = self.time[branch]
            moved = ((time - before).abs().mean() / before.abs().mean()).item()
            self.total[branch] += sum(c * moved ** (4 - i) for i, c in enumerate(self.coefficients))
            compute = not self.total[branch] < self.threshold
        self.time[branch] = time.clone()
        if not compute:
            return tokens + self.added[branch]
        self.computed.append(context.step)
        self.total[branch] = 0.0
        after = self.stack(tokens, context)
        self.added[branch] = after - tokens
        return after


def their_steps(spec, parts, theirs):
    """The exact clip's steps, but for what their loop leaves out."""
    plain, parts.transformer.stack = parts.transformer.stack, theirs
    try:
        return steps_of(spec.model_copy(update={"quality": None, "step_cache": None}), parts)
    finally:
        parts.transformer.stack = plain


@pytest.mark.parametrize("quality", step_cache.QUALITY)
def test_a_clip_equals_that_of_its_own_loop_bit_for_bit(parts, quality):
    spec, fit = ask(parts, quality=quality), tea_cache.fits()[NAME]
    theirs = Their(parts.transformer.run_blocks, fit.coefficients, fit.thresholds[quality])
    made = [digest(step.x) for step in steps_of(spec, parts)]
    assert made == [digest(step.x) for step in their_steps(spec, parts, theirs)]
    assert set(range(STEPS)) - set(theirs.computed) == step_cache.of(spec, parts.config, parts.transformer)


@pytest.mark.parametrize("far", [1.5, 3.0])
def test_with_a_polynomial_that_fits_the_model_some_steps_are_computed_and_some_are_not(parts, far):
    spec, line = ask(parts, quality="best"), (0.0, 0.0, 0.0, 1.0, 0.0)
    levels = schedule(STEPS, shift=spec.shift)
    moved = tea_cache.moved(parts.transformer, levels.times)
    threshold = far * sorted(moved)[STEPS // 2]
    skips = tea_cache.skipped(moved, line, threshold)
    assert 5 < len(skips) < STEPS - 6
    with step_cache.on(parts.transformer, skips):
        made = [digest(step.x) for step in steps_of(spec, parts)]
    theirs = Their(parts.transformer.run_blocks, line, threshold)
    assert made == [digest(step.x) for step in their_steps(spec, parts, theirs)]
    assert set(range(STEPS)) - set(theirs.computed) == skips


@given(st.lists(st.floats(0, 0.2), min_size=2, max_size=60), st.sampled_from(sorted(tea_cache.fits())))
def test_a_threshold_of_zero_skips_nothing_though_polynomials_fall_below_it(moved, name):
    assert tea_cache.skipped(moved, tea_cache.fits()[name].coefficients, 0.0) == frozenset()


def test_fresh_steps_and_the_first_five_are_computed(parts):
    moved = [0.0] * 20
    assert tea_cache.skipped(moved, (1.0, 0.0), 0.1) == frozenset(range(5, 20))
    assert tea_cache.skipped(moved, (1.0, 0.0), 0.1, {9}) == frozenset(range(5, 20)) - {9}


def test_it_is_planned_by_what_is_published_and_recorded_by_its_threshold(parts):
    spec = ask(parts, quality="standard", steps=50)
    assert step_cache.computed(spec, parts.config) == round(50 * 61 / 97)
    assert "about 31 of 50 steps are computed" in step_cache.told(spec, parts.config)
    assert snapshot.conditions(parts, spec)["skipped"] == "teacache 0.05"


def test_a_model_that_has_no_polynomial_is_refused_and_best_needs_none():
    vace = PUBLISHED["wan2.1-vace-1.3b"]
    asked = {"model": vace.name, "prompt": "a lake", "step_cache": "teacache"}
    with pytest.raises(BadOption, match=r"teacache, which is known for .*; wan2.1-vace-1.3b is none of them"):
        resolve(parse(**asked, quality="draft"), vace)
    spec = resolve(parse(**asked | {"model": NAME}), PUBLISHED[NAME])
    assert step_cache.computed(spec, PUBLISHED[NAME]) == 50
    assert "quality best computes every step" in step_cache.told(spec, PUBLISHED[NAME])
