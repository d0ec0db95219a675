"""The velocity seam: what the samplers ask for, made of one or two forwards of the transformer.

    v = v_negative + scale * (v_positive - v_negative)        https://arxiv.org/abs/2207.12598

At scale 1 the negative prompt cancels out and its forward is not run.
"""

from collections.abc import Callable

from broll.engine.sampler import Velocity
from broll.engine.shapes import Latent

Forward = Callable[[Latent, int], Latent]


def guided(positive: Forward, negative: Forward | None, scale: float) -> Velocity:
    """Classifier-free guidance; the two forwards run one after the other, as in the official code."""
    if negative is None:
        return positive

    def velocity(x: Latent, index: int) -> Latent:
        v, against = positive(x, index), negative(x, index)
        return against + scale * (v - against)

    return velocity
