"""Numbers in a prompt: "5 seconds", "2 mph", "60 fps", "3 cats"; `name` says the number as it counts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from broll.prompts.words import Token

NUMBER = re.compile(r"[0-9]{1,6}")
FUSED = re.compile(r"([0-9]{1,5})(s|sec|secs|min|mph|kph|kmh|fps)")
TIME = {
    "s": 1,
    "sec": 1,
    "secs": 1,
    "second": 1,
    "seconds": 1,
    "秒": 1,
    "min": 60,
    "minute": 60,
    "minutes": 60,
    "hour": 3600,
    "hours": 3600,
}
PACE = frozenset({"mph", "kph", "kmh", "km", "knots", "rpm", "miles", "kilometers", "kilometres"})
# 3 of these are no three things.
NO_COUNT = frozenset({
    "k", "d", "p", "x", "mm", "cm", "m", "km", "inch", "inches", "feet", "ft", "degree", "degrees",
    "percent", "am", "pm", "th", "bit", "megapixels", "fps", "o", "clock", "year", "years",
})  # fmt: skip
MOST = 1000  # 1800 is a year


@dataclass(frozen=True, slots=True)
class Measure:
    kind: str
    name: str
    end: int  # in tokens


def at(some: Sequence[Token], breaks: Sequence[bool], first: int) -> Measure | None:
    word = some[first].text
    behind = some[first + 1].text if first + 1 < len(some) and not breaks[first + 1] else ""
    if word == "beaufort" and NUMBER.fullmatch(behind):
        return Measure("speed", "numeric", first + 2)
    if fused := FUSED.fullmatch(word):
        return _measure(int(fused[1]), fused[2], first + 1)
    if not NUMBER.fullmatch(word):
        return None
    if measure := _measure(int(word), behind, first + 2):
        return measure
    counts = behind and behind not in NO_COUNT and 0 < int(word) < MOST
    return Measure("count", str(int(word)), first + 1) if counts else None


def _measure(number: int, unit: str, end: int) -> Measure | None:
    if unit in TIME and not (unit == "s" and number > MOST):  # the 1980s
        return Measure("duration", f"{number * TIME[unit]} s", end)
    if unit in PACE:
        return Measure("speed", "numeric", end)
    return Measure("style", "frame rate", end) if unit == "fps" else None
