"""How much the blocks add to the tokens in each step, against the step before: what step caching decides by.

    ratio[i] = mean over tokens of |residual[i]| / |residual[i - 1]|,     residual = blocks(x) - x

They hardly depend on the prompt, so each model has one list for each branch: published for WAN 2.1's (step_cache.toml,
with its sources), measured for others by `broll bench calibrate`, which writes a file of the same form into the model's
folder. That one comes first. Knows no torch.

    MagCache    https://arxiv.org/abs/2506.09045
"""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from broll.engine.config import ModelConfig, Ratios
from broll.errors import BadCheckpoint

NAME = "step_cache.toml"
BRANCHES = ("positive", "negative")
LARGEST = 1_000_000  # bytes
MOST = 1000  # steps, as in a spec


def of(config: ModelConfig) -> Ratios | None:
    """Those in its folder, else the published ones of its name."""
    return config.ratios or published(config.name)


def published(name: str) -> Ratios | None:
    return _published().get(name)


@functools.cache
def _published() -> Mapping[str, Ratios]:
    path = Path(__file__).with_name(NAME)
    return {name: parse(path, row) for name, row in tomllib.loads(path.read_text()).items()}


def read(folder: Path) -> Ratios | None:
    """The file in a model's folder; None if there is none."""
    path = folder / NAME
    try:
        if path.stat().st_size > LARGEST:
            raise BadCheckpoint(f"{path} is larger than {LARGEST // 1_000_000} MB")
        return parse(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def parse(path: Path, row: Any) -> Ratios:
    if not isinstance(row, dict) or set(row) != {"source", *BRANCHES}:
        raise BadCheckpoint(f"{path} must have source, positive and negative, and nothing else")
    lists = [row[branch] for branch in BRANCHES]
    right = all(isinstance(one, list) and 2 <= len(one) <= MOST for one in lists)
    if not right or len(lists[0]) != len(lists[1]):
        raise BadCheckpoint(f"{path}: positive and negative must be lists of 2 to {MOST} numbers, one a step")
    odd = [value for one in lists for value in one if type(value) not in (int, float) or not 0 < value < 100]
    if odd:
        raise BadCheckpoint(f"{path} holds {odd[0]!r}; a ratio is a number above 0 and below 100")
    positive, negative = (tuple(map(float, one)) for one in lists)
    return Ratios(positive, negative, str(row["source"]))


def written(ratios: Ratios) -> str:
    """The text of the file."""
    lines = ["# How much the blocks add in each step, against the step before; docs/engine/step_cache.md."]
    lines.append(f'source = "{ratios.source}"')
    for branch in BRANCHES:
        values = [f"{ratio:.5f}" for ratio in getattr(ratios, branch)]
        lines.append(f"{branch} = [")
        lines += ["    " + ", ".join(values[i : i + 10]) + "," for i in range(0, len(values), 10)]
        lines.append("]")
    return "\n".join(lines) + "\n"


def at(ratios: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """For another number of steps: each has its nearest, as in MagCache's own code."""
    if steps == 1:
        return ratios[-1:]
    scale = (len(ratios) - 1) / (steps - 1)
    return tuple(ratios[round(step * scale)] for step in range(steps))
