"""How long it will take and whether it fits, before anything runs.

Operations are counted (engine.estimate). How many a second this machine does was seen when the same model
last ran here (`data/timings.json`); before that, it is guessed from a short matrix product.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broll import catalog, wiring
from broll.engine.config import ModelConfig
from broll.errors import OutputError
from broll.settings import Settings
from broll.spec import VideoSpec

if TYPE_CHECKING:
    from broll.engine.estimate import Estimate

# Share of the matrix rate that the two stages are taken to reach: a guess, replaced by the first run.
SHARE = {"denoise": 0.45, "decode": 0.25}


@dataclass(frozen=True)
class Forecast:
    estimate: "Estimate"
    denoise_s: float
    decode_s: float
    free_bytes: int
    seen: bool  # from an earlier run here, not guessed

    @property
    def fits(self) -> bool:
        return self.estimate.memory_bytes <= self.free_bytes


def forecast(spec: VideoSpec, config: ModelConfig, settings: Settings) -> Forecast:
    import torch

    from broll.engine import estimate as engine

    where = catalog.device()
    linears = wiring.precision(config, where).linears
    cost = engine.estimate(spec, config, linears=linears)
    seen = rates(settings).get(config.name)
    rate = seen or {
        "denoise": SHARE["denoise"] * engine.matrix_rate(linears, where, seconds=0.1),
        "decode": SHARE["decode"] * engine.matrix_rate(torch.float32, where, seconds=0.1),
    }
    denoise_s, decode_s = cost.denoise_flops / rate["denoise"], cost.decode_flops / rate["decode"]
    return Forecast(cost, denoise_s, decode_s, catalog.free_memory(where), seen is not None)


def rates(settings: Settings) -> dict[str, dict[str, float]]:
    """Operations a second, by model and stage; nothing if the file is not what it should be."""
    try:
        table = json.loads((settings.data / "timings.json").read_text())
        read = {str(n): {stage: float(row[stage]) for stage in SHARE} for n, row in table.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {name: row for name, row in read.items() if min(row.values()) > 0}


def remember(settings: Settings, name: str, cost: "Estimate", denoise_s: float, decode_s: float) -> None:
    """Keep what was seen. Not worth an error if it cannot be kept."""
    row = {
        "denoise": cost.denoise_flops / max(denoise_s, 1e-3),
        "decode": cost.decode_flops / max(decode_s, 1e-3),
    }
    try:
        text = json.dumps(rates(settings) | {name: row}, indent=1)
        wiring.write_whole(settings.data / "timings.json", text.encode())
    except OutputError:
        return
