"""From tokens to frames in one go: text, four steps of a distilled grid without guidance, frames in main memory.

The three models lie on the device together, with random weights, after a warm-up of one block and two latents. In the
lossy way the matrices are fp8 and, after the first step, far pairs are left out (sparse.py), by FlexAttention.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.on_gpu import models, stages, steps
from benchmarks.on_gpu.bench import Bench, Figures, between
from benchmarks.on_gpu.steps import LOW, Way
from broll.engine import conditioning, fused
from broll.engine.attention import Attend, AttendCall
from broll.engine.sampler import SAMPLERS
from broll.engine.schedule import schedule
from broll.engine.shapes import Heads, Keys, Latent
from broll.engine.transformer import Stack, Transformer
from broll.engine.vae import VAE

NAME = "wan2.1-t2v-14b"
STEPS = 4


def run(bench: Bench) -> None:
    for size in ("480p", "720p"):
        added_up(bench, size)
    if bench.left < seconds(bench, "480p") + 5 and not bench.tiny:
        bench.add("14B, four steps", {"skipped": f"{max(0, bench.left):.0f} s are left"})
        return
    model = models.transformer(bench, bench.transformer(NAME), LOW)
    encode = stages.text_encoder(bench, LOW)
    vae = stages.vae(bench, stages.lowest(bench), last=True)
    for size in ("480p", "720p"):
        steps.use(model, steps.chosen(bench, size))
        way = Way(fused=bench.compiled)
        label, cost = f"14B {size}, four steps, exact", seconds(bench, size)
        bench.attempt(label, cost, partial(made, bench, model, encode, vae, size, way))
    models.to_fp8(model)
    for size in ("720p", "480p"):
        steps.use(model, AfterFirst(steps.chosen(bench, size), steps.flexed(bench, size)))
        way = Way(fused=True)
        label, cost = f"14B {size}, four steps, fp8, sparse {steps.SPARSITY:g}", 0.8 * seconds(bench, size)
        bench.attempt(label, cost, partial(made, bench, model, encode, vae, size, way))


def added_up(bench: Bench, size: str) -> None:
    """What the measured stages come to, for those clips that the budget has no room for."""
    low = str(stages.lowest(bench))[6:]
    text = bench.known.get("text encoder, umT5-XXL bf16")
    decode = bench.known.get(f"VAE decode {size} {low}, channels last")
    if text is None or decode is None:
        return
    rest = text["ms_40_tokens"] / 1e3 + decode["seconds"]
    first = f"t2v-14b {size}"
    steps_of = {
        row: known["step_s"]
        for row, known in bench.known.items()
        if row.startswith(first) and "step_s" in known
    }
    for row, step in steps_of.items():
        if "guidance" not in row and "sparse" not in row:
            bench.add(f"added up: four steps, {row[8:]}", {"seconds": rest + STEPS * step})
    for form, dense in (("", "exact, fused"), ("fp8, ", "fp8, fused")):
        far, near = f"{first} {form}sparse {steps.SPARSITY:g}, flex", f"{first} {dense}"
        if far in steps_of and near in steps_of:
            whole = rest + steps_of[near] + (STEPS - 1) * steps_of[far]
            bench.add(f"added up: four steps, {size} {form}sparse after the first", {"seconds": whole})


def seconds(bench: Bench, size: str) -> float:
    step = steps.seconds(bench, NAME, size)
    return STEPS * step + stages.seconds(bench, "decode", size, "convolution", 21)


class AfterFirst:
    """Dense in the first step, and for text."""

    def __init__(self, dense: Attend, sparse: Attend) -> None:
        self._dense, self._sparse = dense, sparse

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        attend = self._sparse if call.kind == "self" and call.step else self._dense
        return attend(q, k, v, call)


def made(
    bench: Bench, model: Transformer, encode: Callable[[int], Tensor], vae: VAE, size: str, way: Way
) -> Figures:
    warmed(bench, model, encode, vae, size, way)
    begin, marks = time.perf_counter(), [bench.mark()]
    text = conditioning.collapsed(
        encode(models.PROMPT)[..., : model.config.text_dim].float(), model.config.text_len
    )
    marks.append(bench.mark())
    context = model.context(bench.latent(size), text.features, text_bias=text.bias)
    levels = schedule(STEPS, shift=5.0, grid="distilled", sampler="euler")

    def velocity(x: Latent, index: int) -> Latent:
        return model(x, torch.tensor([levels.times[index]], device=bench.device), context, index)

    x = models.noise(bench, model, bench.latent(size))
    with fused.on(model, steps.compiler(bench), wanted=way.fused):
        for step in SAMPLERS["euler"](velocity, x, levels, None):
            marks.append(bench.mark())
            x = step.x
    frames = [on_host(video) for video in vae.decode_stream(x)]
    marks.append(bench.mark())
    whole, parts = time.perf_counter() - begin, between(marks)
    return {
        "seconds": whole, "text_s": parts[0], "steps_s": [round(part, 3) for part in parts[1:-1]],
        "decode_s": parts[-1], "frames": sum(part.shape[1] for part in frames),
    }  # fmt: skip


def on_host(video: Tensor) -> Tensor:
    """Bytes, as a file is written from them."""
    return video[0].add(1).mul(127.5).round().to(torch.uint8).cpu()


def warmed(
    bench: Bench, model: Transformer, encode: Callable[[int], Tensor], vae: VAE, size: str, way: Way
) -> None:
    encode(models.PROMPT)
    grid = bench.latent(size)
    context = models.context(bench, model, grid)
    x, time_ = models.noise(bench, model, grid), torch.tensor([500.0], device=bench.device)
    model.stack, before = one_block(model), model.stack
    try:
        with fused.on(model, steps.compiler(bench), wanted=way.fused):
            for step in (0, 1):  # dense, and what is sparse
                model(x, time_, context, step)
    finally:
        model.stack = before
    for video in vae.decode_stream(x[:, :16, :2]):
        on_host(video)


def one_block(model: Transformer) -> Stack:
    return lambda tokens, context: next(model.each_block(tokens, context))
