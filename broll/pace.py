"""How fast this machine is: seen in earlier runs, else measured once, and where it is kept.

    data/timings.json   operations a second of each model's stages, as they were seen; replaced by every run
    data/rates.json     engine.rates.measure, by machine (device, torch, threads) and by the shapes of a model; all of
                        a machine's are measured anew by `broll bench`

A file that is not what it should be is as good as none.
"""
# ruff: noqa: PLC0415  torch comes with the first measurement

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broll import wiring
from broll.errors import OutputError
from broll.settings import Loading

if TYPE_CHECKING:
    import torch

    from broll.engine.config import ModelConfig
    from broll.engine.estimate import Estimate
    from broll.engine.load import Precision
    from broll.engine.rates import Rates
    from broll.settings import Settings

SEEN = ("denoise", "decode")  # the stages that a run is long enough to tell
LONG = 2.0  # seconds of denoising from which it is: less is mostly what every step costs, whatever the clip


def seen(settings: "Settings", model: str, *, streamed: bool = False) -> dict[str, float] | None:
    """Operations a second by stage, from the last run of this model here."""
    try:
        row = _read(settings, "timings.json")[named(settings, model, streamed=streamed)]
        found = {stage: float(row[stage]) for stage in SEEN}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return found if min(found.values()) > 0 else None


def remember(
    settings: "Settings", model: str, cost: "Estimate", denoise_s: float, decode_s: float, *,
    streamed: bool = False,
) -> None:  # fmt: skip
    """Keep what was seen, unless the run was too short to tell."""
    if denoise_s < LONG:
        return
    took = {"denoise": max(denoise_s, 1e-3), "decode": max(decode_s, 1e-3)}
    row = {stage: cost.stage(stage).operations.total / took[stage] for stage in SEEN}
    _keep(settings, "timings.json", {named(settings, model, streamed=streamed): row})


def named(settings: "Settings", model: str, *, streamed: bool) -> str:
    """The model, and whatever else of how it is loaded changes how fast it is."""
    usual, own = asdict(Loading()), asdict(settings.loading(streamed=streamed))
    words = [
        name if value is True else f"{name} {value}" for name, value in own.items() if value != usual[name]
    ]
    return " ".join((model, *words))


def measured(
    settings: "Settings", config: "ModelConfig", where: "torch.device", tokens: int, area: int, *,
    like: bool = False,
) -> "Rates":  # fmt: skip
    """From the file, or now: about two seconds. `like`: another size's will do, since what was seen counts most."""
    from broll.engine import rates

    how = wiring.precision(config, where, settings.loading())
    machine, name = machine_of(where), shape(config, how, tokens, area)
    known = _rows(settings, machine)
    names = [name, *(other for other in known if like and same_model(other, name))]
    found = next((row for row in (_row(known.get(other)) for other in names) if row is not None), None)
    if found is None:
        found = rates.measure(config, how, where, tokens, area)
        _keep(settings, "rates.json", {machine: known | {name: asdict(found)}})
    return found


def anew(
    settings: "Settings", where: "torch.device", clips: Iterable[tuple["ModelConfig", int, int]]
) -> "Iterator[Rates]":
    """The rates of each of these clips (model, tokens, area), measured now; at last, and not before, they take the
    place of all that was kept of this machine.
    """
    from broll.engine import rates

    known: rates.Known = {}
    rows: dict[str, Any] = {}
    for config, tokens, area in clips:
        how = wiring.precision(config, where, settings.loading())
        found = rates.measure(config, how, where, tokens, area, known)
        rows[shape(config, how, tokens, area)] = asdict(found)
        yield found
    table = _read(settings, "rates.json") | {machine_of(where): rows}
    wiring.write_whole(rates_file(settings), json.dumps(table, indent=1).encode())


def rates_file(settings: "Settings") -> Path:
    return settings.data / "rates.json"


def machine_of(where: "torch.device") -> str:
    """What must be the same for a rate to hold."""
    import torch

    from broll.engine import rates

    return f"{rates.name_of(where)}, torch {torch.__version__}"


def shape(config: "ModelConfig", how: "Precision", tokens: int, area: int) -> str:
    """What a rate was measured for: the widths of a model; its tokens and its frames, to the power of two below."""
    c, v = config.transformer, config.vae
    much, side = (1 << max(0, n.bit_length() - 1) for n in (tokens, math.isqrt(area)))
    linears, decodes = (str(dtype).removeprefix("torch.") for dtype in (how.linears, how.decodes))
    linears += " int8" if how.int8 else ""
    model = f"{c.dim}x{c.ffn_dim}/{c.num_heads} {linears}, vae {v.base_dim}/{v.patch_size} {decodes}"
    model += f", text {config.text.d_model}"
    return f"{model}: {much} tokens, {side} pixels"


def same_model(one: str, other: str) -> bool:
    return one.partition(":")[0] == other.partition(":")[0]


def _rows(settings: "Settings", machine: str) -> dict[str, Any]:
    rows = _read(settings, "rates.json").get(machine)
    return rows if isinstance(rows, dict) else {}


def _row(given: Any) -> "Rates | None":
    from broll.engine import rates

    try:
        row = {f.name: float(given[f.name]) for f in fields(rates.Rates)}
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return rates.Rates(**row) if min(row.values()) > 0 else None


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
