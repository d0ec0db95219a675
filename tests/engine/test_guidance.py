"""Guidance that is computed in a part of the steps: whose forwards are run, and that all bits are those of the twin."""

import json

import pytest
import torch

from broll.cli import app
from broll.engine import fused, guidance, pipeline, sparse, step_cache
from broll.engine.config import PUBLISHED
from broll.engine.estimate import estimate
from broll.engine.load import Precision
from broll.engine.pipeline import generate, resolve
from broll.engine.sampler import SAMPLERS, Step
from broll.engine.schedule import schedule
from broll.engine.shapes import Grid
from broll.errors import BadOption
from broll.spec import guided_steps, parse
from tests.engine.steps import STEPS, WAN


def ask(parts, **fields):
    given = {"model": "tiny", "prompt": "a lake", "negative_prompt": "grey", "seed": 4, "steps": STEPS}
    return resolve(parse(**given | fields), parts.config)


def steps_of(spec, parts, resume=None):
    return [event for event in generate(spec, parts, resume=resume) if isinstance(event, Step)]


def forwards_of(spec, parts):
    """The branch and step of every forward that computes blocks."""
    seen = []
    handle = parts.transformer.blocks[0].register_forward_pre_hook(
        lambda _, given: seen.append((given[1].branch, given[1].step))
    )
    steps_of(spec, parts)
    handle.remove()
    return seen


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_clip_is_that_of_its_slow_twin_bit_for_bit(parts, sampler):
    """Both prompts in every step; but from step 5 on what guidance adds counts of every second step only."""
    spec = ask(parts, guidance_until=0.4, sampler=sampler)
    levels, added = schedule(STEPS, shift=spec.shift, grid=spec.grid, sampler=sampler), {}
    with torch.inference_mode():
        given = pipeline.condition(spec, parts, {})
        positive, negative = pipeline.forwards(parts, given, Grid(3, 2, 4), levels.times)

        def velocity(x, index):
            v, against = positive(x, index), negative(x, index)
            added[index] = (spec.guidance - 1) * (v - against)
            return v + added[index - 1] if index in (5, 7, 9, 11) else against + spec.guidance * (v - against)

        twin = list(SAMPLERS[sampler](velocity, pipeline.noise(Grid(3, 2, 4), 16, 4), levels, None))
    made = steps_of(spec, parts)
    assert all(torch.equal(a.x, b.x) for a, b in zip(made, twin, strict=True))
    assert not torch.equal(made[-1].x, steps_of(ask(parts, sampler=sampler), parts)[-1].x)


def test_the_negative_prompt_is_run_in_the_first_steps_and_then_in_every_second(parts):
    seen = forwards_of(ask(parts, guidance_until=0.4), parts)
    assert [step for branch, step in seen if branch == "positive"] == list(range(STEPS))
    assert [step for branch, step in seen if branch == "negative"] == [0, 1, 2, 3, 4, 6, 8, 10]


def test_what_guidance_adds_is_kept_for_one_step_and_only_where_it_is_needed():
    """Where nothing is kept, as after a snapshot that was taken elsewhere, both are run."""
    asked = []

    def forward(name, value):
        return lambda x, index: asked.append((name, index)) or torch.full((1, 1, 1, 1, 1), value)

    v = guidance.guided(forward("+", 3.0), forward("-", 1.0), 4.0, {1, 3})
    assert [float(v(torch.zeros(1, 1, 1, 1, 1), index)) for index in (1, 2, 3)] == [9.0, 9.0, 9.0]
    assert asked == [("+", 1), ("-", 1), ("+", 2), ("-", 2), ("+", 3)]


def test_until_the_end_no_bit_changes(parts):
    plain = steps_of(ask(parts), parts)[-1].x
    assert torch.equal(steps_of(ask(parts, guidance_until=1), parts)[-1].x, plain)
    assert torch.equal(steps_of(ask(parts, guidance_until=0.99), parts)[-1].x, plain)
    assert torch.equal(
        steps_of(ask(parts, guidance=1, guidance_until=1), parts)[-1].x,
        steps_of(ask(parts, guidance=1), parts)[-1].x,
    )


def test_going_on_from_a_step_after_which_both_are_run_gives_the_same_bits(parts):
    spec = ask(parts, guidance_until=0.4)
    steps = steps_of(spec, parts)
    rests = [step for step in steps[:-1] if step.resumable]
    assert [step.index for step in rests] == [0, 1, 2, 3, 5, 7, 9]
    for step in rests:
        assert torch.equal(steps_of(spec, parts, resume=step)[-1].x, steps[-1].x)


@pytest.mark.parametrize("until", [0.01, 0.5, 0.9, 1])
def test_as_many_forwards_are_run_as_are_counted(parts, until):
    spec = ask(parts, guidance_until=until)
    count = step_cache.forwards(spec, parts.config)
    assert len(forwards_of(spec, parts)) == count == STEPS + spec.guided
    assert spec.guided == STEPS - len(guidance.held(spec))


