"""nano's default clip, from the command line to the file: `python benchmarks/nano.py [--json FILE]`.

Time and peak memory of fresh `broll generate` processes (5 s, 81 frames, default settings), beside diffusers'
WanPipeline on the same weights with the same steps, size and guidance, also in a fresh process. Medians.

    first    with an empty BROLL_DATA: it looks at the machine, and reads the text encoder
    again    with what the first one kept: rates, timings, features of the prompt

`--before FOLDER` runs another checkout of broll in turn instead of diffusers, both with that checkout's nano.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMPT = "aerial drone shot slowly circling a lighthouse on rocky coast, ocean waves below, golden hour"
DIFFUSERS = """
import json, pathlib, sys, torch, broll_nano
from diffusers import WanPipeline
own = json.loads((pathlib.Path(broll_nano.FOLDER) / "broll.json").read_text())["defaults"]
pipe = WanPipeline.from_pretrained(broll_nano.FOLDER, dtype=torch.float32, local_files_only=True)
pipe.set_progress_bar_config(disable=True)
frames = pipe(prompt=sys.argv[1], negative_prompt="", num_frames=own["frames"], width=own["size"][0],
              height=own["size"][1], num_inference_steps=own["steps"], guidance_scale=own["guidance"]).frames[0]
assert len(frames) == own["frames"] and frames[0].shape[:2] == (own["size"][1], own["size"][0])
"""


def run(command: list[str], data: Path, home: Path = ROOT) -> tuple[float, int]:
    """Seconds and peak resident bytes of one process, of the broll that lies in `home`."""
    begin = time.perf_counter()
    place = os.environ | {"BROLL_DATA": str(data), "PYTHONPATH": f"{home}{os.pathsep}{home / 'nano'}"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=place, cwd=home, **quiet)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:4]} failed")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--before", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "clip.mp4")
        ours = [sys.executable, "-m", "broll", "generate", PROMPT, "--seed", "1", "--quiet"]
        ours += ["--out", out, "--force"]
        ours += ["--model", "nano" if args.before is None else str(args.before / "nano/broll_nano/model")]
        rival = [sys.executable, "-c", DIFFUSERS, PROMPT]
        commands = {"broll generate, first": (ours, ROOT), "broll generate, again": (ours, ROOT)}
        if args.before is None:
            commands["diffusers, no file"] = (rival, ROOT)
        else:
            commands |= {"before, first": (ours, args.before), "before, again": (ours, args.before)}
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
        for turn in range(args.runs):
            for name, (command, home) in commands.items():
                data = Path(folder) / f"data {turn} {home == ROOT}"
                found[name].append(run(command, data, home))
    rows = {
        name: {"seconds": sorted(t for t, _ in runs)[len(runs) // 2], "peak_bytes": max(m for _, m in runs)}
        for name, runs in found.items()
    }
    print(f"{'':22}{'seconds':>9}{'peak GB':>9}")
    for name, row in rows.items():
        print(f"{name:22}{row['seconds']:>9.1f}{row['peak_bytes'] / 1e9:>9.2f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
