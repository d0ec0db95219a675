"""Steps that are skipped: which, by whom, and that whatever is computed keeps its bits."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broll.engine import magnitudes, snapshot, step_cache
from broll.engine.config import PUBLISHED
from broll.engine.estimate import estimate
from broll.engine.interrupt import Interruptible
from broll.engine.load import Precision, describe
from broll.engine.pipeline import digest, generate, resolve
from broll.engine.sampler import Step
from broll.engine.shapes import Grid
from broll.engine.step_cache import QUALITY, Dial, StepCache, skipped
from broll.errors import BadCheckpoint, BadOption
from broll.spec import LoraUse, parse
from tests import checkpoints
from tests.cases import long
from tests.engine.steps import FALLING, STEPS, WAN


def ask(parts, **fields):
    given = {"model": "tiny", "prompt": "a lake", "seed": 4, "steps": STEPS} | fields
    return resolve(parse(**given), parts.config)


def steps_of(spec, parts, resume=None):
    with torch.inference_mode():
        return [event for event in generate(spec, parts, resume=resume) if isinstance(event, Step)]


def skips_of(spec, parts):
    return step_cache.of(spec, parts.config, parts.transformer)


def other_steps_of(spec, parts):
    """The slow twin: every step is computed, and those that are skipped are then made from what the others added."""
    skips, plain, added = skips_of(spec, parts), parts.transformer.run_blocks, {}

    def stack(tokens, context):
        after = plain(tokens, context)
        if context.step in skips:
            return tokens + added[context.branch]
        added[context.branch] = after - tokens
        return after

    parts.transformer.stack = stack
    try:
        return steps_of(spec.model_copy(update={"quality": None}), parts)
    finally:
        parts.transformer.stack = plain


# --- which steps ------------------------------------------------------------------------------------------

ratios = st.lists(st.floats(0.5, 1.5), min_size=2, max_size=60)


@given(ratios, st.integers(0, 9), st.floats(0, 1))
def test_a_threshold_of_zero_skips_nothing(row, most, retention):
    assert skipped([row], Dial(0.0, most, retention)) == frozenset()


@given(ratios, st.floats(0, 2), st.integers(0, 6), st.floats(0, 1), st.sets(st.integers(0, 59)))
def test_never_at_the_beginning_never_too_many_in_a_row_and_never_where_it_must_not(
    row, threshold, most, retention, fresh
):
    found = skipped([row, row[::-1]], Dial(threshold, most, retention), fresh)
    assert not found & fresh
    assert all(step >= max(1, int(retention * len(row) + 0.5)) for step in found)
    assert not any(set(range(i, i + most + 1)) <= found for i in range(len(row)))


@given(ratios, ratios, st.floats(0, 1))
def test_two_branches_skip_what_the_one_that_changes_more_lets_them(one, other, threshold):
    one, other = one[: len(other)], other[: len(one)]
    dial, both = Dial(threshold, 100, 0.0), [one, other]
    begin = [min({*range(1, len(one) + 1)} - skipped([row], dial)) for row in both]
    assert min({*range(1, len(one) + 1)} - skipped(both, dial)) == min(begin)


@given(ratios, st.floats(0, 1), st.floats(0, 1))
def test_a_first_run_of_skips_is_no_shorter_for_a_higher_threshold(row, low, high):
    low, high = sorted((low, high))

    def first(threshold):
        found = skipped([row], Dial(threshold, 100, 0.0))
        return next(step for step in range(1, len(row) + 1) if step not in found)

    assert first(low) <= first(high)


def test_published_models_compute_what_is_published():
    """MagCache's README: standard takes the 1.3B from 189 s to 87 s, draft the 14B from 3604 s to 1300 s."""
    counts = {}
    for name in ("wan2.1-t2v-1.3b", "wan2.1-t2v-14b"):
        for quality in QUALITY:
            spec = resolve(parse(model=name, prompt="a lake", quality=quality), PUBLISHED[name])
            counts[name, quality] = step_cache.computed(spec, PUBLISHED[name]) / 50
    assert counts["wan2.1-t2v-1.3b", "standard"] == pytest.approx(87 / 189, abs=0.05)
    assert counts["wan2.1-t2v-14b", "draft"] == pytest.approx(1300 / 3604, abs=0.01)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_model_but_one_has_its_ratios(name):
    found = magnitudes.of(PUBLISHED[name])
    assert (found is None) == (name == "wan2.1-flf2v-14b")
    if found is not None:
        usual = PUBLISHED[name].defaults.steps
        assert len(found.positive) == len(found.negative) == usual
        assert found.positive[0] == found.negative[0] == 1.0


