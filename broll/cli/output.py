"""Words for people: on stderr, one line each, with units; and nothing that could drive a terminal."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broll.engine.rates import Rates


def say(text: str) -> None:
    """One line on stderr. stdout is for results."""
    try:
        print(f"broll: {text}", file=sys.stderr, flush=True)
    except UnicodeEncodeError:
        print(f"broll: {text.encode('ascii', 'backslashreplace').decode()}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Without control characters and lone surrogates: what came from a file may try to drive the terminal."""
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else ascii(letter)[1:-1]
        for letter in text
    ).strip()


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 50_000_000 else f"{size / 1e6:.1f} MB"


def speeds(rates: "Rates") -> str:
    """How fast a machine computes."""
    unit, name = (1e12, "TFLOP/s") if rates.linear >= 1e13 else (1e9, "GFLOP/s")
    kinds = {"Linears": rates.linear, "attention": rates.attention, "convolutions": rates.convolution}
    return f"{', '.join(f'{kind} {rate / unit:.0f}' for kind, rate in kinds.items())} {name}"
