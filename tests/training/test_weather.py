"""The weathers read at once: by day they are brighter, things fall, lightning is rare."""

from __future__ import annotations

import pytest
import torch

from training.scenes import Scene, render
from training.worlds import WORLDS


@pytest.mark.parametrize("name", ["fog", "rain", "storm", "snowfall"])
def test_each_weather_is_clearly_brighter_by_day_than_at_dusk_and_darkest_at_night(name: str) -> None:
    for seed in (1, 2, 3):
        noon, dusk, night = (
            float(
                render(Scene(name, light, "static", "normal", "", seed), frames=1, height=60, width=96).mean()
            )
            for light in WORLDS[name].lights
        )
        assert noon > dusk + 0.12
        assert dusk > night + 0.06


@pytest.mark.parametrize("name", ["rain", "snowfall"])
def test_what_falls_moves_down(name: str) -> None:
    clip = render(Scene(name, "night", "static", "normal", "", 5), frames=2).mean(1)[:, :60]
    before, after = clip[0] - clip[0].mean(1, keepdim=True), clip[1] - clip[1].mean(1, keepdim=True)

    def match(shift: int) -> float:
        return float((before[10 : 50 - shift] * after[10 + shift : 50]).mean())

    down, up = max(match(s) for s in range(1, 10)), max(match(s) for s in range(-9, 0))
    assert down > up


def test_a_storm_has_one_or_two_soft_flashes() -> None:
    for seed in (1, 2, 3, 4):
        clip = render(Scene("storm", "night", "static", "normal", "", seed), height=60, width=96)
        bright = clip.mean((1, 2, 3))
        lit = torch.nonzero(bright > bright.median() + 0.08)[:, 0]
        groups = 1 + int((lit[1:] - lit[:-1] > 8).sum())
        assert len(lit) and groups <= 2
        assert (bright[1:] - bright[:-1]).abs().max() < 0.45


def test_fog_hides_what_is_far() -> None:
    """The hills stand out from the sky in clear weather and hardly in fog."""
    edge = {}
    for name in ("meadow", "fog"):
        clip = render(Scene(name, "noon", "static", "normal", "", 3), frames=1)[0]
        hills = clip[:, 55:75, :40]
        edge[name] = float((hills - hills.mean((1, 2), keepdim=True)).abs().mean())
    assert edge["fog"] < 0.5 * edge["meadow"]


def test_a_tracked_boat_stays_and_the_shore_goes_by() -> None:
    clip = render(Scene("sea", "noon", "tracking", "normal", "right", 14), frames=5)
    columns = clip.std(2).mean(1)
    middle = slice(100, 156)
    still = (columns[0, middle] - columns[-1, middle]).abs().mean()
    static = render(Scene("sea", "noon", "truck right", "normal", "", 14), frames=5).std(2).mean(1)
    assert still < (static[0, middle] - static[-1, middle]).abs().mean()
