"""Solvers by their properties: exact where they must be, of their order, and the same after a break."""

import pytest
import torch

from broll.engine.sampler import SAMPLERS
from broll.engine.schedule import GRIDS, Schedule, schedule
from broll.errors import BadOption

SHAPE = (1, 4, 2, 3, 5)


@pytest.fixture
def ends():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *SHAPE, generator=generator).unbind(0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_straight_path_is_solved_exactly_in_any_number_of_steps(name, steps, ends):
    x0, noise = ends
    levels = schedule(steps, shift=5.0, grid="official", sampler=name)
    start = (1 - levels.sigmas[0]) * x0 + levels.sigmas[0] * noise
    *_, last = SAMPLERS[name](lambda x, i: noise - x0, start, levels, None)
    torch.testing.assert_close(last.x, x0, atol=1e-4, rtol=1e-4)


def even(steps):
    """Even in log-SNR, between two levels inside (0, 1), so that the order of a solver shows."""
    sigmas = torch.sigmoid(torch.linspace(2.0, -2.0, steps + 1, dtype=torch.float64)).tolist()
    return Schedule(tuple(sigmas), tuple(1000 * s for s in sigmas[:-1]))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpm++", 2), ("unipc", 2)])
def test_error_falls_with_the_order_of_the_solver(name, order, ends):
    x0, noise = (e.double() for e in ends)

    def solve(steps):
        levels = even(steps)
        # a smooth nonlinear field, Lipschitz in x
        *_, last = SAMPLERS[name](
            lambda x, i: torch.sin(x) + levels.sigmas[i] * noise - 0.3 * x0, noise, levels, None
        )
        return last.x

    # multistep solvers end with a first-order step, which costs O(h^2) once
    truth = solve(2048)
    coarse, fine = ((solve(n) - truth).norm() for n in (16, 64))
    assert coarse / fine > 0.6 * 4**order


@pytest.mark.parametrize("name", SAMPLERS)
def test_going_on_from_any_step_gives_the_same_bits(name, ends):
    _, noise = ends
    levels = schedule(6, shift=3.0, grid="official", sampler=name)

    def run(resume=None):
        return list(SAMPLERS[name](lambda x, i: torch.tanh(x) - levels.sigmas[i], noise, levels, resume))

    whole = run()
    for i, step in enumerate(whole):
        rest = run(step)
        assert len(rest) == len(whole) - i - 1
        for a, b in zip(rest, whole[i + 1 :], strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.x0, b.x0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_velocity_is_asked_for_each_step(name, ends):
    asked = []
    levels = schedule(5, shift=3.0, grid="official", sampler=name)
    steps = SAMPLERS[name](lambda x, i: (asked.append(i), x)[1], ends[1], levels, None)
    next(steps)
    assert asked == [0]
    assert len(list(steps)) == 4
    assert asked == [0, 1, 2, 3, 4]


def test_levels_fall_from_noise_to_zero():
    for grid in GRIDS:
        for name in SAMPLERS:
            levels = schedule(30, shift=5.0, grid=grid, sampler=name)
            assert len(levels.sigmas) == 31
            assert all(a > b for a, b in zip(levels.sigmas, levels.sigmas[1:], strict=False))
            assert levels.sigmas[-1] == 0
            assert levels.sigmas[0] == pytest.approx(1, abs=1e-3)


def lightx2v(steps, shift):
    """Its scheduler's own arithmetic: 1000 levels, shifted, of which `denoising_step_list` picks a few."""
    sigmas = torch.linspace(1.0, 0.0, 1001)[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return sigmas[[1000 - t for t in steps]]


def test_the_distilled_grid_is_that_of_lightx2v():
    levels = schedule(4, shift=5.0, grid="distilled", sampler="euler")
    assert levels.times == pytest.approx((1000, 937.5, 833.3333, 625), abs=1e-4)
    wanted = lightx2v([1000, 750, 500, 250], 5.0)
    torch.testing.assert_close(torch.tensor(levels.sigmas[:-1]), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(levels.times), 1000 * wanted, rtol=1e-6, atol=0)
    assert schedule(4, shift=5.0, grid="official", sampler="euler").times == (999, 937, 833, 624)


def test_on_the_distilled_grid_euler_is_their_step(ends):
    """x0 = x - sigma v, then x = x0 + sigma' v; the last step ends in x0."""
    levels = schedule(4, shift=5.0, grid="distilled", sampler="euler")
    sigmas = lightx2v([1000, 750, 500, 250], 5.0).tolist()

    def velocity(x, i):
        return torch.tanh(x) - levels.times[i] / 1000

    x = ends[1]
    for i, step in enumerate(SAMPLERS["euler"](velocity, ends[1], levels, None)):
        v = velocity(x, i)
        x = x - sigmas[i] * v
        x = x + sigmas[i + 1] * v if i + 1 < len(sigmas) else x
        torch.testing.assert_close(step.x, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_sampler_starts_from_any_grids_first_level(name, grid, ends):
    levels = schedule(4, shift=5.0, grid=grid, sampler=name)
    for step in SAMPLERS[name](lambda x, i: torch.tanh(x), ends[1], levels, None):
        assert torch.isfinite(step.x).all()


def test_an_unknown_grid_is_refused():
    with pytest.raises(BadOption, match="official, diffusers or distilled"):
        schedule(5, shift=3.0, grid="karras")
