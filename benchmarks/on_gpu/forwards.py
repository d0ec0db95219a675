"""The rows of one forward: the 14B's and the 1.3B's, exact, fused, with far pairs left out, in fp8, streamed."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.on_gpu import far, models
from benchmarks.on_gpu.bench import Bench, Figures, relative
from benchmarks.on_gpu.steps import (
    NAME,
    SOME,
    Way,
    chosen,
    compiler,
    made,
    measure,
    named,
    seconds,
    streamed,
    use,
)
from broll.engine import attention, fused, kernels
from broll.engine.shapes import Tokens
from broll.engine.transformer import Context, Stack, Transformer

SMALL = "wan2.1-t2v-1.3b"


def fourteen(bench: Bench) -> None:
    """What matters most."""
    model = made(bench, NAME)
    for size, blocks in (("720p", SOME), ("480p", None)):
        exact(bench, model, NAME, size, blocks)
        far.by_tiles(bench, model, size)
    if eight_bits(bench, model, ("720p", "480p"), fast=True):
        for size in ("720p", "480p"):
            far.by_tiles(bench, model, size, "fp8, ")
    del model
    bench.forget()
    model = made(bench, NAME)
    use(model, chosen(bench, "720p"))
    listed(bench, model)
    far.by_flex(bench, model, "720p")
    del model
    bench.forget()
    streamed(bench, "480p")


def listed(bench: Bench, model: Transformer) -> None:
    for kind, way in (("", Way()), (", fused", Way(fused=True))):
        row = f"720p kernels of a block{kind}"
        bench.attempt(row, 2, partial(looked_into, bench, model, "720p", way))


def small(bench: Bench) -> None:
    model = made(bench, SMALL)
    for size in ("480p", "720p"):
        exact(bench, model, SMALL, size, None, fuse=False)


def more(bench: Bench) -> None:
    """The rest of both."""
    model = made(bench, NAME)
    guidance(bench, model)
    begun(bench, model)
    far.by_flex(bench, model, "480p")
    eight_bits(bench, model, ("720p", "480p"), fast=False)
    del model
    bench.forget()
    exact(bench, made(bench, SMALL), SMALL, "480p", None)


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
