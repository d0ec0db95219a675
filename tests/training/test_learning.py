"""What is learned, and from what: noise levels, given frames, tempi, and a student that goes its teacher's way."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from broll.engine.conditioning import Text
from broll.engine.schedule import schedule
from broll.engine.transformer import Transformer
from training import run, sampling, student, transformer
from training.muon import Muon, orthogonal


@pytest.fixture
def numbers() -> dict[str, Any]:
    tiny = run.recipe()
    tiny["transformer"] |= {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2}
    tiny["text"]["d_model"], tiny["vae"]["z_dim"] = 16, 4
    return tiny


@pytest.fixture
def model(numbers: dict[str, Any]) -> Transformer:
    """Untrained, but with a head that says something."""
    made = transformer.start(numbers, "cpu")
    torch.nn.init.normal_(made.head.head.weight, std=0.2)
    return made


def lesson(
    numbers: dict[str, Any], model: Transformer, inner: int = 6, given: Tensor | None = None
) -> student.Lesson:
    """Two clips of four latent frames; nothing is given unless said."""
    torch.manual_seed(3)
    numbers["student"]["inner"] = inner
    prompts = (Text(torch.randn(2, 5, 16)), Text(torch.randn(2, 3, 16)))
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    return student.Lesson(
        numbers, model, prompts, torch.randn(2, 4, 4, 2, 4), nothing if given is None else given
    )


def taught(adapters: dict[str, student.Adapted]) -> None:
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter.up, std=0.2)


def test_a_share_of_clips_is_given_its_first_frames_and_some_of_these_the_last_too() -> None:
    given = transformer.given_frames(4000, 21, 0.3, random.Random(1))
    some = given.any(1)
    assert 0.27 < some.float().mean() < 0.33
    assert torch.equal(given[:, 0], some)  # whatever is given, the first frame is
    rows = given[some]
    assert 0.6 < (rows.sum(1) == 1).float().mean() < 0.75
    assert 0.07 < rows[:, -1].float().mean() < 0.13
    assert not rows.all(1).any()
    for row in rows[~rows[:, -1]]:
        assert row.sum() <= 7 and not row[int(row.sum()) :].any()  # in one piece
    assert not transformer.given_frames(50, 21, 0.0, random.Random(1)).any()


def test_shorter_clips_leave_something_to_learn() -> None:
    for frames in run.recipe()["transformer"]["latent_frames"]:
        given = transformer.given_frames(2000, frames, 1.0, random.Random(2))
        assert given.any(1).all() and not given.all(1).any()


def test_given_frames_are_clean_at_time_zero_and_not_learned(model: Transformer) -> None:
    """With the others of them changed, the loss stays: nobody asks for what is given."""
    given = torch.tensor([[True, False, False, False]] * 2)
    x0, text, sigma = torch.randn(2, 4, 4, 2, 4), Text(torch.randn(2, 5, 16)), torch.tensor([0.3, 0.8])
    torch.manual_seed(1)
    value = transformer.loss(model, x0, text, sigma, given)
    torch.manual_seed(1)
    noise = torch.randn_like(x0)
    level = (sigma[:, None] * ~given)[:, None, :, None, None]
    times = torch.tensor([[0, 300.0, 300, 300], [0, 800.0, 800, 800]])
    v = sampling.velocity(model, (1 - level) * x0 + level * noise, times, text)
    wrong = (v - (noise - x0))[:, :, 1:].square().sum() / x0.numel()
    torch.testing.assert_close(value, wrong)


def test_noise_levels_are_within_range_and_mostly_high() -> None:
    torch.manual_seed(1)
    levels = transformer.noise_levels(4000, 4.0)
    assert levels.min() >= 0 and levels.max() <= 1
    assert 0.6 < levels.mean() < 0.8
    assert (levels < 0.2).float().mean() > 0.03


def test_without_emphasis_the_loss_by_tempo_is_the_mean_squared_error() -> None:
    basis, weight = transformer.tempi(9, 1.0)
    error = torch.randn(2, 3, 9, 4, 5)
    by_tempo = torch.einsum("kf,bcfhw->bchwk", basis, error)
    torch.testing.assert_close((weight * by_tempo.square()).mean(), error.square().mean())


def test_emphasis_is_on_slow_change_and_leaves_stillness_and_flicker_alone() -> None:
    _, weight = transformer.tempi(21, 4.0)
    assert weight.mean() == pytest.approx(1.0)
    assert weight[1] == weight[6] == pytest.approx(4 * float(weight[0]))
    assert weight[7] == weight[20] == weight[0]


def test_a_clock_that_ends_by_a_moment_ends_its_cosine_then() -> None:
    clock = run.Clock(minutes=10.0, spent=2.0)
    clock.end_by(math.inf)
    assert clock.minutes == 10.0
    clock.end_by(time.monotonic() + 60)
    assert clock.minutes == pytest.approx(3.0, abs=1e-3)
    assert clock.rate(step=1000) == pytest.approx(0.02 + 0.98 * 0.25, abs=1e-3)
    clock.end_by(time.monotonic() - 1)
    assert list(clock.steps(5)) == []


def test_muon_makes_singular_values_near_one() -> None:
    for shape in ((2, 20, 50), (1, 64, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_muon_takes_all_of_a_shape_at_once_as_it_would_each_alone() -> None:
    shapes, lr, decay = ((8, 4), (8, 4), (4, 8, 3)), 0.02, 0.95
    start = [torch.randn(shape) for shape in shapes]
    together = [torch.nn.Parameter(p.clone()) for p in start]
    alone, momenta = [p.clone() for p in start], [torch.zeros(shape) for shape in shapes]
    optimizer = Muon(list(together), lr, decay)
    for _ in range(3):
        for p, one, momentum in zip(together, alone, momenta, strict=True):
            p.grad = torch.randn(p.shape)
            momentum.mul_(decay).add_(p.grad)
            update = orthogonal((p.grad + decay * momentum).flatten(1)[None])[0]
            wide = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            one.sub_(update.view_as(one), alpha=lr * wide)
        optimizer.step()
    for p, one in zip(together, alone, strict=True):
        torch.testing.assert_close(p.detach(), one, rtol=2e-2, atol=2e-3)  # bf16 where it is fast


def test_a_batch_says_the_same_of_a_clip_as_the_clip_alone(model: Transformer) -> None:
    """Padding behind the shorter caption weighs nothing."""
    x, times = torch.randn(2, 4, 4, 2, 4), torch.full((2, 4), 600.0)
    text = torch.randn(2, 5, 16)
    both = sampling.velocity(model, x, times, Text(text))
    for i in range(2):
        alone = sampling.velocity(model, x[i : i + 1], times[i : i + 1], Text(text[i : i + 1]))
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_an_untaught_student_is_its_teacher_and_so_is_a_taught_one_with_its_adapters_off(
    numbers: dict[str, Any], model: Transformer
) -> None:
    """Bit for bit."""
    own = lesson(numbers, model)
    x, place = torch.randn_like(own.x0), torch.tensor([0, 2])
    before = own.student(x, place)
    adapters = student.adapt(model, 4)
    assert len(adapters) == sum(isinstance(m, student.Adapted) for m in model.modules()) > 0
    assert torch.equal(own.student(x, place), before)
    taught(adapters)
    assert not torch.allclose(own.student(x, place), before, atol=1e-3)
    with student.teacher(adapters):
        assert torch.equal(own.student(x, place), before)
    assert not torch.allclose(own.student(x, place), before, atol=1e-3)


def test_only_the_adapters_learn(numbers: dict[str, Any], model: Transformer) -> None:
    adapters = student.adapt(model, 4)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {f"{name}.{part}" for name in adapters for part in ("down", "up")}


def test_a_teacher_of_one_step_takes_one_guided_step_of_euler(
    numbers: dict[str, Any], model: Transformer
) -> None:
    own = lesson(numbers, model, inner=1)
    x, place = torch.randn_like(own.x0), torch.tensor([0, 2])
    levels = schedule(4, shift=4.0, grid="distilled", sampler="euler").sigmas
    now, then = (torch.tensor([levels[p + k] for p in (0, 2)]) for k in (0, 1))
    guided = sampling.guided(model, x, 1000 * now[:, None].expand(2, 4), own.prompts, own.guidance)
    expected = x + (then - now)[:, None, None, None, None] * guided
    torch.testing.assert_close(own.teach(x, place), expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_of_more_steps_ends_at_the_same_level_by_another_way(
    numbers: dict[str, Any], model: Transformer
) -> None:
    """On a straight way, that is; this one bends a little."""
    x, place = torch.randn(2, 4, 4, 2, 4), torch.tensor([1, 3])
    ends = [lesson(numbers, model, inner).teach(x, place) for inner in (1, 6)]
    way = (ends[0] - x).norm()
    assert 1e-4 < (ends[1] - ends[0]).norm() / way < 0.5


def test_what_is_given_is_seen_clean_by_student_and_teacher_and_not_learned(
    numbers: dict[str, Any], model: Transformer
) -> None:
    given = torch.tensor([[True, False, False, False], [True, True, False, True]])
    own = lesson(numbers, model, given=given)
    x, place = torch.randn_like(own.x0), torch.tensor([0, 1])
    seen = own.put(x)
    assert torch.equal(seen[0, :, 0], own.x0[0, :, 0]) and torch.equal(seen[0, :, 1:], x[0, :, 1:])
    assert torch.equal(own.times(torch.tensor([0.5, 0.25]))[1], torch.tensor([0.0, 0.0, 250.0, 0.0]))
    other = torch.where(own.given, torch.randn_like(x), x)  # nobody sees what lies there
    assert torch.equal(own.student(other, place), own.student(x, place))
    end = torch.randn_like(x)
    assert torch.equal(own.loss(x, place, end), own.loss(x, place, torch.where(own.given, end + 9, end)))


def test_a_student_learns_its_teachers_way(numbers: dict[str, Any], model: Transformer) -> None:
    own = lesson(numbers, model, inner=2)
    adapters = student.adapt(model, 4)
    settings = numbers["student"] | {"reuse": 3}
    batches = list(student.examples(own, adapters, settings, alone=False))
    assert len(batches) == 3
    [alone] = student.examples(own, adapters, settings, alone=True)
    assert all(adapter.on for adapter in adapters.values())
    parameters = [p for a in adapters.values() for p in (a.down, a.up)]
    optimizer, losses = torch.optim.AdamW(parameters, 5e-3), []
    for _ in range(25):
        value = own.loss(*alone)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.7 * losses[0]
