"""The engine beside diffusers, in the same run: `python benchmarks/engine.py [--json FILE]`.

Every row gives the time of both, as medians of alternating runs, their ratio (above 1: we are faster), the peak
memory of both and the share of the roof that we reach: the seconds that our operations would take at the rates of this
machine's matrix product and attention, both the best of many calls between those runs. Random weights; the transformer
is WAN 2.1's 1.3B, in bf16 where this CPU has it and else in fp32, and again with its matrices in int8; the VAE has its
full width in fp32, the text encoder is a quarter of umT5-XXL's width. Memory is measured in a fresh process for each.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from broll import wiring
from broll.engine import attention, conditioning, counts, int8, kernels, load, rates
from broll.engine.config import PUBLISHED, TextConfig, VAEConfig
from broll.engine.counts import Operations
from broll.engine.shapes import Grid
from broll.engine.text_encoder import umt5
from broll.engine.transformer import Transformer, set_precision
from broll.engine.vae import VAE

PROMPT_TOKENS = 60  # of the 512: what a prompt of 45 words has
CPU = torch.device("cpu")
MODEL = "wan2.1-t2v-1.3b"
CASES = (
    "transformer 512", "transformer 512 int8", "transformer 2048", "transformer 2048 int8", "vae decode", "vae encode",
    "text encoder",
)  # fmt: skip
Built = tuple[Callable[[], Any], Operations | None]


def random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """Small random numbers in place of the meta tensors; time does not depend on them, zeros might."""
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.data.normal_(std=0.02)
    return module.eval().requires_grad_(False)


def low() -> torch.dtype:
    """What the 1.3B is computed in here."""
    return wiring.precision(PUBLISHED[MODEL], CPU).linears


def transformer_pair(tokens: int, side: str, *, integers: bool) -> Built:
    """One forward of the 1.3B model under one prompt, as at every step but the first."""
    config = PUBLISHED[MODEL].transformer
    frames = tokens // 256
    x, t = torch.randn(1, 16, frames, 32, 32), torch.tensor([500.0])
    text = torch.randn(1, PROMPT_TOKENS, config.text_dim)
    grid = Grid(frames, 32, 32)
    if side == "ours":
        with torch.device("meta"):
            ours = Transformer(config)
        model = set_precision(random_weights(ours), low())
        if integers:
            int8.use(model, CPU)
        load.for_cpu(model)
        given = conditioning.collapsed(text, config.text_len)
        context = model.context(grid, given.features, text_bias=given.bias)
        return lambda: model(x, t, context), counts.forward(config, tokens, PROMPT_TOKENS + 1)
    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096
        )
    model = random_weights(theirs).to(low())
    for name, module in model.named_modules():  # as from_pretrained keeps them
        if any(part in name for part in ("norm1", "norm2", "norm3", "time_embedder")):
            module.float()
    padded = conditioning.padded(text, 512).features.to(low())
    return lambda: model(x.to(low()), t, padded, return_dict=False)[0], None


def vae_pair(way: str, side: str) -> Built:
    config = VAEConfig()
    z, video = torch.randn(1, 16, 3, 16, 16), torch.rand(1, 3, 9, 128, 128) * 2 - 1
    with torch.device("meta"):
        module = VAE(config) if side == "ours" else AutoencoderKLWan()
    model = random_weights(module)
    if way == "decode":
        call = (lambda: model.decode(z)) if side == "ours" else (lambda: model.decode(z).sample)
        return call, None
    return (lambda: model.encode(video)), None


def text_pair(side: str) -> Built:
    config = TextConfig(vocab_size=32_000, d_model=1024, d_ff=2560, num_heads=16)
    real = torch.randint(3, 32_000, (1, PROMPT_TOKENS))
    if side == "ours":
        with torch.device("meta"):
            module = umt5(config)
        model = random_weights(module)
        return lambda: model(input_ids=real).last_hidden_state, None
    with torch.device("meta"):
        module = UMT5EncoderModel(
            UMT5Config(
                vocab_size=32_000, d_model=1024, d_kv=64, d_ff=2560, num_layers=24, num_heads=16,
                feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
    model = random_weights(module)
    ids = torch.nn.functional.pad(real, (0, 512 - PROMPT_TOKENS))
    mask = (torch.arange(512) < PROMPT_TOKENS)[None].long()
    return lambda: model(ids, mask).last_hidden_state, None


def build(case: str, side: str) -> Built:
    if case.startswith("transformer"):
        return transformer_pair(int(case.split()[1]), side, integers=case.endswith("int8"))
    return text_pair(side) if case.startswith("text") else vae_pair(case.split()[1], side)


class Roof:
    """The best rates of this machine that were seen between the runs, attention at the case's tokens and heads."""

    def __init__(self, tokens: int) -> None:
        c, kernel = PUBLISHED[MODEL].transformer, kernels.best(kernels.Here("cpu", low()))
        heads = torch.randn(1, c.num_heads, tokens, c.head_dim).to(low())
        self._call = attention.AttendCall("self", 0, Grid(1, 1, tokens))
        self._attend = lambda: attention.BACKENDS[kernel].attend(heads, heads, heads, self._call)
        self._operations = 4.0 * tokens**2 * c.dim
        self.matrix = self.attention = 0.0

    def look(self) -> None:
        self.matrix = max(self.matrix, rates.matrix_rate(low(), CPU, seconds=0.5))
        for _ in range(5):
            begin = time.perf_counter()
            self._attend()
            self.attention = max(self.attention, self._operations / (time.perf_counter() - begin))

    def seconds(self, o: Operations) -> float:
        return o.matrix / self.matrix + o.attention / self.attention


