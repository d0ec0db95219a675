"""A clip at a glance: one frame that stands for it, or a grid of them.

Frames are uint8 [h, w, 3] RGB.

Left out: fonts. Pillow's own has Latin letters only; other scripts become boxes, and nothing breaks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frame = NDArray[np.uint8]  # [h, w, 3]

FLAT = 4.0  # levels of grey; a black or empty frame varies less
CELL_WIDTH = 320
GUTTER = 4
FONT_SIZE = 14
PAPER, INK = "white", "black"


def contrast(frame: Frame) -> float:
    return float(frame.mean(axis=2).std())


def poster(frames: Sequence[Frame]) -> Image.Image:
    """The frame nearest to the middle that is not black or flat; the middle one if all are."""
    assert len(frames) > 0, "a poster needs a frame"
    middle = len(frames) // 2
    outward = sorted(range(len(frames)), key=lambda index: abs(index - middle))
    chosen = next((index for index in outward if contrast(frames[index]) > FLAT), middle)
    return Image.fromarray(np.ascontiguousarray(frames[chosen]))


def pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A word that fits is itself; a longer one, or a sentence without spaces, is cut."""
    cut = [""]
    for letter in word:
        if cut[-1] and font.getlength(cut[-1] + letter) > width:
            cut.append("")
        cut[-1] += letter
    return cut


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    printable = "".join(c if c.isprintable() else " " for c in text)
    lines = [""]
    for word in printable.split():
        for piece in pieces(word, font, width):
            longer = f"{lines[-1]} {piece}".strip()
            if font.getlength(longer) <= width or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(piece)
    return [line for line in lines if line]


def evenly(count: int, available: int) -> list[int]:
    """`count` indices from the first to the last; each once."""
    count = min(count, available)
    return [round(i * (available - 1) / max(count - 1, 1)) for i in range(count)]


def contact_sheet(
    frames: Sequence[Frame], *, columns: int = 4, rows: int = 2, title: str = ""
) -> Image.Image:
    """Evenly spaced frames, the first and the last among them; a short clip gets a smaller grid."""
    assert len(frames) > 0, "a contact sheet needs a frame"
    chosen = evenly(columns * rows, len(frames))
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)

    h, w = frames[0].shape[:2]
    cell_w = min(w, CELL_WIDTH)
    cell_h = max(1, round(h * cell_w / w))
    width = GUTTER + columns * (cell_w + GUTTER)
    height = GUTTER + rows * (cell_h + GUTTER)

    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)
    lines = wrapped(title, font, width - 2 * GUTTER)
    line_h = round(FONT_SIZE * 1.4)
    sheet = Image.new("RGB", (width, height + len(lines) * line_h + (GUTTER if lines else 0)), PAPER)

    for cell, index in enumerate(chosen):
        row, column = divmod(cell, columns)
        small = Image.fromarray(np.ascontiguousarray(frames[index])).resize(
            (cell_w, cell_h), Image.Resampling.LANCZOS
        )
        sheet.paste(small, (GUTTER + column * (cell_w + GUTTER), GUTTER + row * (cell_h + GUTTER)))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((GUTTER, height + number * line_h), line, fill=INK, font=font)
    return sheet
