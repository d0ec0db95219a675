"""Clips of one shape in one forward: each is what it is alone, whoever comes, goes and fails beside it."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from broll.engine import batching, snapshot
from broll.engine.batching import Meeting
from broll.engine.config import PUBLISHED
from broll.engine.load import load
from broll.engine.pipeline import generate, resolve
from broll.engine.sampler import Step
from broll.spec import parse
from tests.parity.judge import relative

PROMPTS = ["a cat", "a lighthouse on a rocky coast, waves, slow pan to the left", "waves"]


@pytest.fixture(scope="module")
def parts(tiny_models):
    return load(tiny_models / "tiny", "tiny")


def spec(parts, prompt, **fields):
    given = {"model": "tiny", "prompt": prompt, "width": 32, "height": 32, "frames": 9, "steps": 4, "seed": 5}
    return resolve(parse(**given | fields), parts.config)


def last(spec, parts):
    return [event for event in generate(spec, parts) if isinstance(event, Step)][-1]


def each(count, work):
    """What work(place) gives or raises, each in a thread of its own."""
    found = [None] * count

    def run(place):
        try:
            found[place] = work(place)
        except Exception as error:  # noqa: BLE001  it is looked at
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def together(specs, parts):
    return each(len(specs), lambda place: last(specs[place], parts))


def patient(model):
    """A meeting that waits for all."""
    return Meeting(model, _took_s=30.0)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_clips_made_together_are_those_made_alone(parts, guidance):
    specs = [spec(parts, prompt, seed=i, guidance=guidance) for i, prompt in enumerate(PROMPTS)]
    meeting = Meeting(parts.transformer)
    found = together(specs, replace(parts, meeting=meeting))
    for own, made in zip(specs, found, strict=True):
        assert relative(made.x, last(own, parts).x) < 1e-5
    assert max(meeting.at_once) > 1
    assert sum(meeting.at_once) == len(specs) * 4 * (1 if guidance == 1 else 2)


def test_a_clip_with_fewer_steps_leaves_and_one_that_comes_later_joins(parts):
    meeting = Meeting(parts.transformer)
    own = [
        spec(parts, "a cat", steps=2),
        spec(parts, "a dog", steps=9),
        spec(parts, "a bird", steps=5, sampler="euler"),
    ]
    found = together(own, replace(parts, meeting=meeting))
    for one, made in zip(own, found, strict=True):
        assert relative(made.x, last(one, parts).x) < 1e-5


def calls(parts, *prompts, frames=3):
    out = []
    for place, prompt in enumerate(prompts):
        text = parts.text(prompt)
        from broll.engine import conditioning
        from broll.engine.shapes import Grid

        given = conditioning.collapsed(text, parts.config.transformer.text_len)
        context = parts.transformer.context(Grid(frames, 2, 4), given.features, text_bias=given.bias)
        x = torch.randn(
            1, parts.config.transformer.in_dim, frames, 2, 4, generator=torch.Generator().manual_seed(place)
        )
        out.append((x, torch.tensor([900.0 - 100 * place]), context, place))
    return out


def met(meeting, given):
    """All called at once."""
    seated = threading.Barrier(len(given))

    def work(place):
        with torch.inference_mode(), meeting.seat() as seat:
            seated.wait(10)
            return seat(*given[place])

    return each(len(given), work)


def test_all_that_have_called_are_one_forward_at_their_own_times_and_texts(parts):
    with torch.inference_mode():
        given = calls(parts, *PROMPTS)
        alone = [parts.transformer(*call) for call in given]
    meeting = patient(parts.transformer)
    for made, truth in zip(met(meeting, given), alone, strict=True):
        assert relative(made, truth) < 1e-5
    assert meeting.at_once == [3]


def test_what_is_not_alike_is_computed_one_after_the_other(parts):
    with torch.inference_mode():
        given = [*calls(parts, "a cat"), *calls(parts, "a dog", frames=2)]
        full = calls(parts, "a")[0]
        given.append((*full[:2], replace(full[2], text_bias=None), 0))  # a prompt that leaves no padding
        alone = [parts.transformer(*call) for call in given]
    meeting = patient(parts.transformer)
    for made, truth in zip(met(meeting, given), alone, strict=True):
        assert torch.equal(made, truth)
    assert meeting.at_once == [1, 1, 1]


def test_an_error_is_raised_where_it_belongs_and_memory_that_does_not_suffice_for_all_may_for_each(parts):
    given = calls(parts, "a cat", "a dog")

    def model(x, time, context, step):
        if len(x) > 1:
            raise torch.OutOfMemoryError("too much")
        if step == 1:
            raise ValueError("its own")
        return x * 2

    first, second = met(patient(model), given)
    assert torch.equal(first, given[0][0] * 2)
    assert isinstance(second, ValueError)
    assert str(second) == "its own"


def test_nobody_waits_longer_than_a_forward_for_one_who_does_not_call(parts):
    (call,) = calls(parts, "a cat")
    meeting = Meeting(parts.transformer, _took_s=0.2)
    with torch.inference_mode(), meeting.seat() as seat, meeting.seat():
        begin = time.monotonic()
        seat(*call)
        assert 0.2 <= time.monotonic() - begin < 5
    assert meeting.at_once == [1]


def test_what_a_clip_must_have_in_common_and_which_are_made_alone(parts):
    own = spec(parts, "a cat")
    assert batching.kind(own, parts.config) == batching.kind(
        spec(parts, "a dog", seed=9, steps=2), parts.config
    )
    assert batching.kind(own, parts.config) != batching.kind(spec(parts, "a cat", frames=5), parts.config)
    lora = {"name": "x", "sha256": "0" * 64}
    for fields in (
        {"sparsity": 0.5, "frames": 17},
        {"loras": [lora | {"first": 0, "last": 1}]},
    ):
        assert batching.kind(spec(parts, "a cat", **fields), parts.config) is None, fields
    assert batching.kind(spec(parts, "a cat", loras=[lora]), parts.config) is not None
    skips = spec(parts, "a cat", steps=20).model_copy(update={"quality": "standard"})
    assert batching.kind(skips, parts.config) is None
    large = PUBLISHED["wan2.1-t2v-1.3b"]
    whole = resolve(parse(model=large.name, prompt="a cat"), large)
    assert batching.kind(whole, large) is None
    small = resolve(parse(model=large.name, prompt="a", width=256, height=256, frames=1), large)
    assert batching.kind(small, large) is not None


def test_a_record_says_so(parts):
    own = spec(parts, "a cat")
    assert "batched" not in snapshot.conditions(parts, own)
    assert snapshot.conditions(replace(parts, meeting=Meeting(parts.transformer)), own)["batched"]
