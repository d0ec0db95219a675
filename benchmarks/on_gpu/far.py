"""Far pairs left out (sparse.py) at the size of the 14B: attention alone, and one forward, by each way there is.

    tile by tile    few large calls of the dense kernel; how fast that is by the number of queries in a call
    flex            FlexAttention, compiled

All blocks that are timed leave pairs out, as those of a clip do from the second on.
"""

from functools import partial
from statistics import median

import torch

from benchmarks.on_gpu import rates
from benchmarks.on_gpu.bench import Bench, Figures, between, relative
from benchmarks.on_gpu.steps import NAME, SOME, Way, chosen, compiler, measure, named, seconds, use
from broll.engine import sparse
from broll.engine.attention import Attend, AttendCall
from broll.engine.compiled import Compiler
from broll.engine.shapes import Grid, Heads, Keys
from broll.engine.sparse import Pattern
from broll.engine.transformer import Transformer

SPARSITY = 0.5
TILES, FLEX = "tile by tile", "flex"
QUERIES = (450, 585, 900, 1170, 1800, 2340, 2700, 5400)


class Gathered:
    """Tile by tile; `dense` computes the tiles, and text."""

    def __init__(self, grid: Grid, sparsity: float, dense: Attend) -> None:
        self.pattern, self._dense = sparse.pattern(grid, sparsity), dense

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        if call.kind != "self":
            return self._dense(q, k, v, call)
        return sparse.gathered(self._dense, q, k, v, call, self.pattern)


class Flexed:
    """By FlexAttention, of whatever size tiles are; `dense` computes text."""

    def __init__(self, compiler: Compiler, grid: Grid, sparsity: float, dense: Attend) -> None:
        self.pattern, self._dense, self._compiler = sparse.pattern(grid, sparsity), dense, compiler

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        if call.kind != "self":
            return self._dense(q, k, v, call)
        return sparse.flexed(self._compiler, q, k, v, self.pattern)


def gathered(bench: Bench, size: str) -> Gathered:
    return Gathered(bench.tokens(size), SPARSITY, chosen(bench, size))


def flexed(bench: Bench, size: str) -> Flexed:
    return Flexed(compiler(bench), bench.tokens(size), SPARSITY, chosen(bench, size))


# --- the rows ---------------------------------------------------------------------------------------------


def label(size: str, way: str, form: str = "") -> str:
    return f"t2v-14b {size} {form}sparse {SPARSITY:g}, {way}"


def run(bench: Bench) -> None:
    """Attention alone."""
    for size in ("720p", "480p"):
        alone(bench, size)
    for queries in QUERIES:
        bench.attempt(f"attention of {queries} queries", 1, partial(call, bench, queries))


def alone(bench: Bench, size: str) -> None:
    """One layer's attention; the first call also makes cuDNN's plans, one for each length of keys."""
    bench.attempt(f"attention {size} sparse {SPARSITY:g}, {TILES}", 6, lambda: layer(bench, size))


def call(bench: Bench, queries: int) -> Figures:
    """The dense kernel on so many queries at once and a third of 720p's keys: how large a tile has to be."""
    dense, grid = chosen(bench, "720p"), bench.tokens("720p")
    q, (k, v) = rates.heads(bench, queries), (rates.heads(bench, grid.size // 3) for _ in range(2))
    asked = AttendCall("self", 1, grid)
    taken = median(bench.timed(lambda: dense(q, k, v, asked), 10, 2))
    return {"ms": 1e3 * taken, "tflops": 4.0 * queries * k.shape[2] * q.shape[1] * q.shape[3] / taken / 1e12}


def layer(bench: Bench, size: str) -> Figures:
    grid, dense, tiles = bench.tokens(size), chosen(bench, size), gathered(bench, size)
    q, k, v = (rates.heads(bench, grid.size) for _ in range(3))
    call, pattern = AttendCall("self", 1, grid), tiles.pattern
    whole = median(bench.timed(lambda: dense(q, k, v, call)))
    begin = bench.mark()
    out = tiles(q, k, v, call)
    first = between([begin, bench.mark()])[0]
    taken = median(bench.timed(lambda: tiles(q, k, v, call)))
    copying = median(bench.timed(lambda: sparse.gathered(passed, q, k, v, call, pattern)))
    operations = 4.0 * grid.size**2 * q.shape[1] * q.shape[3]
    lengths = {sum(run.stop - run.start for run in seen) for _, seen in pattern.rows}
    return {
        "ms": 1e3 * taken, "dense_ms": 1e3 * whole, "copy_ms": 1e3 * copying, "first_ms": 1e3 * first,
        "tflops": operations * pattern.share / taken / 1e12, "dense_tflops": operations / whole / 1e12,
        "pairs": pattern.share, "error": error(out, q, k, v, pattern), "kernel": named(dense),
        "tiles": len(pattern.rows), "lengths": len(lengths),
    }  # fmt: skip


def passed(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:  # noqa: ARG001
    """No attention: what is left is the copying."""
    return q


def error(out: Heads, q: Heads, k: Keys, v: Keys, pattern: Pattern) -> float:
    """Of some rows of two heads, beside the definition in fp32."""
    n = q.shape[2]
    rows = torch.linspace(0, n - 1, min(n, 32)).long()
    kept = pattern.kept[pattern.tile[pattern.piece[rows]]][:, pattern.piece].to(q.device)
    q, k, v = (x[:, :2].float() for x in (q[:, :, rows.to(q.device)], k, v))
    logits = (q @ k.transpose(-1, -2) / q.shape[3] ** 0.5).masked_fill(~kept, -torch.inf)
    return relative(out[:, :2, rows.to(q.device)], (logits.softmax(-1) @ v).cpu())


def by_tiles(bench: Bench, model: Transformer, size: str, form: str = "") -> None:
    """With the kernel that the dense rows have."""
    tiles = gathered(bench, size)
    told = {"pairs": tiles.pattern.share, "kernel": named(chosen(bench, size))}
    way = Way(bench.compiled, tiles.pattern.share, "fp8" if form else "bf16", told=told)
    use(model, tiles)
    cost = seconds(bench, NAME, size, SOME)
    bench.attempt(label(size, TILES, form), cost + 3, lambda: measure(bench, model, size, way, SOME))
    use(model, chosen(bench, size))


def by_flex(bench: Bench, model: Transformer, size: str) -> None:
    flex = flexed(bench, size)
    way = Way(bench.compiled, flex.pattern.share, told={"pairs": flex.pattern.share})
    use(model, flex)
    cost = seconds(bench, NAME, size, SOME) + 10
    done = bench.attempt(label(size, FLEX), cost, lambda: measure(bench, model, size, way, SOME))
    use(model, chosen(bench, size))
    if done is not None:
        bench.attempt(f"{size} flex beside {TILES}", 2, lambda: agreed(bench, size))


def agreed(bench: Bench, size: str) -> Figures:
    """Compiled already, at this size."""
    q, k, v = (rates.heads(bench, bench.tokens(size).size) for _ in range(3))
    call, some = AttendCall("self", 1, bench.tokens(size)), slice(0, 2)
    flex, tiles = (attend(q, k, v, call) for attend in (flexed(bench, size), gathered(bench, size)))
    return {"error": relative(flex[:, some], tiles[:, some].cpu())}
