"""From noise to latents: solvers of dx/dsigma = v(x, sigma), each a generator of steps.

A solver asks for the velocity once a step. Multistep solvers remember earlier predictions in `history`,
which travels in the Step, so that a run continued from any Step gives the same bits.

With alpha = 1 - sigma, lambda = log(alpha / sigma) and x0 = x - sigma v:

    Euler      x' = x + (sigma' - sigma) v
    DPM++ 2M   https://arxiv.org/abs/2211.01095   algorithm 2, midpoint
    UniPC      https://arxiv.org/abs/2302.04867   order 2, B(h) = e^h - 1, predicting x0
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from broll.engine.schedule import Schedule
from broll.engine.shapes import Latent

Velocity = Callable[[Latent, int], Latent]  # of x at the level of step `index`


@dataclass(frozen=True)
class Step:
    """After step `index`: x at `sigma`, and the clip as the model sees it now."""

    index: int
    sigma: float
    x: Latent
    x0: Latent
    history: tuple[Tensor, ...] = ()
    resumable: bool = True  # what is here suffices to go on: not where the next step is skipped


Sampler = Callable[[Velocity, Latent, Schedule, Step | None], Iterator[Step]]


def log_snr(sigma: float) -> float:
    """Lambda = log((1 - sigma) / sigma), with its limits."""
    if sigma <= 0:
        return math.inf
    return -math.inf if sigma >= 1 else math.log((1 - sigma) / sigma)


def start(x: Latent, resume: Step | None) -> tuple[int, Latent, tuple[Tensor, ...]]:
    return (0, x, ()) if resume is None else (resume.index + 1, resume.x, resume.history)


def euler(velocity: Velocity, x: Latent, schedule: Schedule, resume: Step | None = None) -> Iterator[Step]:
    """First order; what step-distilled models are made for."""
    first, x, _ = start(x, resume)
    for i in range(first, schedule.steps):
        s, s_next = schedule.sigmas[i : i + 2]
        v = velocity(x, i)
        x0 = x - s * v
        x = x + (s_next - s) * v
        yield Step(i, s_next, x, x0)


def exponential_step(x: Tensor, x0: Tensor, s: float, t: float) -> Tensor:
    """From level s to t along a constant prediction x0: exact if the model never changed its mind."""
    return t / s * x - (1 - t) * math.expm1(log_snr(s) - log_snr(t)) * x0


def dpm_2m(velocity: Velocity, x: Latent, schedule: Schedule, resume: Step | None = None) -> Iterator[Step]:
    """Second order by the previous prediction; first order in the first and the last step."""
    sigmas = schedule.sigmas
    first, x, history = start(x, resume)
    for i in range(first, schedule.steps):
        s, t = sigmas[i : i + 2]
        x0 = x - s * velocity(x, i)
        direction = x0
        if history and t > 0:
            h, h_before = log_snr(t) - log_snr(s), log_snr(s) - log_snr(sigmas[i - 1])
            direction = x0 + 0.5 * h / h_before * (x0 - history[0])
        x = exponential_step(x, direction, s, t)
        history = (x0,)
        yield Step(i, t, x, x0, history)


def unipc(velocity: Velocity, x: Latent, schedule: Schedule, resume: Step | None = None) -> Iterator[Step]:
    """Predict, ask the model, correct the last step by what it said, predict again.

    history: predictions at this level and the one before, and the corrected x that the last step left from.
    """
    sigmas = schedule.sigmas
    first, x, history = start(x, resume)
    for i in range(first, schedule.steps):
        m = x - sigmas[i] * velocity(x, i)
        if i > 0:
            x = _correct(history, m, sigmas, i)
        before = history[:1]
        second = len(before) == 1 and i + 1 < schedule.steps  # the last step is first order
        left = x
        x = _predict(x, m, before[0] if second else None, sigmas, i)
        history = (m, left, *before)
        yield Step(i, sigmas[i + 1], x, m, history)


def _predict(x: Tensor, m: Tensor, before: Tensor | None, sigmas: tuple[float, ...], i: int) -> Tensor:
    """UniP: from level i to i + 1."""
    s, t = sigmas[i : i + 2]
    if before is None:
        return exponential_step(x, m, s, t)
    h = log_snr(t) - log_snr(s)
    r = (log_snr(sigmas[i - 1]) - log_snr(s)) / h
    return exponential_step(x, m + 0.5 / r * (before - m), s, t)


def _correct(history: tuple[Tensor, ...], m: Tensor, sigmas: tuple[float, ...], i: int) -> Tensor:
    """UniC: redo the step from level i - 1 to i, knowing the prediction m at its end."""
    m0, left, *before = history
    s, t = sigmas[i - 1 : i + 1]
    h = log_snr(t) - log_snr(s)
    if not before:
        return exponential_step(left, m0 + 0.5 * (m - m0), s, t)
    # Solve [[1, 1], [r, 1]] rho = b, the conditions for order 2 (eq. 10 of the paper).
    r = (log_snr(sigmas[i - 2]) - log_snr(s)) / h
    growth = math.expm1(-h)
    phi2 = growth / -h - 1
    b1, b2 = phi2 / growth, 2 * (phi2 / -h - 0.5) / growth
    rho = (b1 - b2) / (1 - r)
    correction = rho / r * (before[0] - m0) + (b1 - rho) * (m - m0)
    return exponential_step(left, m0 + correction, s, t)


SAMPLERS: dict[str, Sampler] = {"unipc": unipc, "dpm++": dpm_2m, "euler": euler}
