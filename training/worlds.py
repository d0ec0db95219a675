"""The seven worlds: where the camera rests, what the floor is and who paints."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from training import inland, waterside
from training.camera import Rig
from training.paint import Canvas


@dataclass(frozen=True)
class World:
    """A camera at rest, the reflectivity of the floor (None: no floor) and the painter."""

    rig: Rig
    floor: float | None
    paint: Callable[[Canvas, random.Random], None]


WORLDS: dict[str, World] = {
    "lake": World(Rig(2.6, 0.05, 30.0), 0.62, waterside.lake),
    "lighthouse": World(Rig(4.2, 0.07, 30.0), 0.55, waterside.lighthouse),
    "sea": World(Rig(3.0, 0.02, 30.0), 0.5, waterside.sea),
    "city": World(Rig(4.0, 0.10, 70.0), 0.6, waterside.city),
    "desert": World(Rig(3.2, 0.03, 44.0), None, inland.desert),
    "forest": World(Rig(1.7, 0.07, 13.0), 0.0, inland.forest),
    "product": World(Rig(0.85, -0.15, 2.05), 0.0, inland.product),
}
