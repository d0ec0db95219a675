"""The README's contact sheet: `python -m training.sheet` makes its clips with the committed weights, one by one."""

import argparse
from pathlib import Path

import torch
from PIL import Image

from broll.engine import pipeline
from broll.engine.load import Parts, load
from broll.engine.pipeline import Frames
from broll.media.sheets import contact_sheet
from broll.spec import parse
from training import run
from training.captions import ARTICLE
from training.export import MODEL
from training.render import to_uint8

SHOWN = (  # the article's own prompts, and some more: prompt and seed
    *((prompt, 1) for prompt in ARTICLE),
    ("a campfire by the tents at night, static shot", 1),
    ("crane up over a farmhouse in heavy snowfall at dusk", 1),
    ("watercolour painting of a meadow with a farmhouse, truck left", 1),
    ("a car driving along a country road, tracking shot, overcast", 1),
    ("underwater, a school of fish, tilt up, daylight", 1),
)


def make(parts: Parts, prompt: str, seed: int) -> torch.Tensor:
    """One clip with nano's own defaults: [f, 3, h, w] uint8."""
    spec = pipeline.resolve(parse(model="nano", prompt=prompt, seed=seed), parts.config)
    frames = [e.frames for e in pipeline.generate(spec, parts) if isinstance(e, Frames)]
    return to_uint8(torch.cat(frames, dim=1)).transpose(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=run.ROOT / "docs" / "images" / "sheet.jpg")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts, rows = load(args.model, "nano"), []
    for prompt, seed in SHOWN:
        frames = list(make(parts, prompt, seed).permute(0, 2, 3, 1).numpy())
        rows.append(contact_sheet(frames, columns=5, rows=1, title=prompt))
        print(prompt, flush=True)
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(args.out, quality=88)


if __name__ == "__main__":
    main()
