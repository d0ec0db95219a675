"""The plan beside the run: `python benchmarks/plan.py [--cases nano 1.3b] [--json FILE]`.

Each case is planned by a fresh `broll plan`, with nothing remembered, and then made by a fresh process, which tells the
seconds of its stages and its own peak memory (VmHWM: also the pages of files that it looked at).

    nano    its default clip
    1.3b    WAN 2.1's 1.3B transformer and VAE at full size with random weights in bf16, as they are published;
            256x256, 9 frames, 2 steps. umT5 is one narrow layer: at its true size it takes 11 to 23 GB
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from broll import catalog, clips, wiring
from broll.engine import pipeline
from broll.engine.config import PUBLISHED, TextConfig
from broll.engine.load import on_meta
from broll.engine.pipeline import Frames
from broll.engine.sampler import Step
from broll.engine.text_encoder import umt5
from broll.engine.transformer import Transformer, parameter_dtype
from broll.engine.vae import VAE
from broll.settings import Settings
from broll.spec import parse

PROMPT = "aerial drone shot slowly circling a lighthouse on rocky coast, ocean waves below, golden hour"
NARROW = TextConfig(vocab_size=32_000, d_ff=1024, num_layers=1)
CASES: dict[str, dict[str, Any]] = {
    "nano": {},
    "1.3b": {"size": "256x256", "frames": 9, "steps": 2},
}
STAGES = ("denoise", "decode")


def random_state(module: torch.nn.Module, low: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in module.named_parameters():
        yield name, torch.empty(parameter.shape).normal_(std=0.02).to(parameter_dtype(name, low))


def checkpoint(folder: Path) -> Path:
    """The 1.3B as three files and nano's tokenizer."""
    config = PUBLISHED["wan2.1-t2v-1.3b"]
    nano = catalog.find(Settings(), "nano").folder
    parts = {
        "transformer": on_meta(lambda: Transformer(config.transformer)),
        "vae": on_meta(lambda: VAE(config.vae)),
        "text_encoder": on_meta(lambda: umt5(NARROW)),
    }
    lines = []
    for name, module in parts.items():
        save_file(dict(random_state(module, torch.bfloat16)), folder / f"{name}.safetensors")
        lines.append(f'[{name}]\nfile = "{name}.safetensors"\n')
    lines.append(f'[tokenizer]\nfolder = "{nano / "tokenizer"}"\n')
    (folder / "model.toml").write_text("\n".join(lines))
    return folder


def planned(model: str, fields: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as data:
        options = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "broll", "plan", PROMPT, "--model", model, *options, "--json"]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"BROLL_DATA": data}
        )
    return json.loads(done.stdout)


def made(model: str, fields: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--make", model, json.dumps(fields)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def make(model: str, fields: dict[str, Any]) -> dict[str, Any]:
    """In this process: a clip as `broll generate` makes it, and what it took."""
    settings = Settings()
    wiring.use_threads(settings)
    found = catalog.find(settings, model)
    config = wiring.describe(found)
    given = dict(fields)
    if "size" in given:
        given["width"], given["height"] = (int(side) for side in given.pop("size").split("x"))
    spec = pipeline.resolve(parse(model=found.name, prompt=PROMPT, seed=1, **given), config)
    parts = wiring.load(found, config)
    times = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as folder:
        for event in clips.make_clip(spec, parts, Path(folder) / "clip.mp4", format="mp4"):
            if isinstance(event, Step):
                times.append(time.perf_counter())
            elif isinstance(event, Frames):
                end = time.perf_counter()
    return {
        "seconds": end - times[0],
        "denoise": (times[-1] - times[1]) / (len(times) - 2) * (spec.steps or 1),
        "decode": end - times[-1],
        "memory_bytes": own_peak_bytes(),
    }


def own_peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def compared(case: str, plan: dict[str, Any], run: dict[str, Any]) -> list[dict[str, Any]]:
    stages = {stage["name"]: stage["seconds"] for stage in plan["stages"]}
    pairs = [(f"{name}, s", stages[name], run[name]) for name in STAGES]
    pairs += [("whole clip, s", plan["seconds"], run["seconds"])]
    pairs += [("peak memory, GB", plan["memory_bytes"] / 1e9, run["memory_bytes"] / 1e9)]
    return [
        {"case": case, "what": what, "planned": ours, "measured": real, "off": ours / real - 1}
        for what, ours, real in pairs
    ]


def report(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':8}{'':18}{'planned':>10}{'measured':>10}{'off':>8}"]
    lines += [
        f"{r['case']:8}{r['what']:18}{r['planned']:>10.2f}{r['measured']:>10.2f}{r['off']:>+8.0%}"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        print(json.dumps(make(args.make[0], json.loads(args.make[1]))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            model = case if case == "nano" else str(checkpoint(Path(folder)))
            rows += compared(case, planned(model, CASES[case]), made(model, CASES[case]))
    print(report(rows))
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