@torch.inference_mode()
def measure(case: str, runs: int) -> dict[str, Any]:
    """Medians of alternating runs, so that other load on the machine meets both alike."""
    ours, operations = build(case, "ours")
    theirs, _ = build(case, "diffusers")
    times: dict[str, list[float]] = {"ours": [], "diffusers": []}
    roof = None if operations is None or case.endswith("int8") else Roof(int(case.split()[1]))
    for turn in range(runs + 1):
        if roof is not None:
            roof.look()
        for side, call in (("ours", ours), ("diffusers", theirs)):
            begin = time.perf_counter()
            call()
            if turn:  # the first one fills caches
                times[side].append(time.perf_counter() - begin)
    middle = {side: sorted(values)[len(values) // 2] for side, values in times.items()}
    share = None if roof is None or operations is None else roof.seconds(operations) / middle["ours"]
    return {
        "case": case, "ours_s": middle["ours"], "diffusers_s": middle["diffusers"],
        "ratio": middle["diffusers"] / middle["ours"], "share_of_roof": share,
        "rates": None if roof is None else {"matrix": roof.matrix, "attention": roof.attention},
    }  # fmt: skip


def peak_bytes(case: str, side: str) -> int:
    """Peak resident memory of a process that builds one side and runs it once.

    glibc is told to give freed megabytes back at once: left to itself, the same decode peaks anywhere in 1.41 to
    1.62 GB, and says more about the allocator's luck than about what was alive together.
    """
    done = subprocess.run(
        [sys.executable, __file__, "--peak", case, side],
        capture_output=True, text=True, check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
    )  # fmt: skip
    return int(done.stdout.strip().splitlines()[-1])


def own_peak_bytes() -> int:
    """This program's high-water mark; ru_maxrss would also count what the process was before exec."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def report(rows: list[dict[str, Any]]) -> str:
    head = f"{'':22}{'ours':>9}{'diffusers':>11}{'ratio':>8}{'ours GB':>10}{'diff. GB':>10}{'memory':>8}{'roof':>8}"
    lines = [head]
    for r in rows:
        share = "" if r["share_of_roof"] is None else f"{r['share_of_roof']:.0%}"
        peak = r["peak_bytes"]
        memory = (
            f"{peak['ours'] / 1e9:>10.2f}{peak['diffusers'] / 1e9:>10.2f}{peak['ours'] / peak['diffusers']:>8.2f}"
            if peak
            else " " * 28
        )
        lines.append(
            f"{r['case']:22}{r['ours_s']:>8.2f}s{r['diffusers_s']:>10.2f}s{r['ratio']:>8.2f}{memory}{share:>8}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument(
        "--no-memory", action="store_true", help="leave the peaks out, which take another process each"
    )
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        with torch.inference_mode():
            build(*args.peak)[0]()
        print(own_peak_bytes())
        return
    rows = []
    for case in args.cases:
        row = measure(case, args.runs)
        gc.collect()
        peaks = {} if args.no_memory else {side: peak_bytes(case, side) for side in ("ours", "diffusers")}
        row |= {"peak_bytes": peaks}
        rows.append(row)
        print(report(rows).splitlines()[-1], flush=True)
    print(
        f"\n{torch.get_num_threads()} threads, torch {torch.__version__}, transformer in {low()}; "
        f"medians of {args.runs} alternating runs\n"
    )
    print(report(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
