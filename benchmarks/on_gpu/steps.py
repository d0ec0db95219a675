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
from benchmarks.on_gpu.bench import PEAK, Bench, Figures, Mark, between, relative
from broll.engine import attention, compiled, counts, fused, kernels, sparse
from broll.engine.attention import Attend, AttendCall
from broll.engine.compiled import Compiler
from broll.engine.shapes import Grid, Heads, Keys, Tokens
from broll.engine.transformer import Context, SelfAttention, Stack, Transformer

LOW = torch.bfloat16
SOME = 8  # blocks of those rows that need no more
SPARSITY = 0.5


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


class Flexed:
    """The same by FlexAttention. Where a warm-up has shown that it agrees, nothing is compared any more."""

    def __init__(self, compiler: Compiler, grid: Grid, sparsity: float, dense: Attend) -> None:
        self.pattern = sparse.pattern(grid, sparsity)
        self._attend = sparse.Radial(dense, sparsity, 0, compiler)
        self._dense = dense

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        return (self._attend if call.kind == "self" else self._dense)(q, k, v, call)


class Gathered:
    """Radial attention, tile by tile, in every layer of the blocks that are timed."""

    def __init__(self, bench: Bench, size: str, dense: Attend) -> None:
        self.pattern, self._dense = sparse.pattern(bench.tokens(size), SPARSITY), dense

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        if call.kind != "self":
            return self._dense(q, k, v, call)
        return sparse.gathered(self._dense, q, k, v, call, self.pattern)


def use(model: Transformer, attend: Attend) -> None:
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attend = attend


# --- the rows ---------------------------------------------------------------------------------------------


NAME, SMALL = "wan2.1-t2v-14b", "wan2.1-t2v-1.3b"


def fourteen(bench: Bench) -> None:
    """What matters most."""
    model = made(bench, NAME)
    for size, blocks in (("480p", None), ("720p", SOME)):
        exact(bench, model, NAME, size, blocks)
    listed(bench, model)
    by_flex(bench, model, "720p")
    if eight_bits(bench, model, ("720p", "480p"), fast=True):
        by_flex(bench, model, "720p", "fp8, ")
    del model
    bench.forget()
    offloaded(bench)


def listed(bench: Bench, model: Transformer) -> None:
    for kind, way in (("", Way()), (", fused", Way(fused=True))):
        row = f"720p kernels of a block{kind}"
        bench.attempt(row, 2, partial(looked_into, bench, model, "720p", way))


def small(bench: Bench) -> None:
    exact(bench, made(bench, SMALL), SMALL, "480p", None, fuse=False)


def more(bench: Bench) -> None:
    """The rest of both."""
    model = made(bench, NAME)
    guidance(bench, model)
    begun(bench, model)
    for size in ("720p", "480p"):
        by_tiles(bench, model, size)
    by_flex(bench, model, "480p")
    eight_bits(bench, model, ("720p", "480p"), fast=False)
    del model
    bench.forget()
    exact(bench, made(bench, SMALL), SMALL, "480p", None)


def made(bench: Bench, name: str) -> Transformer:
    begin = bench.mark()
    model = models.transformer(bench, bench.transformer(name), LOW)
    size = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    bench.add(f"{name} made", {"weights_gb": size, "seconds": between([begin, bench.mark()])[0]})
    return model


def exact(
    bench: Bench, model: Transformer, name: str, size: str, blocks: int | None, *, fuse: bool = True
) -> None:
    """As the engine has it, with the fastest kernel of attention, and fused."""
    label, cost = f"{name[7:]} {size}", seconds(bench, name, size, blocks)
    attend = chosen(bench, size)
    if attend is not attention.sdpa:
        use(model, attention.sdpa)
        some = seconds(bench, name, size, 2)
        bench.attempt(
            f"{label} exact, sdpa as torch chooses", some, lambda: measure(bench, model, size, Way(), 2)
        )
    use(model, attend)
    bench.attempt(
        f"{label} exact, attention {named(attend)}", cost, lambda: measure(bench, model, size, Way(), blocks)
    )
    if bench.compiled and fuse:
        way = Way(fused=True)
        bench.attempt(f"{label} exact, fused", cost + 10, lambda: measure(bench, model, size, way, blocks))
        bench.attempt(f"{label} fused beside exact, one block", 1, lambda: beside(bench, model, size, way))


def beside(bench: Bench, model: Transformer, size: str, way: Way) -> Figures:
    """How far one block of the one is from the other, of what the block adds."""
    found: list[Tensor] = []

    def stack(tokens: Tokens, context: Context) -> Tokens:
        for wanted in (way.fused, False):
            with fused.on(model, compiler(bench), wanted=wanted):
                found.append(next(model.each_block(tokens, context)) - tokens)
        return tokens

    once(bench, model, size, stack)
    return {"error": relative(found[0], found[1].cpu())}


def once(bench: Bench, model: Transformer, size: str, stack: Stack) -> None:
    x, time = models.noise(bench, model, bench.latent(size)), torch.tensor([500.0], device=bench.device)
    before, model.stack = model.stack, stack
    try:
        model(x, time, models.context(bench, model, bench.latent(size)), 1)
    finally:
        model.stack = before


