"""From tokens to frames in one go: text, four steps of a distilled grid without guidance, frames in main memory.

The three models lie on the device together, with random weights, after a warm-up of two blocks and two latents. In the
lossy ways the matrices are fp8, and after the first step and layer far pairs are left out (sparse.py), tile by tile.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from benchmarks.on_gpu import far, models, stages, steps
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
SPARSE = f"sparse {far.SPARSITY:g}"


def run(bench: Bench) -> None:
    for size in ("480p", "720p"):
        added_up(bench, size)
    if bench.left < seconds(bench, "480p") + 5 and not bench.tiny:
        bench.add("14B, four steps", {"skipped": f"{max(0, bench.left):.0f} s are left"})
        return
    encode = stages.text_encoder(bench, LOW)
    vae = stages.vae(bench, stages.lowest(bench), last=True)
    model = models.transformer(bench, bench.transformer(NAME), LOW)
    models.to_fp8(model)
    for size, form in (
        ("720p", f"fp8, {SPARSE}"),
        ("480p", "fp8"),
        ("480p", f"fp8, {SPARSE}"),
        ("720p", "fp8"),
    ):
        one(bench, model, encode, vae, size, form)
    del model
    bench.forget()
    model = models.transformer(bench, bench.transformer(NAME), LOW)
    for size in ("480p", "720p"):
        one(bench, model, encode, vae, size, "exact")


def one(
    bench: Bench, model: Transformer, encode: Callable[[int], Tensor], vae: VAE, size: str, form: str
) -> None:
    dense, way = steps.chosen(bench, size), Way(fused=bench.compiled)
    steps.use(model, AfterFirst(dense, far.gathered(bench, size)) if SPARSE in form else dense)
    part = 0.7 if SPARSE in form else 1.0
    bench.attempt(
        f"14B {size}, four steps, {form}",
        part * seconds(bench, size),
        partial(made, bench, model, encode, vae, size, way),
    )


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
    layers = bench.transformer(NAME).num_layers
    for form, dense in (("", "exact, fused"), ("fp8, ", "fp8, fused")):
        for way in (far.TILES, far.FLEX):
            sparse, near = far.label(size, way, form), f"{first} {dense}"
            if sparse in steps_of and near in steps_of:
                step = steps_of[sparse] + (steps_of[near] - steps_of[sparse]) / layers
                whole = rest + steps_of[near] + (STEPS - 1) * step
                row = f"added up: four steps, {size} {form}sparse after the first, {way}"
                bench.add(row, {"seconds": whole})


def seconds(bench: Bench, size: str) -> float:
    step = steps.seconds(bench, NAME, size)
    return STEPS * step + stages.seconds(bench, "decode", size, "convolution", 21)


class AfterFirst:
    """Dense in the first step and layer, and for text."""

    def __init__(self, dense: Attend, sparse: Attend) -> None:
        self._dense, self._sparse = dense, sparse

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        attend = self._sparse if call.kind == "self" and call.step and call.layer else self._dense
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
    model.stack, before = two_blocks(model), model.stack
    try:
        with fused.on(model, steps.compiler(bench), wanted=way.fused):
            for step in (0, 1):  # dense, and what is sparse
                model(x, time_, context, step)
    finally:
        model.stack = before
    for video in vae.decode_stream(x[:, :16, :2]):
        on_host(video)


def two_blocks(model: Transformer) -> Stack:
    """The first of them is dense in every step."""
    return lambda tokens, context: list(islice(model.each_block(tokens, context), 2))[-1]