def test_a_lora_that_begins_or_ends_makes_its_step_be_computed():
    plain = step_cache.by_magnitude(
        resolve(parse(model=WAN.name, prompt="a lake", quality="draft"), WAN), WAN
    )
    first = min(plain)
    use = LoraUse(name="film", sha256="0" * 64, first=first, last=first + 1)
    spec = resolve(parse(model=WAN.name, prompt="a lake", quality="draft", loras=(use,)), WAN)
    skips = step_cache.by_magnitude(spec, WAN)
    assert skips
    assert not skips & {first, first + 2}


def test_few_steps_skip_nothing_and_say_so(parts):
    for fields in ({"steps": 8}, {"grid": "distilled"}):
        spec = ask(parts, quality="draft", **fields)
        assert not skips_of(spec, parts)
        assert step_cache.computed(spec, parts.config) == spec.steps
        assert "changes nothing" in step_cache.told(spec, parts.config)
    assert step_cache.told(ask(parts), parts.config) == ""
    assert step_cache.told(ask(parts, quality="best"), parts.config) == ""
    assert "of 12 steps are computed" in step_cache.told(ask(parts, quality="draft"), parts.config)


def test_a_model_of_which_nothing_is_known_says_how_to_measure_it(tiny_models):
    config = describe(tiny_models / "tiny", "tiny")
    with pytest.raises(BadOption, match="broll bench calibrate --model tiny"):
        resolve(parse(model="tiny", prompt="a lake", quality="draft", steps=STEPS), config)
    assert resolve(parse(model="tiny", prompt="a lake", quality="best", steps=STEPS), config)


# --- the stack --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", QUALITY)
@pytest.mark.parametrize("sampler", ["unipc", *long("euler")])
def test_a_clip_with_skipped_steps_is_that_of_its_slow_twin_bit_for_bit(parts, quality, sampler):
    spec = ask(parts, quality=quality, sampler=sampler)
    made, twin = steps_of(spec, parts), other_steps_of(spec, parts)
    assert [digest(step.x) for step in made] == [digest(step.x) for step in twin]
    assert digest(made[-1].x) != digest(steps_of(ask(parts, sampler=sampler), parts)[-1].x)


def test_best_is_the_clip_that_was_made_without_asking(parts):
    plain = digest(steps_of(ask(parts), parts)[-1].x)
    assert digest(steps_of(ask(parts, quality="best"), parts)[-1].x) == plain


def test_skipped_steps_run_no_block_and_the_stack_is_given_back(parts):
    spec = ask(parts, quality="draft")
    calls, before = [], parts.transformer.stack
    handle = parts.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    steps_of(spec, parts)
    handle.remove()
    assert len(calls) == 2 * step_cache.computed(spec, parts.config) < 2 * STEPS
    assert parts.transformer.stack == before


def test_each_branch_has_its_own_residual(parts):
    model, asked = parts.transformer, []

    def stack(tokens, context):
        asked.append((context.branch, context.step))
        return tokens + (1.0 if context.branch == "positive" else 2.0)

    cache = StepCache(stack, frozenset({1, 2}))
    text = torch.zeros(1, 4, model.config.text_dim)
    one = {branch: model.context(Grid(1, 4, 4), text, branch=branch) for branch in magnitudes.BRANCHES}
    tokens = torch.zeros(1, 4, model.config.dim)
    for step in range(4):
        for branch, added in (("positive", 1.0), ("negative", 2.0)):
            after = cache(tokens + step, dataclasses.replace(one[branch], step=step))
            assert torch.equal(after, tokens + step + added)
    assert asked == [("positive", 0), ("negative", 0), ("positive", 3), ("negative", 3)]


