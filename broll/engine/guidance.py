"""The velocity seam: what the samplers ask for, made of one or two forwards of the transformer.

    v = v_negative + scale * (v_positive - v_negative)        https://arxiv.org/abs/2207.12598

At scale 1 the negative prompt cancels out and its forward is not run. Nor is it in every step after `guidance_until`,
if the clip asks for that: what guidance adds changes slowly, so every second step is given what it added before,

    v = v_positive + kept,      kept = (scale - 1) * (v_positive - v_negative) of the step before

which stays far nearer to the exact clip than no guidance in late steps (docs/engine/sampler.md). A snapshot needs
nothing kept if it is taken before a step that runs both.

    CFG-Cache    https://arxiv.org/abs/2410.19355, without its weights for high and low frequencies
"""

from collections.abc import Callable, Collection

from broll.engine.sampler import Velocity
from broll.engine.shapes import Latent
from broll.errors import BadOption
from broll.spec import VideoSpec

Forward = Callable[[Latent, int], Latent]


def guided(positive: Forward, negative: Forward | None, scale: float, held: Collection[int]) -> Velocity:
    """Classifier-free guidance; the two forwards run one after the other, as in the official code."""
    if negative is None:
        return positive
    kept: Latent | None = None

    def velocity(x: Latent, index: int) -> Latent:
        nonlocal kept
        v = positive(x, index)
        if index in held and kept is not None:
            return v + kept
        against = negative(x, index)
        kept = (scale - 1) * (v - against) if index + 1 in held else None
        return against + scale * (v - against)

    return velocity


def held(spec: VideoSpec) -> frozenset[int]:
    """The steps, from 0, of a resolved spec that are given what guidance added before."""
    steps, until = spec.steps or 0, spec.guidance_until
    if spec.guidance == 1 or until is None:
        return frozenset()
    return frozenset(range(max(1, round(steps * until)), steps, 2))


def check(spec: VideoSpec) -> None:
    """Refuse a resolved spec that leaves out guidance where there is none."""
    if spec.guidance == 1 and spec.guidance_until not in (None, 1):
        raise BadOption(
            f"guidance_until is {spec.guidance_until:g}, but guidance is 1: there is none to leave out; "
            "ask for a guidance above 1, or for no guidance_until"
        )


def told(spec: VideoSpec) -> str:
    """One line on what was asked for; empty if the negative prompt is run in every step, as ever."""
    if spec.guidance_until in (None, 1):
        return ""
    asked, steps, kept = f"guidance until {spec.guidance_until:g}", spec.steps or 0, held(spec)
    if not kept:
        return f"{asked} changes nothing: {steps} steps are too few"
    part = f"{steps - len(kept)} of {steps} steps"
    return f"{asked}: the negative prompt is run in {part}, after the first {min(kept)} in every second"
