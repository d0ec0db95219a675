"""The engine on a GPU, in one command of a few minutes: `python -m benchmarks.gpu [--seconds N] [--json FILE]`.

Random weights of the published sizes, made on the device. Parts run in the order of their worth until the budget is
spent; every row is printed and in the file the moment it is known, with the seconds since the start.

    rates      one kernel at a time: what the roof is made of
    parity     every part, small, beside fp32 on the CPU: relative errors
    far        attention with far pairs left out, alone
    14b, 1.3b  one forward: exact, fused, sparse, fp8, streamed; its share of peak and its time over the roof
    stages     the text encoder, the autoencoder both ways
    clip       tokens to frames with four steps: what the stages come to, and in one go
    ways       the 14B with steps cached, in products of 8-bit integers, and streamed at 720p
    more, vae  the other ways of both: with guidance, FlexAttention at 480p, not fused; in fp32
    batch      nano: several clips in one forward against one after the other
    diffusers  the same forward by diffusers, where it is installed

`--tiny --device cpu` runs all of it on small models, to know that it runs. `--probe` says what the machine is.
"""

import argparse
import gc
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

BEGAN = time.time()
PARTS = {
    "rates": ("rates", "run"),
    "parity": ("parity", "run"),
    "far": ("far", "run"),
    "14b": ("forwards", "fourteen"),
    "1.3b": ("forwards", "small"),
    "stages": ("stages", "run"),
    "clip": ("clip", "run"),
    "ways": ("ways", "run"),
    "more": ("forwards", "more"),
    "vae": ("stages", "more"),
    "batch": ("batch", "run"),
    "diffusers": ("rival", "run"),
}
PACKAGES = (
    "triton",
    "flash_attn",
    "flash_attn_interface",
    "sageattention",
    "diffusers",
    "transformers",
    "pydantic",
)


SHORTEST = 3  # seconds; making a model takes two


def without_pydantic() -> None:
    """The engine names VideoSpec in signatures, and pydantic makes it; no clip is asked for here, so where pydantic is
    not installed an empty class has its name.
    """
    try:
        import pydantic  # noqa: F401
    except ImportError:
        module = types.ModuleType("broll.spec")
        for name in ("VideoSpec", "LoraUse"):
            setattr(module, name, type(name, (), {}))
        sys.modules["broll.spec"] = module


def probe() -> None:
    import torch

    from benchmarks.on_gpu.bench import machine

    print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    print({name: importlib.util.find_spec(name) is not None for name in PACKAGES}, sys.version.split()[0])
    asked = "name,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,memory.used,driver_version"
    try:
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"]
        print(subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout)
    except OSError as error:
        print(f"nvidia-smi: {error.strerror}")


def pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=600, help="all of it, from the start of this program"
    )
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--rows", type=pattern, default="", metavar="REGEX", help="only those whose names have it in them"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and sizes")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="what is compiled"
    )
    parser.add_argument("--probe", action="store_true", help="say what the machine is, and end")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print what such a file holds, and end")
    args = parser.parse_args()
    if args.probe:
        probe()
        return
    if args.table:
        from benchmarks.on_gpu.table import markdown

        print(markdown(args.table))
        return
    without_pydantic()
    os.environ.setdefault(
        "TORCHINDUCTOR_COMPILE_THREADS", "1"
    )  # a dozen kernels: starting workers costs more
    import torch

    from benchmarks.on_gpu.bench import Bench

    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --tiny --device cpu shows that all of it runs")
    bench = Bench(
        device, seconds=args.seconds, began=BEGAN, json=args.json, tiny=args.tiny, compiled=args.compile,
        rows=args.rows,
    )  # fmt: skip
    bench.part = "start"
    bench.add("imported", {"gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none"})
    with torch.inference_mode():
        for part in args.parts:
            module, function = PARTS[part]
            bench.part = part
            if bench.left < SHORTEST and not args.tiny:
                bench.add("this part", {"skipped": f"{max(0, bench.left):.0f} s are left"})
                continue
            try:
                measure = getattr(importlib.import_module(f"benchmarks.on_gpu.{module}"), function)
                gc.freeze()  # what was imported stays; looking through it before every row takes tenths of a second
                measure(bench)
            except Exception as error:  # noqa: BLE001  one part must not cost those after it
                bench.add("this part", {"failed": f"{type(error).__name__}: {str(error)[:300]}"})
            bench.forget()
    bench.part = "end"
    bench.add("done", {"failed": [row["name"] for row in bench.rows if "failed" in row]})


if __name__ == "__main__":
    main()
