"""Points on two axes as an SVG: each with its label, and those of one group on a line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 460
LEFT, TOP, RIGHT, BOTTOM = 60, 20, 20, 50  # margins
COLOURS = ("#1b6ca8", "#c1440e", "#3a7d44", "#7a4fa3", "#8a6d00", "#555555")
LETTER, LINE = 6.2, 13  # width of a letter of a label, about, and height of a line


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str
    group: str


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with a mark every `step`."""

    title: str
    low: float
    high: float
    step: float

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    @property
    def marks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + i * self.step for i in range(count + 1)]


def scatter(points: Sequence[Point], x: Axis, y: Axis) -> str:
    def place(a: float, b: float) -> tuple[float, float]:
        across, up = x.share(a) * (WIDTH - LEFT - RIGHT), y.share(b) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for mark in x.marks:
        at, bottom = place(mark, y.low)
        parts += [line((at, TOP), (at, bottom), "#dddddd"), text(at, bottom + 16, f"{mark:g}", "middle")]
    for mark in y.marks:
        left, at = place(x.low, mark)
        parts += [
            line((left, at), (WIDTH - RIGHT, at), "#dddddd"),
            text(left - 8, at + 4, f"{mark:g}", "end"),
        ]
    parts += [text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x.title, "middle"), text(8, 13, y.title, "start")]
    boxes: list[tuple[float, float, float]] = []  # of labels: left, right, middle
    ordered = sorted(points, key=lambda point: (point.group, point.x))
    groups = [list(own) for _, own in groupby(ordered, key=lambda point: point.group)]
    for own, colour in zip(groups, COLOURS * len(groups), strict=False):
        spots = [place(point.x, point.y) for point in own]
        parts += [line(a, b, colour) for a, b in zip(spots, spots[1:], strict=False)]
        for point, (across, down) in zip(own, spots, strict=True):
            parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4" fill="{colour}"/>')
            parts.append(label(point.label, across, down, colour, boxes))
    return "\n".join([*parts, "</svg>"]) + "\n"


def label(
    words: str, across: float, down: float, colour: str, taken: list[tuple[float, float, float]]
) -> str:
    """Beside its point, and moved down while it would cover another one."""
    long = LETTER * len(words)
    left = across + 8 if across + 8 + long < WIDTH else across - 8 - long
    middle = down
    while any(left < b and a < left + long and abs(middle - m) < LINE for a, b, m in taken):
        middle += LINE
    taken.append((left, left + long, middle))
    return text(left, middle + 4, words, "start", colour)


def line(start: Iterable[float], end: Iterable[float], colour: str) -> str:
    (a, b), (c, d) = start, end
    return f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}" stroke="{colour}"/>'


def text(across: float, down: float, words: str, anchor: str, colour: str = "#333333") -> str:
    return (
        f'<text x="{across:.1f}" y="{down:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'
    )
