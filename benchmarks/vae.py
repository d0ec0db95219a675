"""The autoencoder's choices, measured: `python -m benchmarks.vae [--only PART] [--real FILE ...] [--json FILE]`.

    precision   nano's trained autoencoder in bf16 beside itself in fp32, both ways: its own clips as rendered for its
                training, clips that it generates, and real ones (--real: videos or pictures, cut to its size)
    layout      seconds with channels last and without, decoding and encoding: nano's, and one of the published width
    memory      the most memory of decoding and encoding beside diffusers' AutoencoderKLWan: measured, of a third of the
                published width, each in a process of its own; and for 81 frames at the published width, counted on
                the meta device as a plan does, weights included
    tiles       seconds and the most memory of decoding in tiles, of a third of the published width, each in a process
                of its own; and the operations that are counted for it, by those without tiles

PSNR is over a clip in 256 levels; `levels` is the share of values that differ by more than one. Of latents it is the
signal's power over that of the difference. On a CPU convolutions multiply what is rounded to bf16 in fp32, and round
what comes of it, as a GPU does; torch's own there are too slow for this.
"""

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor, nn

from broll import catalog, wiring
from broll.engine import conditioning, counts, footprint, pipeline, tiles
from broll.engine.config import VAEConfig
from broll.engine.load import Parts, on_meta
from broll.engine.pipeline import Frames
from broll.engine.shapes import Grid
from broll.engine.vae import VAE, channels_last
from broll.media.video_file import read_frames
from broll.settings import Loading, Settings
from broll.spec import parse
from training.scenes import render, sample

Row = dict[str, Any]
FRAMES = 9
PROMPTS = (
    "a lighthouse at night in fog",
    "a steam train on a bridge, noon",
    "life under water",
    "a campfire",
)
VIDEOS = (".mp4", ".webm", ".mkv")
LATENT = (8, 8)  # of the timed autoencoder of the published width: 64 x 64 pixels
TILED = (24, 40)  # for tiles, and measured memory: 192 x 320
SIDES = ("broll", "diffusers")
LATENTS = 21  # of 81 frames


# --- precision --------------------------------------------------------------------------------------------


def precision(real: list[Path]) -> Iterator[Row]:
    found = catalog.find(Settings(), "nano")
    parts = wiring.load(found, wiring.describe(found), Loading(vae_precision="float32"))
    low = in_bf16(parts.vae)
    with torch.inference_mode():
        for name, clip in clips(parts, real):
            yield compared(name, clip, parts.vae, low)


def in_bf16(vae: VAE) -> VAE:
    low = copy.deepcopy(vae).to(torch.bfloat16)
    for layer in low.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.weight.device.type == "cpu":
            vars(layer)["_conv_forward"] = partial(rounding, layer)
    return low


