"""What every model takes on this machine: its rates measured anew and kept, then a plan of each model and size.

offers      the models that are here and the published ones, each at its own size and at the smaller usual ones
measured    pace.anew for all of them: what several share is measured once
planned     as `broll plan` makes it
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from broll import catalog, nearest, pace
from broll import plan as plans
from broll.catalog import Installed
from broll.engine.config import PUBLISHED, ModelConfig
from broll.errors import BrollError
from broll.plan import Plan
from broll.settings import Settings
from broll.spec import VideoSpec, parse

if TYPE_CHECKING:
    from broll.engine.rates import Rates

PROMPT = "a clip"


@dataclass(frozen=True)
class Offer:
    """A model at a size; `found` is None if its weights are not here."""

    config: ModelConfig
    found: Installed | None
    spec: VideoSpec  # resolved


def offers(settings: Settings, asked: Sequence[str]) -> tuple[list[Offer], list[str]]:
    """Of the models that were asked for, else of all; and a line about each that cannot be planned."""
    if asked:
        return [offer for name in dict.fromkeys(asked) for offer in of_model(settings, name)], []
    here = catalog.installed(settings)
    made, odd = list[Offer](), list[str]()
    for name in (*here, *(name for name in PUBLISHED if name not in here)):
        try:
            made += of_model(settings, name)
        except BrollError as error:
            odd.append(f"{name}: {error}")
    return made, odd


def of_model(settings: Settings, name: str) -> list[Offer]:
    found, config = plans.wanted(settings, name)
    return [Offer(config, found, spec_of(config, size)) for size in sizes(config)]


def spec_of(config: ModelConfig, size: tuple[int, int]) -> VideoSpec:
    width, height = size
    return plans.whole(parse(model=config.name, prompt=PROMPT, width=width, height=height), config)


def sizes(config: ModelConfig) -> list[tuple[int, int]]:
    """Its own, and the usual ones that are smaller."""
    own, step = config.defaults.size, config.size_multiple
    usual = [(w, h) for w, h in nearest.USUAL if w % step == 0 == h % step and w * h < own[0] * own[1]]
    return [own, *usual]


def measured(offers: Sequence[Offer], settings: Settings) -> "Iterator[Rates]":
    """Of each, one after the other; kept once the last one is known."""
    clips = [(o.config, plans.tokens(o.spec, o.config), plans.area(o.spec)) for o in offers]
    return pace.anew(settings, catalog.device(), clips)


def planned(offer: Offer, settings: Settings) -> Plan:
    return plans.local(offer.spec, offer.config, settings, offer.found)


def verdict(made: Plan) -> str:
    """Who streams blocks lets the text encoder go before that; it need not be said."""
    if not made.fits:
        return "does not fit"
    on = [lever for lever in made.on if lever.name != plans.TEXT_FIRST] or made.on
    return f"fits with {' and '.join(lever.words for lever in on)}" if on else "fits"


def advice(offer: Offer) -> str:
    """How to get what is not here."""
    return "" if offer.found is not None else f"not here: {catalog.how_to_get(offer.config.name)}"


def step_s(made: Plan) -> float:
    return made.denoise_s / (made.spec.steps or 1)


def quality(made: Plan) -> str:
    return made.spec.quality or "best"


def told(offer: Offer, made: Plan) -> dict[str, Any]:
    """For JSON: the plan, and what is said here besides."""
    more = {
        "here": offer.found is not None, "get": None if offer.found else catalog.how_to_get(offer.config.name),
        "quality": quality(made), "step_seconds": round(step_s(made), 6), "verdict": verdict(made),
        "rates": asdict(made.target.rates),
    }  # fmt: skip
    return made.told() | more


def most(rates: "Sequence[Rates]") -> "Rates":
    """The highest of each kind: what this machine reaches at its best."""
    kinds = asdict(rates[0])
    return type(rates[0])(**{kind: max(getattr(one, kind) for one in rates) for kind in kinds})