def test_without_what_was_kept_a_step_is_computed(parts):
    """As after a snapshot that was taken elsewhere, under other ratios."""
    spec = ask(parts, quality="draft")
    skips = skips_of(spec, parts)
    steps = steps_of(spec, parts)
    odd = min(skips)
    assert len(steps_of(spec, parts, resume=steps[odd - 1])) == STEPS - odd


def test_a_clip_continued_before_a_computed_step_has_the_same_bits(parts):
    spec = ask(parts, quality="draft")
    skips, steps = skips_of(spec, parts), steps_of(spec, parts)
    rests = [step for step in steps[:-1] if step.resumable]
    assert [step.index for step in rests] == [i for i in range(STEPS - 1) if i + 1 not in skips]
    assert 2 < len(rests) < STEPS - 1
    for step in rests:
        assert digest(steps_of(spec, parts, resume=step)[-1].x) == digest(steps[-1].x)


def test_a_stop_between_blocks_reaches_a_cached_stack(parts):
    class Enough(Exception):
        pass

    spec, before, checks = ask(parts, quality="draft"), parts.transformer.stack, []

    def check():
        checks.append(1)
        if len(checks) > 20:
            raise Enough

    parts.transformer.stack = inner = Interruptible(parts.transformer, check)
    try:
        with pytest.raises(Enough):
            steps_of(spec, parts)
        assert parts.transformer.stack is inner
    finally:
        parts.transformer.stack = before
    assert len(checks) == 21


def test_snapshots_say_which_steps_are_skipped_and_exact_clips_do_not(parts):
    spec = ask(parts, quality="draft")
    told = snapshot.conditions(parts, spec)["skipped"]
    assert [int(step) for step in told.split()] == sorted(skips_of(spec, parts))
    assert snapshot.conditions(parts, ask(parts)) == snapshot.conditions(parts)


# --- what it costs ----------------------------------------------------------------------------------------


def test_the_estimate_counts_computed_forwards_and_the_residuals():
    def cost(**fields):
        spec = resolve(parse(model=WAN.name, prompt="a lake", **fields), WAN)
        return estimate(spec, WAN, precision=Precision()).stage("denoise"), step_cache.computed(spec, WAN)

    (plain, all_of_them), (skipping, computed) = cost(), cost(quality="standard")
    assert skipping.operations.total / plain.operations.total == pytest.approx(computed / all_of_them)
    assert skipping.working - plain.working == 2 * 4 * 21 * 30 * 52 * WAN.transformer.dim
    one = cost(quality="standard", guidance=1.0)[0].working - cost(guidance=1.0)[0].working
    assert one == 4 * 21 * 30 * 52 * WAN.transformer.dim


# --- where the ratios come from ---------------------------------------------------------------------------


def test_ratios_for_another_number_of_steps_are_the_nearest_ones():
    row = tuple(float(i) for i in range(1, 51))
    assert magnitudes.at(row, 50) == row
    assert magnitudes.at(row, 2) == (1.0, 50.0)
    assert magnitudes.at(row, 25)[:3] == (1.0, 3.0, 5.0)
    assert magnitudes.at(row, 1) == (50.0,)


def test_what_was_measured_lies_in_the_models_folder_and_comes_first(tmp_path):
    folder = checkpoints.diffusers_folder(tmp_path / "tiny")
    assert magnitudes.of(describe(folder, "tiny")) is None
    (folder / magnitudes.NAME).write_text(magnitudes.written(FALLING))
    assert magnitudes.of(describe(folder, "tiny")) == FALLING


@pytest.mark.parametrize(
    "text",
    [
        "source = 1", 'source = ""\npositive = [1.0, 1.0]', 'source = ""\npositive = [1.0, 1.0]\nnegative = [1.0]',
        'source = ""\npositive = [1.0, 0]\nnegative = [1.0, 1.0]', "no toml",
        'source = ""\npositive = [1.0, nan]\nnegative = [1.0, 1.0]',
        'source = ""\npositive = [1.0, "2"]\nnegative = [1.0, 1.0]',
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, text):
    (tmp_path / magnitudes.NAME).write_text(text)
    with pytest.raises(BadCheckpoint, match=magnitudes.NAME):
        magnitudes.read(tmp_path)
