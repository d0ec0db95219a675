"""diffusers' transformer of the same size beside ours, where diffusers is installed: one forward, plain and compiled.

As its pipeline runs it: bf16 with the modules in fp32 that `from_pretrained` keeps so, and 512 tokens of text.
"""

from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.on_gpu import models, steps
from benchmarks.on_gpu.bench import Bench, Figures, Mark, between
from broll.engine import counts

NAME = "wan2.1-t2v-14b"
KEPT = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")  # in fp32


def run(bench: Bench) -> None:
    try:
        import diffusers
    except ImportError:
        bench.add("diffusers", {"skipped": "it is not installed"})
        return
    bench.add("diffusers", {"version": diffusers.__version__})
    model = made(bench)
    for size, needed in (("480p", 1.5), ("720p", 1.3)):
        cost = needed * steps.seconds(bench, NAME, size, steps.SOME if size == "720p" else None)
        bench.attempt(f"diffusers 14B {size}", cost, partial(measure, bench, model, size))
    if bench.compiled and not bench.tiny:
        model.compile_repeated_blocks()
        cost = 30 + 2 * steps.seconds(bench, NAME, "480p")
        bench.attempt("diffusers 14B 480p, compiled", cost, lambda: whole(bench, model))


def made(bench: Bench) -> Any:
    from diffusers import WanTransformer3DModel

    c = bench.transformer(NAME)
    sizes = {"num_attention_heads": c.num_heads, "attention_head_dim": c.head_dim, "ffn_dim": c.ffn_dim}
    sizes |= {"num_layers": c.num_layers, "text_dim": c.text_dim, "freq_dim": c.freq_dim}
    with torch.device("meta"):
        model = WanTransformer3DModel(**sizes)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(
            torch.float32 if any(part in name for part in KEPT) else torch.bfloat16
        )
    model.to_empty(device=bench.device)
    model.rope = type(model.rope)(c.head_dim, c.patch_size, 1024).to(
        bench.device
    )  # its tables are no weights
    return models.filled(model)


class Enough(Exception):
    """All that was wanted has run."""


def given(bench: Bench, size: str) -> tuple[Tensor, Tensor, Tensor]:
    c, grid = bench.transformer(NAME), bench.latent(size)
    x = torch.randn(1, 16, grid.frames, grid.height, grid.width, device=bench.device, dtype=torch.bfloat16)
    text = torch.randn(1, c.text_len, c.text_dim, device=bench.device, dtype=torch.bfloat16)
    return x, torch.tensor([500], device=bench.device), text


def measure(bench: Bench, model: Any, size: str) -> Figures:
    """At 720p only some blocks are run, as in our rows there."""
    c, what = bench.transformer(NAME), given(bench, size)
    one(bench, model, *what, 1)
    marks = one(bench, model, *what, steps.SOME if size == "720p" else c.num_layers)
    timing = steps.Timing(between(marks[1:]), between(marks[:2])[0], c.num_layers)
    made = counts.forward(c, bench.tokens(size).size, c.text_len)
    return {
        "step_s": timing.step, "tflops": made.total / timing.step / 1e12, "rest_ms": 1e3 * timing.rest,
        "block_ms": 1e3 * median(timing.blocks), "blocks": f"{len(timing.blocks)} of {c.num_layers}",
    }  # fmt: skip


def whole(bench: Bench, model: Any) -> Figures:
    """Without marks in between, which would be compiled too; the first forward waits for the compiler."""
    what = given(bench, "480p")
    first, second = (bench.timed(lambda: model(*what, return_dict=False), 1, 0)[0] for _ in range(2))
    return {"step_s": second, "first_s": first}


def one(bench: Bench, model: Any, x: Tensor, time: Tensor, text: Tensor, blocks: int) -> list[Mark]:
    """The beginning, the first block's beginning, and the end of each block."""
    marks = [bench.mark()]

    def begun(*_: object) -> None:
        marks.append(bench.mark())

    def ended(*_: object) -> None:
        marks.append(bench.mark())
        if len(marks) == blocks + 2:
            raise Enough

    hooks = [model.blocks[0].register_forward_pre_hook(begun)]
    hooks += [block.register_forward_hook(ended) for block in model.blocks]
    try:
        model(x, time, text, return_dict=False)
    except Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return marks