@pytest.mark.parametrize("quality", ["standard", "draft"])
def test_beside_steps_that_are_skipped_it_is_refused_and_where_none_are_it_is_not(parts, quality):
    with pytest.raises(BadOption, match=f"guidance_until is 0.5 and quality is {quality}"):
        ask(parts, guidance_until=0.5, quality=quality)
    few = ask(parts, guidance_until=0.5, quality=quality, steps=6)
    assert torch.equal(
        steps_of(few, parts)[-1].x, steps_of(ask(parts, guidance_until=0.5, steps=6), parts)[-1].x
    )


@pytest.mark.parametrize(
    ("steps", "guidance", "until", "count"),
    [
        (50, 5, None, 50),
        (50, 5, 1, 50),
        (50, 5, 0.2, 30),
        (4, 5, 0.1, 2),
        (50, 1, None, 0),
        (50, 1.0, 1, 0),
    ],
)
def test_how_many_steps_are_guided(steps, guidance, until, count):
    assert guided_steps(steps, guidance, until) == count


def test_without_guidance_there_is_none_to_leave_out():
    with pytest.raises(BadOption, match=r"guidance_until is 0.5, but guidance is 1"):
        resolve(parse(model=WAN.name, prompt="a lake", guidance=1, guidance_until=0.5), WAN)
    assert resolve(parse(model=WAN.name, prompt="a lake", guidance=1, guidance_until=1), WAN).guided == 0


@pytest.mark.parametrize("until", [0, -0.5, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(until):
    with pytest.raises(BadOption, match="guidance_until"):
        parse(model="tiny", prompt="a lake", guidance_until=until)


def test_what_it_comes_to_is_said_in_one_line(parts):
    assert guidance.told(ask(parts)) == guidance.told(ask(parts, guidance_until=1)) == ""
    told = guidance.told(ask(parts, guidance_until=0.5))
    assert told == (
        "guidance until 0.5: the negative prompt is run in 9 of 12 steps, after the first 6 in every second"
    )
    assert "changes nothing: 12 steps are too few" in guidance.told(ask(parts, guidance_until=0.99))


# --- what it costs ----------------------------------------------------------------------------------------


def whole(**fields):
    return resolve(parse(model=WAN.name, prompt="a lake", **fields), WAN)


def test_the_estimate_counts_the_forwards_that_are_left():
    def denoise(**fields):
        return estimate(whole(**fields), WAN, precision=Precision()).stage("denoise")

    plain, less = denoise(), denoise(guidance_until=0.2)
    assert less.operations.total / plain.operations.total == pytest.approx(0.8)
    assert less.reads / plain.reads == pytest.approx(0.8)
    assert less.working == plain.working


def test_sparse_pairs_are_counted_in_the_forwards_that_are_run():
    """The first 12 steps are dense; of their negative prompts, those of steps 5, 7, 9 and 11 are not run."""
    spec = whole(sparsity=0.5, guidance_until=0.1)
    part = sparse.share(whole(sparsity=0.5, guidance=1), WAN)  # of 50 forwards, 12 are dense
    rest = (50 * part - 12) / 38
    assert spec.guided == 27
    assert sparse.share(spec, WAN) == pytest.approx((12 + 8 + (77 - 20) * rest) / 77)
    assert sparse.share(spec, WAN, step_cache.forwards(spec, WAN)) == sparse.share(spec, WAN)


def test_compiling_pays_by_the_forwards_that_are_run():
    large = PUBLISHED["wan2.1-t2v-14b"]
    given = {"model": large.name, "prompt": "a lake", "width": 832, "height": 480, "guidance": 5.0}
    assert [fused.pays(resolve(parse(**given, steps=s), large), large) for s in (1, 50)] == [False, True]
    steps = next(s for s in range(1, 50) if fused.pays(resolve(parse(**given, steps=s), large), large))
    assert not fused.pays(resolve(parse(**given, steps=steps, guidance_until=0.1), large), large)


# --- the command line -------------------------------------------------------------------------------------


def test_generate_and_plan_say_what_it_comes_to_and_a_repeated_clip_is_the_same(place, capsys):
    ask = ["generate", "a lake", "--model", "tiny", "--seed", "3", "--steps", "10", "--json"]
    assert app.run([*ask, "--guidance-until", "0.5"]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert "guidance until 0.5: the negative prompt is run in 7 of 10 steps" in err
    assert made["spec"]["guidance_until"] == 0.5
    assert app.run(["generate", "--like", made["file"], "--json"]) == 0
    assert json.loads(capsys.readouterr()[0])["latents_sha256"] == made["latents_sha256"]
    assert app.run(["plan", "a lake", "--model", "tiny", "--steps", "10", "--guidance-until", "0.5"]) == 0
    assert "in 7 of 10 steps" in capsys.readouterr()[0]


def test_a_clip_without_guidance_refuses_it_in_one_line(place, capsys):
    words = ["generate", "a lake", "--model", "tiny", "--guidance", "1", "--guidance-until", "0.5"]
    assert app.run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "[bad_option]: guidance_until is 0.5, but guidance is 1" in err.splitlines()[-1]
