"""What else the engine can do with the 14B: products of 8-bit integers, a step made from the one before, 720p streamed.

Beside them the exact step, of some blocks, in the same minute.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks.on_gpu import models
from benchmarks.on_gpu.bench import Bench, Figures, relative
from benchmarks.on_gpu.forwards import once
from benchmarks.on_gpu.steps import NAME, SOME, Way, chosen, made, measure, seconds, streamed, use
from broll.engine import int8
from broll.engine.shapes import Tokens
from broll.engine.step_cache import StepCache
from broll.engine.transformer import Context, Transformer


def run(bench: Bench) -> None:
    model = made(bench, NAME)
    for size in ("480p", "720p"):
        plain(bench, model, size)
        use(model, chosen(bench, size))
        skipped = partial(from_the_one_before, bench, model, size)
        bench.attempt(f"t2v-14b {size}, step cached", seconds(bench, NAME, size, 2), skipped)
    told = bench.attempt("t2v-14b to int8, beside exact, one block", 5, partial(integers, bench, model))
    for size in ("480p", "720p") if told else ():
        for kind, way in (("", Way()), (", fused", Way(fused=True))):
            row, cost = f"t2v-14b {size} int8{kind}", 2 * seconds(bench, NAME, size, SOME)
            bench.attempt(row, cost, partial(measure, bench, model, size, way, SOME))
    del model
    bench.forget()
    streamed(bench, "720p")


def plain(bench: Bench, model: Transformer, size: str) -> None:
    use(model, chosen(bench, size))
    cost = seconds(bench, NAME, size, SOME)
    bench.attempt(f"t2v-14b {size} exact", cost, partial(measure, bench, model, size, Way(), SOME))


def from_the_one_before(bench: Bench, model: Transformer, size: str) -> Figures:
    """A whole forward whose blocks are left out; the one before it, of which it keeps the residual, had one block."""
    x, time = models.noise(bench, model, bench.latent(size)), torch.tensor([500.0], device=bench.device)
    context = models.context(bench, model, bench.latent(size))
    before = model.stack
    model.stack = StepCache(lambda tokens, context: next(model.each_block(tokens, context)), frozenset({1}))
    try:
        model(x, time, context, 0)
        return {"step_s": bench.timed(lambda: model(x, time, context, 1), 3)[-1]}
    finally:
        model.stack = before


def integers(bench: Bench, model: Transformer) -> Figures:
    """It changes the model for good; how many matrices, how far their integers reach, and what a block loses."""
    found: list[Tensor] = []
    count: list[int] = []

    def stack(tokens: Tokens, context: Context) -> Tokens:
        found.append(next(model.each_block(tokens, context)) - tokens)
        count.append(int8.use(model, bench.device))
        found.append(next(model.each_block(tokens, context)) - tokens)
        return tokens

    once(bench, model, "480p", stack)
    return {
        "matrices": count[0],
        "reach": int8.reach(bench.device),
        "error": relative(found[1], found[0].cpu()),
    }
