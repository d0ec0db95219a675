"""Flow-matching noise levels, and the times that the transformer is told.

sigma runs from near 1 (noise) to 0 (video), x = (1 - sigma) x0 + sigma noise. A shift above 1 spends more
steps at high noise, where layout and motion are decided:

    sigma' = shift * sigma / (1 + (shift - 1) * sigma)          https://arxiv.org/abs/2403.03206

The same words mean different grids in different code; a seed gives the same clip only on the same grid.

    official     UniPC, Euler: linspace(0.999, 0, N + 1)[:-1];  DPM++: linspace(1, 0, N + 1)[:-1]
    diffusers    UniPC, Euler: linspace(1, 0.001, N + 1)[:-1], the first level 1e-6 below 1;
                 DPM++: linspace(0.999, 0, N + 1)[:-1]
    distilled    linspace(1, 0, N + 1)[:-1]: the levels that step-distilled models were taught, exactly

The level shifts, then ends at 0. The transformer sees trunc(1000 * sigma); on `distilled`, 1000 * sigma.

    WAN 2.1      wan/utils/fm_solvers_unipc.py, fm_solvers.py
    diffusers    UniPCMultistepScheduler, DPMSolverMultistepScheduler (use_flow_sigmas=True)
    LightX2V     lightx2v/models/schedulers/wan/step_distill/scheduler.py (denoising_step_list 1000, 750, 500, 250)
"""

from dataclasses import dataclass

import numpy as np

from broll.errors import BadOption

GRIDS = ("official", "diffusers", "distilled")
ENDS = {  # (grid, is it DPM++): first and last level before the shift
    ("official", False): (0.999, 0.0),
    ("official", True): (1.0, 0.0),
    ("diffusers", False): (1.0, 0.001),
    ("diffusers", True): (0.999, 0.0),
    ("distilled", False): (1.0, 0.0),
    ("distilled", True): (1.0, 0.0),
}


@dataclass(frozen=True)
class Schedule:
    """`sigmas` has one more entry than there are steps; the last is 0. `times` has one per step."""

    sigmas: tuple[float, ...]
    times: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.times)


def schedule(steps: int, *, shift: float, grid: str = "official", sampler: str = "unipc") -> Schedule:
    """Noise levels of one run. Levels are rounded to fp32, as both sources store them."""
    if grid not in GRIDS:
        raise BadOption(f"grid is {grid!r}; it can be {', '.join(GRIDS[:-1])} or {GRIDS[-1]}")
    top, bottom = ENDS[grid, sampler == "dpm++"]
    levels = np.linspace(top, bottom, steps + 1)[:-1]
    levels = shift * levels / (1 + (shift - 1) * levels)
    if grid == "diffusers" and sampler != "dpm++":
        levels[0] -= 1e-6
    times = 1000 * levels if grid == "distilled" else np.trunc(1000 * levels)
    return Schedule((*map(float, levels.astype(np.float32)), 0.0), tuple(map(float, times)))
