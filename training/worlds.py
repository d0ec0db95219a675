"""The worlds: where the camera rests, what the floor is, which lights and cameras suit it, and who paints."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from training import deep, fire, indoors, inland, railway, skies, travel, waterside, weather, winter
from training.camera import CAMERAS, Rig
from training.paint import Canvas

LIGHTS = ("noon", "golden hour", "dusk", "night", "overcast")
SPECIAL = ("orbit", "tracking", "aerial")  # a subject to go round or to follow, a country to fly over
PLAIN = tuple(camera for camera in CAMERAS if camera not in SPECIAL)


@dataclass(frozen=True)
class World:
    """A camera at rest, the reflectivity of the floor (None: no floor) and the painter."""

    rig: Rig
    floor: float | None
    paint: Callable[[Canvas, random.Random], None]
    cameras: tuple[str, ...] = PLAIN
    lights: tuple[str, ...] = field(default=LIGHTS)


WORLDS: dict[str, World] = {
    "lake": World(Rig(2.6, 0.05, 30.0), 0.62, waterside.lake, CAMERAS),
    "lighthouse": World(Rig(4.2, 0.07, 30.0), 0.55, waterside.lighthouse, (*PLAIN, "orbit", "aerial")),
    "sea": World(Rig(3.0, 0.02, 30.0), 0.5, waterside.sea, (*PLAIN, "tracking", "aerial")),
    "city": World(Rig(4.0, 0.10, 70.0), 0.6, waterside.city, CAMERAS),
    "desert": World(Rig(3.2, 0.03, 44.0), None, inland.desert, (*PLAIN, "aerial")),
    "forest": World(Rig(1.7, 0.07, 13.0), 0.0, inland.forest),
    "product": World(Rig(0.85, -0.15, 2.05), 0.0, inland.product, (*PLAIN, "orbit")),
    "road": World(Rig(3.0, -0.01, 16.0), 0.0, travel.road, (*PLAIN, "tracking", "aerial")),
    "meadow": World(Rig(2.2, 0.06, 20.0), 0.0, weather.meadow, (*PLAIN, "orbit", "aerial")),
    "fog": World(Rig(2.2, 0.05, 20.0), 0.0, weather.fog, PLAIN, weather.LIGHTS_BY_WEATHER),
    "rain": World(Rig(2.2, 0.04, 20.0), 0.35, weather.rain, PLAIN, weather.LIGHTS_BY_WEATHER),
    "storm": World(Rig(2.0, 0.08, 20.0), 0.0, weather.storm, PLAIN, weather.LIGHTS_BY_WEATHER),
    "snowfall": World(Rig(2.2, 0.05, 20.0), 0.0, weather.snowfall, PLAIN, weather.LIGHTS_BY_WEATHER),
    "train": World(Rig(6.5, -0.01, 36.0), 0.0, railway.train, (*PLAIN, "tracking")),
    "clouds": World(Rig(5.0, 0.11, 45.0), None, skies.clouds),
    "underwater": World(Rig(1.8, 0.0, 9.0), None, deep.underwater, (*PLAIN, "tracking")),
    "campfire": World(
        Rig(1.5, -0.07, 6.5), 0.0, fire.campfire, (*PLAIN, "orbit"), ("golden hour", "dusk", "night")
    ),
    "window": World(Rig(1.6, -0.08, 1.6), None, indoors.window),
    "winter": World(Rig(2.0, 0.03, 16.0), 0.0, winter.winter, (*PLAIN, "aerial")),
}
