"""How fast this machine is: seen in earlier runs, else measured once, and where it is kept.

    data/timings.json   operations a second of each model's stages, as they were seen; replaced by every run
    data/rates.json     engine.rates.measure, by machine (device, torch, threads) and by the shapes of a model

A file that is not what it should be is as good as none.
"""
# ruff: noqa: PLC0415  torch comes with the first measurement

import json
import math
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from broll import wiring
from broll.errors import OutputError

if TYPE_CHECKING:
    import torch

    from broll.engine.config import ModelConfig
    from broll.engine.estimate import Estimate
    from broll.engine.rates import Rates
    from broll.settings import Settings

SEEN = ("denoise", "decode")  # the stages that a run is long enough to tell


def seen(settings: "Settings", model: str) -> dict[str, float] | None:
    """Operations a second by stage, from the last run of this model here."""
    try:
        row = _read(settings, "timings.json")[model]
        found = {stage: float(row[stage]) for stage in SEEN}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return found if min(found.values()) > 0 else None


def remember(settings: "Settings", model: str, cost: "Estimate", denoise_s: float, decode_s: float) -> None:
    """Keep what was seen."""
    took = {"denoise": max(denoise_s, 1e-3), "decode": max(decode_s, 1e-3)}
    row = {stage: cost.stage(stage).operations.total / took[stage] for stage in SEEN}
    _keep(settings, "timings.json", {model: row})


def measured(
    settings: "Settings", config: "ModelConfig", where: "torch.device", tokens: int, area: int
) -> "Rates":
    """From the file, or now: about two seconds."""
    import torch

    from broll.engine import rates

    how = wiring.precision(config, where)
    machine = f"{rates.name_of(where)}, torch {torch.__version__}"
    name = shape(config, str(how.linears), tokens, area)
    known = _read(settings, "rates.json").get(machine)
    try:
        row = {f.name: float(known[name][f.name]) for f in fields(rates.Rates)}  # type: ignore[index]
        if min(row.values()) > 0:
            return rates.Rates(**row)
    except (KeyError, TypeError, ValueError, IndexError):
        pass
    found = rates.measure(config, how, where, tokens, area)
    rest = known if isinstance(known, dict) else {}
    _keep(settings, "rates.json", {machine: rest | {name: asdict(found)}})
    return found


def shape(config: "ModelConfig", low: str, tokens: int, area: int) -> str:
    """What a rate was measured for: the widths of a model, its tokens and its frames, to the power of two below."""
    c, v = config.transformer, config.vae
    much, side = (1 << max(0, n.bit_length() - 1) for n in (tokens, math.isqrt(area)))
    block = f"{c.dim}x{c.ffn_dim}/{c.num_heads} {low.removeprefix('torch.')}"
    return (
        f"{block}, {much} tokens, {side} pixels, vae {v.base_dim}/{v.patch_size}, text {config.text.d_model}"
    )


def _read(settings: "Settings", name: str) -> dict[str, Any]:
    try:
        table = json.loads((settings.data / name).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _keep(settings: "Settings", name: str, new: dict[str, Any]) -> None:
    """Not worth an error if it cannot be kept."""
    try:
        wiring.write_whole(settings.data / name, json.dumps(_read(settings, name) | new, indent=1).encode())
    except OutputError:
        return
