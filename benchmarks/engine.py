"""The engine beside diffusers, in the same run: `python benchmarks/engine.py [--json FILE]`.

Every row gives the time of both, as medians of alternating runs, their ratio (above 1: we are faster), the peak
memory of both and the share of this machine's own matrix-product rate that we reach. Random weights; the
transformer is WAN 2.1's 1.3B in bf16, the VAE has its full width in fp32, the text encoder is a quarter
of umT5-XXL's width. Memory is measured in a fresh process for each.
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

from broll.engine import attention, conditioning, counts, packed
from broll.engine.config import PUBLISHED, TextConfig, VAEConfig
from broll.engine.rates import matrix_rate
from broll.engine.shapes import Grid
from broll.engine.text_encoder import umt5
from broll.engine.transformer import Transformer, set_precision
from broll.engine.vae import VAE

PROMPT_TOKENS = 60  # of the 512: what a prompt of 45 words has
LOW = torch.bfloat16
CASES = ("transformer 512", "transformer 2048", "vae decode", "vae encode", "text encoder")


def random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """Small random numbers in place of the meta tensors; time does not depend on them, zeros might."""
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.data.normal_(std=0.02)
    return module.eval().requires_grad_(False)


def transformer_pair(tokens: int, side: str) -> tuple[Callable[[], Any], float]:
    """One forward of the 1.3B model under one prompt, as at every step but the first."""
    config = PUBLISHED["wan2.1-t2v-1.3b"].transformer
    frames = tokens // 256
    x, t = torch.randn(1, 16, frames, 32, 32), torch.tensor([500.0])
    text = torch.randn(1, PROMPT_TOKENS, config.text_dim)
    grid = Grid(frames, 32, 32)
    if side == "ours":
        with torch.device("meta"):
            ours = Transformer(config)
        model = packed.pack(set_precision(random_weights(ours), LOW))
        model.use(attention.blocked)
        given = conditioning.collapsed(text, config.text_len)
        context = model.context(grid, given.features, text_bias=given.bias)
        return lambda: model(x, t, context), counts.forward(config, tokens, PROMPT_TOKENS + 1).total
    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096
        )
    model = random_weights(theirs).to(LOW)
    for name, module in model.named_modules():  # as from_pretrained keeps them
        if any(part in name for part in ("norm1", "norm2", "norm3", "time_embedder")):
            module.float()
    padded = conditioning.padded(text, 512).features.to(LOW)
    return lambda: model(x.to(LOW), t, padded, return_dict=False)[0], 0.0


def vae_pair(way: str, side: str) -> tuple[Callable[[], Any], float]:
    latent = Grid(3, 16, 16)
    config = VAEConfig()
    z, video = torch.randn(1, 16, 3, 16, 16), torch.rand(1, 3, 9, 128, 128) * 2 - 1
    with torch.device("meta"):
        module = VAE(config) if side == "ours" else AutoencoderKLWan()
    model = random_weights(module)
    if way == "decode":
        call = (lambda: model.decode(z)) if side == "ours" else (lambda: model.decode(z).sample)
        return call, counts.decode(config, latent).total
    return (lambda: model.encode(video)), 0.0


def text_pair(side: str) -> tuple[Callable[[], Any], float]:
    config = TextConfig(vocab_size=32_000, d_model=1024, d_ff=2560, num_heads=16)
    real = torch.randint(3, 32_000, (1, PROMPT_TOKENS))
    if side == "ours":
        with torch.device("meta"):
            module = umt5(config)
        model = random_weights(module)
        return lambda: model(input_ids=real).last_hidden_state, 0.0
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
    return lambda: model(ids, mask).last_hidden_state, 0.0


def build(case: str, side: str) -> tuple[Callable[[], Any], float]:
    if case.startswith("transformer"):
        return transformer_pair(int(case.split()[1]), side)
    return text_pair(side) if case.startswith("text") else vae_pair(case.split()[1], side)


def dtype_of(case: str) -> torch.dtype:
    return LOW if case.startswith("transformer") else torch.float32


@torch.inference_mode()
def measure(case: str, runs: int) -> dict[str, Any]:
    """Medians of alternating runs, so that other load on the machine meets both alike."""
    ours, flops = build(case, "ours")
    theirs, _ = build(case, "diffusers")
    times: dict[str, list[float]] = {"ours": [], "diffusers": []}
    rates = []
    for turn in range(runs + 1):
        rates.append(matrix_rate(dtype_of(case), torch.device("cpu")))
        for side, call in (("ours", ours), ("diffusers", theirs)):
            begin = time.perf_counter()
            call()
            if turn:  # the first one fills caches
                times[side].append(time.perf_counter() - begin)
    middle = {side: sorted(values)[len(values) // 2] for side, values in times.items()}
    share = flops / middle["ours"] / sorted(rates)[len(rates) // 2] if flops else None
    return {
        "case": case, "ours_s": middle["ours"], "diffusers_s": middle["diffusers"],
        "ratio": middle["diffusers"] / middle["ours"], "share_of_matrix_rate": share,
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
    head = f"{'':18}{'ours':>9}{'diffusers':>11}{'ratio':>8}{'ours GB':>10}{'diff. GB':>10}{'memory':>8}{'share':>8}"
    lines = [head]
    for r in rows:
        share = "" if r["share_of_matrix_rate"] is None else f"{r['share_of_matrix_rate']:.0%}"
        lines.append(
            f"{r['case']:18}{r['ours_s']:>8.2f}s{r['diffusers_s']:>10.2f}s{r['ratio']:>8.2f}"
            f"{r['ours_bytes'] / 1e9:>10.2f}{r['diffusers_bytes'] / 1e9:>10.2f}{r['memory_ratio']:>8.2f}{share:>8}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
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
        row |= {f"{side}_bytes": peak_bytes(case, side) for side in ("ours", "diffusers")}
        row["memory_ratio"] = row["ours_bytes"] / row["diffusers_bytes"]
        rows.append(row)
        print(report(rows).splitlines()[-1], flush=True)
    print(
        f"\n{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {args.runs} alternating runs\n"
    )
    print(report(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
