"""Whole trajectories against diffusers' schedulers, every step of them."""

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from broll.engine.sampler import SAMPLERS
from broll.engine.schedule import schedule
from tests.parity.judge import LIMIT, relative

THEIRS = {"unipc": UniPCMultistepScheduler, "dpm++": DPMSolverMultistepScheduler}
MIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) * 0.5


def field(x, t):
    """A velocity that is neither linear in x nor constant in time."""
    return torch.tanh(x @ MIX) * 1.3 - 0.7 * x * (t / 1000) + 0.1


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
@pytest.mark.parametrize("shift", [3.0, 5.0, 16.0])
@pytest.mark.parametrize("name", THEIRS)
def test_trajectory_equals_diffusers(name, steps, shift):
    theirs = THEIRS[name](prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    theirs.set_timesteps(steps)
    levels = schedule(steps, shift=shift, grid="diffusers", sampler=name)
    assert tuple(theirs.timesteps.tolist()) == levels.times
    assert torch.equal(theirs.sigmas, torch.tensor(levels.sigmas))
    x = y = torch.randn(1, 2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    ours = SAMPLERS[name](lambda x, i: field(x, levels.times[i]), x, levels, None)
    for t, step in zip(theirs.timesteps, ours, strict=True):
        y = theirs.step(field(y, t), t, y, return_dict=False)[0]
        assert relative(step.x, y) < LIMIT


def test_unipc_on_the_official_grid_equals_diffusers_solver_on_that_grid():
    """The grids differ, the solver does not: give diffusers' the official levels by hand."""
    levels = schedule(20, shift=5.0, grid="official")
    theirs = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    theirs.set_timesteps(sigmas=np.array(levels.sigmas[:-1]))
    x = y = torch.randn(1, 2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    ours = SAMPLERS["unipc"](lambda x, i: field(x, levels.times[i]), x, levels, None)
    for t, time, step in zip(theirs.timesteps, levels.times, ours, strict=True):
        y = theirs.step(field(y, time), t, y, return_dict=False)[0]
        assert relative(step.x, y) < LIMIT


def test_euler_equals_diffusers():
    levels = schedule(4, shift=5.0, grid="official", sampler="euler")
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=np.array(levels.sigmas[:-1]))
    x = y = torch.randn(1, 2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    ours = SAMPLERS["euler"](lambda x, i: field(x, levels.times[i]), x, levels, None)
    for t, time, step in zip(theirs.timesteps, levels.times, ours, strict=True):
        y = theirs.step(field(y, time), t, y, return_dict=False)[0]
        assert relative(step.x, y) < LIMIT


def test_the_two_grids_differ_by_what_was_measured():
    """At 50 steps and shift 5 the levels differ by at most 0.0043."""
    official, other = (schedule(50, shift=5.0, grid=g).sigmas for g in ("official", "diffusers"))
    assert max(abs(a - b) for a, b in zip(official, other, strict=True)) == pytest.approx(0.0043, abs=1e-4)
