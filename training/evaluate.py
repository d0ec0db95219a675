"""Does nano do what it is told? `python -m training.evaluate` generates, measures, and writes nano/REPORT.md.

Prompts come from the caption grammar with seeds that training never used, each camera move equally often; a prompt
that leaves the light out is not judged on light. The measures (training/measures.py) have never seen a
generated clip, and are themselves tested first, on held-out renders after the autoencoder's round trip.
"""

import argparse
import json
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from broll.engine import pipeline
from broll.engine.load import Parts, load
from broll.engine.pipeline import Frames
from broll.media.sheets import contact_sheet
from broll.spec import parse
from training import measures, run
from training.captions import ARTICLE, LIGHT_WORDS, PAIR_WORDS, caption
from training.export import MODEL
from training.render import to_float, to_uint8
from training.scenes import CAMERAS, Scene, render, sample

BARS = {"camera": 0.80, "light": 0.90, "scene": 0.80, "measures": 0.98}
REPORT = run.ROOT / "nano" / "REPORT.md"
SHEETS = run.ROOT / "docs" / "images"
SHOWN = (  # on the README's sheet: the article's own prompts, and three more
    *ARTICLE,
    "city skyline at night, camera pans left",
    "zoom in on a bottle on a table, warm orange light",
    "tracking shot of sand dunes, clear blue sky",
)


@dataclass(frozen=True)
class Judged:
    prompt: str
    asked: dict[str, str]  # camera, scene, and light if the prompt names one
    measured: dict[str, str]
    seconds: float
    strip: Image.Image

    def followed(self, key: str) -> bool:
        return self.asked[key] == self.measured[key]


def prompts(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes and captions, camera moves in turn."""
    rng = random.Random(f"evaluate/{seed}")
    drawn: list[tuple[Scene, str]] = []
    while len(drawn) < count:
        scene = sample(rng)
        if scene.camera == CAMERAS[len(drawn) % len(CAMERAS)]:
            drawn.append((scene, caption(scene, rng)))
    return drawn


def plain(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower())


def asked(scene: Scene, prompt: str) -> dict[str, str]:
    words = LIGHT_WORDS[scene.light] + PAIR_WORDS.get((scene.scene, scene.light), ())
    named = any(plain(w) in plain(prompt) for w in words) or prompt in ARTICLE
    return {"camera": scene.camera, "scene": scene.scene} | ({"light": scene.light} if named else {})


def make(parts: Parts, prompt: str, seed: int) -> torch.Tensor:
    """One clip with nano's own defaults: [f, 3, h, w] uint8."""
    spec = pipeline.resolve(parse(model="nano", prompt=prompt, seed=seed), parts.config)
    frames = [e.frames for e in pipeline.generate(spec, parts) if isinstance(e, Frames)]
    return to_uint8(torch.cat(frames, dim=1)).transpose(0, 1)


def strip(clip: torch.Tensor, pictures: int = 5) -> Image.Image:
    """Frames side by side, first to last."""
    chosen = clip[torch.linspace(0, len(clip) - 1, pictures).round().long()]
    return Image.fromarray(torch.cat(list(chosen), dim=2).permute(1, 2, 0).numpy())


def judge(parts: Parts, count: int, seed: int) -> list[Judged]:
    model, results = measures.load(), []
    for place, (scene, prompt) in enumerate(prompts(count, seed)):
        begin = time.perf_counter()
        clip = make(parts, prompt, seed=1000 + place)
        seconds = time.perf_counter() - begin
        results.append(Judged(prompt, asked(scene, prompt), model.name(clip), seconds, strip(clip)))
        print(f"{place + 1}/{count} {prompt!r}: {results[-1].measured}", flush=True)
    return results


@torch.no_grad()
def autoencoder_psnr(parts: Parts, clips: int, seed: int) -> float:
    """Mean PSNR of fresh renders after the round trip, all 81 frames, in dB."""
    rng, values = random.Random(f"psnr/{seed}"), []
    for _ in range(clips):
        x = to_float(to_uint8(render(sample(rng)))).transpose(0, 1)[None]
        error = (parts.vae.decode(parts.vae.encode(x)) - x).square().mean()
        values.append(float(-10 * (error / 4).log10()))
    return sum(values) / len(values)


def shares(results: list[Judged]) -> dict[str, tuple[int, int]]:
    judged = {key: [r for r in results if key in r.asked] for key in ("camera", "light", "scene")}
    return {key: (sum(r.followed(key) for r in rows), len(rows)) for key, rows in judged.items()}


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_value(results: list[Judged], key: str) -> str:
    rows = [[key, "followed", "taken for"]]
    for value in sorted({r.asked[key] for r in results if key in r.asked}):
        mine = [r for r in results if r.asked.get(key) == value]
        wrong = sorted(r.measured[key] for r in mine if not r.followed(key))
        rows.append([value, f"{len(mine) - len(wrong)}/{len(mine)}", ", ".join(wrong)])
    return table(rows)


def report(results: list[Judged], psnr: float, seed: int) -> str:
    with safe_open(measures.FILE, framework="pt") as file:
        own = {key: float(value) for key, value in file.metadata().items()}
    rows = [["", "followed", "share", "bar", "the measure itself, on held-out renders"]]
    for key, (good, of) in shares(results).items():
        rows.append([key, f"{good}/{of}", f"{good / of:.0%}", f"{BARS[key]:.0%}", f"{own[key]:.1%}"])
    seconds = sorted(r.seconds for r in results)[len(results) // 2]
    listing = [["prompt", "camera", "light", "scene"]]
    for r in results:
        cells = [
            "-" if key not in r.asked else "yes" if r.followed(key) else f"no: {r.measured[key]}"
            for key in ("camera", "light", "scene")
        ]
        listing.append([r.prompt, *cells])
    return "\n\n".join(
        [
            "# Does nano do what it is told?",
            f"Written by `python -m training.evaluate --count {len(results)} --seed {seed}` from the committed "
            "weights. Prompts and seeds that training never used; nano's default clip (5 s, 81 frames).",
            table(rows),
            f"Autoencoder, fresh renders there and back: {psnr:.1f} dB. "
            f"Median time of a clip in this run: {seconds:.0f} s on {torch.get_num_threads()} threads.",
            *(by_value(results, key) for key in ("camera", "light", "scene")),
            "## Every prompt",
            table(listing),
        ]
    )  # fmt: skip


def sheets(parts: Parts, results: list[Judged]) -> None:
    """The report's strips, and the README's sheet: the article's own prompts and a few more."""
    SHEETS.mkdir(parents=True, exist_ok=True)
    width, height = results[0].strip.size
    some = results[:: max(1, len(results) // 18)][:18]
    page = Image.new("RGB", (2 * width, height * ((len(some) + 1) // 2)))
    for place, r in enumerate(some):
        page.paste(r.strip, (width * (place % 2), height * (place // 2)))
    page.save(SHEETS / "nano_report.jpg", quality=85)
    rows = []
    for prompt in SHOWN:
        frames = list(make(parts, prompt, seed=1).permute(0, 2, 3, 1).numpy())
        rows.append(contact_sheet(frames, columns=5, rows=1, title=prompt))
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(SHEETS / "sheet.jpg", quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=72)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--json", type=Path, help="also write the shares here")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = load(args.model, "nano")
    results = judge(parts, args.count, args.seed)
    text = report(results, autoencoder_psnr(parts, 16, args.seed), args.seed)
    REPORT.write_text(text + "\n")
    sheets(parts, results)
    found = {key: good / of for key, (good, of) in shares(results).items()}
    if args.json:
        args.json.write_text(json.dumps(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