def rounding(layer: nn.Conv2d | nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    made = type(layer)._conv_forward(layer, x.float(), weight.float(), bias.float())  # type: ignore[arg-type]
    return made.to(x.dtype)


def clips(parts: Parts, real: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """[1, 3, f, H, W] in [-1, 1]."""
    width, height = parts.config.defaults.size
    for number in range(6):
        scene = sample(random.Random(f"vae/{number}"))
        clip = render(scene, frames=FRAMES, height=height, width=width)
        yield f"rendered {number}", levels(clip.transpose(0, 1))[None]
    for number, prompt in enumerate(PROMPTS):
        asked = parse(model="nano", prompt=prompt, seed=number, frames=FRAMES, steps=8)
        spec = pipeline.resolve(asked, parts.config)
        made = [e.frames for e in pipeline.generate(spec, parts) if isinstance(e, Frames)]
        yield f"generated {number}", levels(torch.cat(made, dim=1))[None]
    for path in real:
        yield path.name, filmed(path, width, height)


def filmed(path: Path, width: int, height: int) -> Tensor:
    """The first frames of a video, or a picture that stands still."""
    if path.suffix.lower() in VIDEOS:
        pictures = [
            Image.fromarray(frame) for frame, _ in zip(read_frames(path), range(FRAMES), strict=False)
        ]
    else:
        pictures = [Image.open(path).convert("RGB")] * 5
    fitted = [conditioning.fit(conditioning.cover(p, width, height), width, height) for p in pictures]
    return levels(torch.cat(fitted).clamp(-1, 1).transpose(0, 1))[None]


def compared(name: str, clip: Tensor, vae: VAE, low: VAE) -> Row:
    z = vae.encode(clip)
    exact, rounded = levels(vae.decode(z)), levels(low.decode(z))
    latent = low.encode(clip)
    return {
        "clip": name,
        "decode_psnr": psnr(rounded, exact),
        "levels": float(((rounded - exact).abs() > 1.5 / 127.5).float().mean()),
        "encode_snr": float(10 * (z.square().mean() / (latent - z).square().mean()).log10()),
        "encode_psnr": psnr(levels(vae.decode(latent)), exact),
        "itself_psnr": psnr(exact, clip),
    }


def levels(x: Tensor) -> Tensor:
    """As a file keeps it: 256 levels."""
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * ((a - b).square().mean() / 4).log10())


# --- layout -----------------------------------------------------------------------------------------------


def layout(device: torch.device) -> Iterator[Row]:
    """Both ways in turn, so that what else the machine does is the same for both."""
    found = catalog.find(Settings(), "nano")
    nano = wiring.describe(found)
    wide = VAEConfig()
    cases: list[tuple[str, VAEConfig, tuple[int, int], int]] = [
        ("nano", nano.vae, (nano.defaults.size[1] // 16, nano.defaults.size[0] // 16), 5),
        ("published width", wide, LATENT, 2),
    ]
    for name, config, (height, width), latents in cases:
        models = {
            "plain": random_weights(config, device),
            "last": channels_last(random_weights(config, device)),
        }
        z = torch.randn(1, config.z_dim, latents, height, width, device=device)
        stride = config.spatial_stride
        clip = torch.rand(1, 3, 4 * latents - 3, height * stride, width * stride, device=device) * 2 - 1
        for way in ("decode", "encode"):
            times: dict[str, list[float]] = {kind: [] for kind in models}
            for turn in range(4):
                for kind, model in models.items():
                    run = model.decode if way == "decode" else model.encode
                    seconds = timed(partial(run, z if way == "decode" else clip), device)
                    times[kind] += [seconds] * (turn > 0)
            plain, last = (median(times[kind]) for kind in ("plain", "last"))
            yield {
                "model": name,
                "way": way,
                "plain_s": plain,
                "channels_last_s": last,
                "ratio": plain / last,
            }


def random_weights(config: VAEConfig, device: torch.device) -> VAE:
    """So that numbers stay near one through all convolutions."""
    torch.manual_seed(0)
    model = VAE(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "gamma" not in name:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    return model.eval().requires_grad_(False).to(device)


@torch.inference_mode()
def timed(run: Callable[[], Any], device: torch.device) -> float:
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


# --- memory -----------------------------------------------------------------------------------------------


def beside_diffusers(device: torch.device) -> Iterator[Row]:
    height, width = (8 * places for places in TILED)
    for way in ("decode", "encode"):
        ours, theirs = (alone("--peak", way, side, "--device", device.type) for side in SIDES)
        yield against(f"{way}, measured", f"{width}x{height}", 9, ours, theirs)
    for width, height in ((832, 480), (1280, 720)):
        for way in ("decode", "encode"):
            ours, theirs = (counted(way, side, width, height, device) for side in SIDES)
            yield against(f"{way}, counted", f"{width}x{height}", 81, ours, theirs)


def against(what: str, size: str, frames: int, ours: int, theirs: int) -> Row:
    sizes = {"broll_gb": ours / 1e9, "diffusers_gb": theirs / 1e9, "ratio": ours / theirs}
    return {"what": what, "size": size, "frames": frames, **sizes}


def of_side(side: str, config: VAEConfig) -> Any:
    return VAE(config) if side == SIDES[0] else AutoencoderKLWan(base_dim=config.base_dim)


def run_once(model: Any, way: str, latents: int, height: int, width: int) -> None:
    """Of latents of this height and width, or of the frames they are made from."""
    if way == "decode":
        model.decode(torch.randn(1, 16, latents, height, width))
    else:
        model.encode(torch.zeros(1, 3, 4 * latents - 3, 8 * height, 8 * width))


def counted(
    way: str, side: str, width: int, height: int, device: torch.device, latents: int = LATENTS
) -> int:
    model = on_meta(partial(of_side, side, VAEConfig())).eval()
    with footprint.watched(device.type) as alive:
        run_once(model, way, latents, height // 8, width // 8)
    return alive.most + sum(parameter.nbytes for parameter in model.parameters())


@torch.inference_mode()
def one_peak(way: str, side: str, device: torch.device) -> int:
    """Beyond what the process holds after a first run, which brings the libraries."""
    with device:
        model = of_side(side, VAEConfig(base_dim=32)).eval()
        run_once(model, way, 1, 2, 2)
        before = peak(device)
        run_once(model, way, 3, *TILED)
    return peak(device) - before


def alone(*words: str) -> Any:
    """What this program says in a process of its own, where freed megabytes go back at once."""
    command = [sys.executable, "-m", "benchmarks.vae", *words]
    given = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=given).stdout)


# --- tiles ------------------------------------------------------------------------------------------------


def tiled(device: torch.device) -> Iterator[Row]:
    for count in (1, 2, 4, 8):
        yield alone("--tile", str(count), "--device", device.type)


@torch.inference_mode()
def one_tiling(count: int, device: torch.device) -> Row:
    """Three latents; the first run of another shape, so that libraries are there."""
    config, latent = VAEConfig(base_dim=32), Grid(3, *TILED)
    model = tiles.use(random_weights(config, device), count)
    exhaust(model, torch.randn(1, 16, 1, 2, 2, device=device))
    before = peak(device)
    z = torch.randn(1, 16, 3, *TILED, device=device)
    seconds = timed(lambda: exhaust(model, z), device)
    areas = tiles.areas(config, latent, count) if count > 1 else []
    more = counts.decode(config, latent, areas).total / counts.decode(config, latent).total
    return {
        "tiles": count, "seconds": seconds, "memory_mb": (peak(device) - before) // 10**6, "operations": more,
    }  # fmt: skip


def exhaust(model: VAE, z: Tensor) -> None:
    for _ in model.decode_stream(z):
        pass


def peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


# --- what it comes to -------------------------------------------------------------------------------------


def told(row: Row, *, first: bool) -> str:
    """A row of a table, which is long in coming."""
    line = f"| {' | '.join(map(shown, row.values()))} |"
    return f"\n| {' | '.join(row)} |\n{'|---' * len(row)}|\n{line}" if first else line


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["precision", "layout", "memory", "tiles"])
    parser.add_argument("--real", nargs="*", type=Path, default=[])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tile", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.tile is not None:
        print(json.dumps(one_tiling(options.tile, device)))
        return
    if options.peak is not None:
        print(json.dumps(one_peak(*options.peak, device)))
        return
    parts: Mapping[str, Callable[[], Iterator[Row]]] = {
        "precision": lambda: precision(options.real),
        "layout": lambda: layout(device),
        "memory": lambda: beside_diffusers(device),
        "tiles": lambda: tiled(device),
    }
    found: dict[str, list[Row]] = {}
    for name, run in parts.items():
        for row in run() if options.only in (None, name) else ():
            print(told(row, first=name not in found), flush=True)
            found.setdefault(name, []).append(row)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
