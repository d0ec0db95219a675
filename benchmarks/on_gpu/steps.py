"""One forward of a published transformer with random weights, exact and with each lever, against its roof.

    roof    operations of the matrix products and of attention (counts.py), each over the rate measured for it
    share   all operations a second, of what the data sheet gives for dense bf16

Every block is timed by itself. Where only some are run, the others are counted as their median, and `blocks` says how
many were run: all 40 are the same work.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu import models, rates
from benchmarks.on_gpu.bench import PEAK, Bench, Figures, Mark, between
from broll.engine import attention, compiled, counts, fused
from broll.engine.attention import Attend, AttendCall
from broll.engine.compiled import Compiler
from broll.engine.shapes import Heads, Keys, Tokens
from broll.engine.transformer import Context, SelfAttention, Transformer

LOW = torch.bfloat16
SOME = 8  # blocks of those rows that need no more
NAME = "wan2.1-t2v-14b"


@dataclass
class Timing:
    blocks: list[float]  # seconds of each block that ran
    rest: float  # of all that is no block
    layers: int
    branches: int = 1

    @property
    def step(self) -> float:
        whole = sum(self.blocks) if len(self.blocks) == self.layers * self.branches else None
        return self.rest + (self.branches * self.layers * median(self.blocks) if whole is None else whole)


@dataclass
class Way:
    """How a step is computed, and what its roof is made of."""

    fused: bool = False
    share: float = 1.0  # of the pairs
    matrix: str = "bf16"
    branches: int = 1
    told: Figures = field(default_factory=dict)


def measure(bench: Bench, model: Transformer, size: str, way: Way, blocks: int | None = None) -> Figures:
    """After a warm-up of one block: the others are the same kernels."""
    x, time = models.noise(bench, model, bench.latent(size)), torch.tensor([500.0], device=bench.device)
    names = ("positive", "negative")[: way.branches]
    contexts = [models.context(bench, model, bench.latent(size), name) for name in names]
    run(bench, model, way, x, time, contexts[:1], 1)
    timing = run(bench, model, way, x, time, contexts, blocks)
    return told(bench, model, size, way, timing) | way.told


def run(
    bench: Bench,
    model: Transformer,
    way: Way,
    x: Tensor,
    time: Tensor,
    contexts: list[Context],
    blocks: int | None,
) -> Timing:
    marks: list[list[Mark]] = []

    def stack(tokens: Tokens, context: Context) -> Tokens:
        own = [bench.mark()]
        for after in islice(model.each_block(tokens, context), blocks):
            own.append(bench.mark())
            tokens = after
        marks.append(own)
        return tokens

    before, model.stack = model.stack, stack
    try:
        ends = [bench.mark()]
        with fused.on(model, compiler(bench), wanted=way.fused):
            for context in contexts:
                model(x, time, context, 1)
        ends.append(bench.mark())
    finally:
        model.stack = before
    times = [seconds for own in marks for seconds in between(own)]
    return Timing(times, between(ends)[0] - sum(times), model.config.num_layers, len(contexts))


def told(bench: Bench, model: Transformer, size: str, way: Way, timing: Timing) -> Figures:
    c, n = model.config, bench.tokens(size).size
    made = counts.forward(c, n, models.PROMPT + 1, share=way.share) * way.branches
    roof = made.matrix / bench.rate(way.matrix) + made.attention / bench.rate("attention", size)
    return {
        "step_s": timing.step, "over_roof": timing.step / roof, "roof_s": roof,
        "share_of_peak": made.total / timing.step / PEAK["bf16"], "tflops": made.total / timing.step / 1e12,
        "block_ms": 1e3 * median(timing.blocks), "least_ms": 1e3 * min(timing.blocks),
        "most_ms": 1e3 * max(timing.blocks), "rest_ms": 1e3 * timing.rest,
        "blocks": f"{len(timing.blocks)} of {c.num_layers * way.branches}",
    }  # fmt: skip


def seconds(bench: Bench, name: str, size: str, blocks: int | None = None) -> float:
    """What a measurement will take, about."""
    c = bench.transformer(name)
    made = counts.forward(c, bench.tokens(size).size, models.PROMPT)
    step = made.matrix / bench.rate("bf16") + made.attention / bench.rate("attention", size)
    return 1 + 1.3 * step * ((blocks or c.num_layers) + 1) / c.num_layers


# --- attention --------------------------------------------------------------------------------------------


def chosen(bench: Bench, size: str) -> Attend:
    """The backend that was fastest here, where that is not what torch chooses anyway; text is left to torch."""
    name = bench.best.get(size, "")
    best, default = (bench.rates.get(f"attention {size} {way}", 0.0) for way in (name, "as torch chooses"))
    return partial(by_backend, name) if best > 1.03 * default > 0 else attention.sdpa


def by_backend(name: str, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
    if call.kind != "self":
        return attention.sdpa(q, k, v, call)
    with rates.backend(name):
        return F.scaled_dot_product_attention(q, k, v)


def named(attend: Attend) -> str:
    return str(attend.args[0]) if isinstance(attend, partial) else attend.__name__


def compiler(bench: Bench) -> Compiler:
    """Of all parts; where nothing is compiled, the same functions as they are."""
    found = bench.compiler
    if found is None:
        real = bench.compiled and bench.device.type == "cuda"
        found = bench.compiler = Compiler(compiled.ON, "inductor" if real else None)
    return found


def use(model: Transformer, attend: Attend) -> None:
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attend = attend


def made(bench: Bench, name: str) -> Transformer:
    begin = bench.mark()
    model = models.transformer(bench, bench.transformer(name), LOW)
    size = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    bench.add(f"{name} made", {"weights_gb": size, "seconds": between([begin, bench.mark()])[0]})
    return model


def streamed(bench: Bench, size: str) -> None:
    """The row of the 14B whose blocks come from pinned memory."""

    def run() -> Figures:
        config = bench.transformer(NAME)
        source = None if bench.device.type == "cuda" else models.transformer(bench, config, LOW)
        model = models.streamed(bench, config, LOW, source)
        use(model, chosen(bench, size))
        return measure(bench, model, size, Way())

    bench.attempt(f"t2v-14b {size} exact, blocks streamed", seconds(bench, NAME, size) + 4, run)