def looked_into(bench: Bench, model: Transformer, size: str, way: Way) -> Figures:
    """The kernels of one block, the slowest first, in milliseconds."""
    found: Figures = {}

    def stack(tokens: Tokens, context: Context) -> Tokens:
        with fused.on(model, compiler(bench), wanted=way.fused):
            next(model.each_block(tokens, context))
            found.update(bench.kernels(lambda: next(model.each_block(tokens, context))))
        return tokens

    once(bench, model, size, stack)
    return found


def by_tiles(bench: Bench, model: Transformer, size: str) -> None:
    """Radial attention as the engine has it: with flash, which builds no plan for each of some 30 lengths of keys, and
    with cuDNN, which does, where that is the fastest when dense.
    """
    ways: list[tuple[str, Attend]] = [("sdpa as torch chooses", attention.sdpa)]
    if bench.device.type == "cuda":
        ways = [
            (kind, partial(by_backend, kind))
            for kind in dict.fromkeys(("flash", bench.best.get(size, "flash")))
        ]
    for kind, dense in ways:
        tiles = Gathered(bench, size, dense)
        use(model, tiles)
        way = Way(fused=True, share=tiles.pattern.share, told={"pairs": tiles.pattern.share})
        row, cost = (
            f"t2v-14b {size} sparse {SPARSITY:g}, tile by tile, {kind}",
            seconds(bench, NAME, size, SOME),
        )
        bench.attempt(row, cost + 2, partial(measure, bench, model, size, way, SOME))
    use(model, chosen(bench, size))


def by_flex(bench: Bench, model: Transformer, size: str, form: str = "") -> None:
    """The same by FlexAttention."""
    flex = flexed(bench, size)
    use(model, flex)
    share = flex.pattern.share
    way = Way(fused=True, share=share, matrix="fp8" if form else "bf16", told={"pairs": share})
    row, cost = f"t2v-14b {size} {form}sparse {SPARSITY:g}, flex", seconds(bench, NAME, size, SOME)
    done = bench.attempt(row, cost + (0 if form else 10), lambda: measure(bench, model, size, way, SOME))
    use(model, chosen(bench, size))
    if done is not None and not form:
        bench.attempt(f"{size} flex beside tile by tile", 2, lambda: agreed(bench, size, flex))


def flexed(bench: Bench, size: str) -> Flexed:
    return Flexed(compiler(bench), bench.tokens(size), SPARSITY, chosen(bench, size))


def agreed(bench: Bench, size: str, flex: Attend) -> Figures:
    """Compiled already, at this size."""
    dense: Attend = partial(by_backend, "flash") if bench.device.type == "cuda" else attention.sdpa
    q, k, v = (rates.heads(bench, bench.tokens(size).size) for _ in range(3))
    call, some = AttendCall("self", 1, bench.tokens(size)), slice(0, 2)
    other = Gathered(bench, size, dense)(q, k, v, call)
    return {"error": relative(flex(q, k, v, call)[:, some], other[:, some].cpu())}


def guidance(bench: Bench, model: Transformer) -> None:
    way = Way(branches=2)
    cost = 2 * seconds(bench, NAME, "480p", SOME)
    bench.attempt("t2v-14b 480p exact, guidance", cost, lambda: measure(bench, model, "480p", way, SOME))


def begun(bench: Bench, model: Transformer) -> None:
    """The first step of a clip, in which every kernel is held to the definition."""

    def first() -> Figures:
        kernels.use(model, kernels.AUTO, bench.device)
        kernels.begin(model)
        figures = measure(bench, model, "480p", Way(), SOME)
        return figures | {"verdict": kernels.verdict(model)}

    bench.attempt("t2v-14b 480p exact, first step checked", seconds(bench, NAME, "480p", SOME), first)
    model.use(attention.sdpa)
    use(model, chosen(bench, "480p"))


def eight_bits(bench: Bench, model: Transformer, sizes: tuple[str, ...], *, fast: bool) -> bool:
    """It changes the model for good; whether it did."""
    told = bench.attempt("t2v-14b to fp8", 3, lambda: {"native": models.to_fp8(model)})
    if told is None:
        return False
    for size in sizes:
        use(model, chosen(bench, size))
        way = Way(fused=fast and bench.compiled, matrix="fp8", told=told)
        row, cost = f"t2v-14b {size} fp8" + ", fused" * fast, seconds(bench, NAME, size, SOME)
        bench.attempt(row, cost + 3 * fast, partial(measure, bench, model, size, way, SOME))
    return True


def offloaded(bench: Bench) -> None:
    def streamed() -> Figures:
        config = bench.transformer(NAME)
        source = None if bench.device.type == "cuda" else models.transformer(bench, config, LOW)
        model = models.streamed(bench, config, LOW, source)
        use(model, chosen(bench, "480p"))
        return measure(bench, model, "480p", Way())

    bench.attempt("t2v-14b 480p exact, blocks streamed", seconds(bench, NAME, "480p") + 4, streamed)
