"""What a clip will take, before anything runs: which levers to switch on, seconds and bytes of each stage, money.

    spec, model, device -> estimate (engine) -> levers until it fits -> seconds by rates -> Plan

Rates are seen in an earlier run, else measured here once (pace.py), else guessed from a card's data sheet (cards.py);
the plan says which. A clip that does not fit is told its nearest relations that do (nearest.py).
"""
# ruff: noqa: PLC0415  torch comes with the first plan

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from broll import catalog, group, pace, wiring
from broll.cards import BUS, Card
from broll.engine.config import PUBLISHED, ModelConfig, Task
from broll.errors import ModelMissing
from broll.settings import Loading, Settings
from broll.spec import Artifact, VideoSpec

if TYPE_CHECKING:
    from PIL import Image

    from broll.engine.estimate import Estimate, Stage
    from broll.engine.load import Precision
    from broll.engine.rates import Rates

HOW = {
    "seen": "as seen here before",
    "measured": "from the measured rates of this machine; the first run tells better",
    "guessed": "a guess from the card's data sheet",
}
STREAMING, TEXT_FIRST, TILING = "block_streaming", "text_first", "vae_tiling"
TOKENS_A_WORD = 60 / 45  # of umT5, as in benchmarks/engine.py


@dataclass(frozen=True)
class Lever:
    """Something that can be switched on to need less memory."""

    name: str
    words: str
    change: "Callable[[Stage, Estimate], Stage]"
    tiles: int = 1


def levers() -> tuple[Lever, ...]:
    """In the order in which they are tried. Each is something that `wiring.load` can do."""
    from broll.engine import estimate

    return (
        Lever(TEXT_FIRST, "text encoder first, then freed", estimate.text_freed),
        Lever(STREAMING, "block streaming", estimate.blocks_streamed),
        *tilings(),
    )


def possible(settings: Settings, *, merging: bool = False) -> tuple[Lever, ...]:
    """Those that a clip can have here: LoRAs are merged into what is whole; a group decodes in strips, not tiles."""
    tiling = () if group.size(settings) > 1 else tilings()
    return tiling if merging else tuple(lever for lever in levers() if lever.name != TILING or tiling)


def tilings() -> tuple[Lever, ...]:
    """One lever in some strengths, of which one at most is on."""
    from broll.engine import estimate, tiles

    return tuple(Lever(TILING, f"decoding in {n} tiles", estimate.tiled(n), n) for n in tiles.COUNTS)


@dataclass(frozen=True)
class Target:
    """A device to plan for."""

    name: str
    kind: str  # cpu or cuda
    memory: float  # bytes that are free
    precision: "Precision"
    held: Mapping[str, int] | None  # bytes of the weights that are there; None: as published
    rates: "Rates"
    seen: Mapping[str, float] | None = None  # operations a second of this model's stages
    seen_streamed: Mapping[str, float] | None = None  # the same where blocks were streamed
    guessed: bool = False

    @property
    def source(self) -> str:
        return "guessed" if self.guessed else "seen" if self.seen else "measured"


@dataclass(frozen=True)
class Plan:
    spec: VideoSpec
    target: Target
    estimate: "Estimate"
    seconds: Mapping[str, float]  # of each stage of one take
    on: tuple[Lever, ...] = ()
    gpu_hour: float = 0.0
    can: tuple[Lever, ...] = ()  # that could be
    offload: str = "auto"  # the setting: whether block streaming may be switched on, must be, or must not

    @property
    def fits(self) -> bool:
        return self.estimate.memory_bytes <= self.target.memory

    @property
    def total_s(self) -> float:
        """Of all takes; loading and writing the file come on top."""
        return (self.spec.takes or 1) * sum(self.seconds.values())

    @property
    def money(self) -> float | None:
        return round(self.total_s / 3600 * self.gpu_hour, 4) if self.gpu_hour else None

    @property
    def denoise_s(self) -> float:
        return self.seconds["denoise"]

    @property
    def decode_s(self) -> float:
        return self.seconds["decode"]

    @property
    def tiles(self) -> int:
        """That frames are decoded in."""
        return max((lever.tiles for lever in self.on), default=1)

    def switched_on(self, name: str) -> bool:
        return any(lever.name == name for lever in self.on)

    def told(self) -> dict[str, Any]:
        """For JSON."""
        stages = [
            {"name": stage.name, "seconds": round(self.seconds[stage.name], 3),
             "flops": stage.operations.total, "memory_bytes": self.estimate.base + stage.peak_bytes}
            for stage in self.estimate.stages
        ]  # fmt: skip
        return {
            "model": self.spec.model, "size": f"{self.spec.width}x{self.spec.height}",
            "frames": self.spec.frames, "steps": self.spec.steps, "takes": self.spec.takes or 1,
            "device": self.target.name, "precision": words(self.target.precision), "stages": stages,
            "on": [lever.name for lever in self.on], "seconds": round(self.total_s, 3),
            "time_source": self.target.source, "memory_bytes": self.estimate.memory_bytes,
            "weight_bytes": self.estimate.weight_bytes, "free_bytes": int(self.target.memory),
            "fits": self.fits, "money": self.money,
        }  # fmt: skip


def words(precision: "Precision") -> str:
    return str(precision.linears).removeprefix("torch.")


# --- devices ----------------------------------------------------------------------------------------------


def here(
    spec: VideoSpec, config: ModelConfig, settings: Settings, model: catalog.Installed | None = None
) -> Target:
    """This machine; `model` gives the form that the weights have on its disk."""
    from broll.engine import footprint, rates

    where = catalog.device()
    how = wiring.precision(config, where, settings.loading())
    held = None if model is None else footprint.kept(model.folder, config, how)
    memory = settings.memory_mb * 10**6 or catalog.free_memory(where)
    seen = pace.seen(settings, config.name)
    measured = pace.measured(settings, config, where, tokens(spec, config), area(spec), like=seen is not None)
    streamed = pace.seen(settings, config.name, streamed=True)
    return Target(rates.name_of(where), where.type, memory, how, held, measured, seen, streamed)


def published(
    card: Card, config: ModelConfig, model: catalog.Installed | None = None, how: "Precision | None" = None
) -> Target:
    """A card that is not here, by its sheet; computing as `on_a_gpu` has it."""
    from broll.engine import footprint

    how = how or on_a_gpu(config)
    held = None if model is None else footprint.kept(model.folder, config, how)
    return Target(card.name, "cuda", card.memory, how, held, by_sheet(card), guessed=True)


def by_sheet(card: Card) -> "Rates":
    from broll.engine.rates import Rates

    fast = card.bf16 * card.share
    return Rates(fast, fast, card.fp32 * card.share, fast, float(card.bandwidth), BUS)


def on_a_gpu(config: ModelConfig, loading: Loading = wiring.AS_IT_IS) -> "Precision":
    """As it would be there."""
    import torch

    return wiring.precision(config, torch.device("cuda"), loading)


# --- the plan ---------------------------------------------------------------------------------------------


def make(
    spec: VideoSpec, config: ModelConfig, target: Target, *, can: tuple[Lever, ...] | None = None,
    gpu_hour: float = 0.0, offload: str = "auto",
) -> Plan:  # fmt: skip
    """Of a resolved spec. `can`: the levers that may be switched on; they are, one by one, until it fits. `offload`:
    block streaming too, or "on" also if it fits without, or "off".
    """
    cost = estimate(spec, config, target.precision, target.held, target.kind)
    can = levers() if can is None else can
    offload = "off" if target.precision.int8 else offload  # what is rounded as it loads is not streamed
    cost, on = fitted(cost, target.memory, can, offload)
    if any(lever.name == STREAMING for lever in on):
        target = replace(target, seen=target.seen_streamed)
    return Plan(spec, target, cost, times(cost, target.rates, target.seen), on, gpu_hour, can, offload)


def local(
    spec: VideoSpec, config: ModelConfig, settings: Settings, model: catalog.Installed | None, *,
    merging: bool = False,
) -> Plan:  # fmt: skip
    """The plan of a resolved spec on this machine, as the settings have it. `merging`: LoRAs go into the weights."""
    target, can = here(spec, config, settings, model), possible(settings, merging=merging)
    return make(spec, config, target, can=can, gpu_hour=settings.gpu_hour, offload=settings.offload)


def fitted(
    cost: "Estimate", memory: float, can: tuple[Lever, ...], offload: str = "auto"
) -> "tuple[Estimate, tuple[Lever, ...]]":
    """The levers that make it fit, or as small as can be."""
    on: list[Lever] = []
    for lever in can:
        asked = offload if lever.name == STREAMING else "auto"
        if asked == "off" or (asked == "auto" and cost.memory_bytes <= memory):
            continue
        smaller = cost.changed(lever.change)
        if asked == "on" or smaller.memory_bytes < cost.memory_bytes:
            cost, on = smaller, [*(one for one in on if one.name != lever.name), lever]
    return cost, tuple(on)


def estimate(
    spec: VideoSpec, config: ModelConfig, precision: "Precision", held: Mapping[str, int] | None, kind: str
) -> "Estimate":
    from broll.engine import estimate as engine

    count = round(len(spec.prompt.split()) * TOKENS_A_WORD) + 1
    return engine.estimate(spec, config, precision=precision, held=held, device=kind, prompt_tokens=count)


def streams(
    spec: VideoSpec, config: ModelConfig, settings: Settings, model: catalog.Installed, memory: float
) -> bool:
    """Whether a model that stays loaded, with its text encoder, has its blocks streamed for this clip."""
    from broll.engine import estimate as engine
    from broll.engine import footprint

    if settings.offload != "auto":
        return settings.offload == "on"
    where = catalog.device()
    how = wiring.precision(config, where, settings.loading())
    if how.int8:
        return False
    cost = estimate(spec, config, how, footprint.kept(model.folder, config, how), where.type)
    smaller = cost.changed(engine.blocks_streamed)
    return memory < cost.memory_bytes > smaller.memory_bytes


def tiles(
    spec: VideoSpec, config: ModelConfig, settings: Settings, model: catalog.Installed, memory: float, *,
    streamed: bool,
) -> int:  # fmt: skip
    """In how many tiles a model that stays loaded, with its text encoder, decodes this clip."""
    from broll.engine import estimate as engine
    from broll.engine import footprint

    if group.size(settings) > 1:
        return 1
    where = catalog.device()
    how = wiring.precision(config, where, settings.loading())
    cost = estimate(spec, config, how, footprint.kept(model.folder, config, how), where.type)
    cost = cost.changed(engine.blocks_streamed) if streamed else cost
    _, on = fitted(cost, memory, tilings())
    return max((lever.tiles for lever in on), default=1)


def times(cost: "Estimate", rates: "Rates", seen: Mapping[str, float] | None = None) -> dict[str, float]:
    """Seconds of each stage: every kind of operation at its rate, and never faster than weights can be read."""
    r, found = rates, dict[str, float]()
    for stage in cost.stages:
        o, matrix = stage.operations, r.text if stage.name == "text" else r.linear
        busy = o.matrix / matrix + o.attention / r.attention + o.convolution / r.convolution
        found[stage.name] = max(busy, stage.reads / r.copy)
    if seen is not None:
        found |= {name: cost.stage(name).operations.total / rate for name, rate in seen.items()}
    return {name: max(found[name], cost.stage(name).carried / r.bus) for name in found}


def tokens(spec: VideoSpec, config: ModelConfig) -> int:
    from broll.engine import shapes

    assert spec.frames
    assert spec.width
    assert spec.height
    pixels = shapes.Grid(spec.frames, spec.height, spec.width)
    latent = shapes.latent_grid(pixels, config.vae.spatial_stride)
    return shapes.token_grid(latent, config.transformer.patch_size).size


def area(spec: VideoSpec) -> int:
    return (spec.width or 0) * (spec.height or 0)


# --- specs ------------------------------------------------------------------------------------------------


def wanted(
    settings: Settings, name: str | None, task: Task = "t2v"
) -> tuple[catalog.Installed | None, ModelConfig]:
    """The model of this name, else the best one for this task; a published one need not be here."""
    try:
        found = catalog.best(settings, task) if name is None else catalog.find(settings, name)
    except ModelMissing:
        known = catalog.published_name(name or "")
        if known not in PUBLISHED:
            raise
        return None, PUBLISHED[known]
    return found, wiring.describe(found)


def whole(spec: VideoSpec, config: ModelConfig, picture: "Image.Image | None" = None) -> VideoSpec:
    """Resolved; a model that needs pictures is given nameless ones of the clip's own aspect."""
    from broll.engine import pipeline

    nameless = Artifact.of(b"")
    needs = {"i2v": {"image": nameless}, "flf2v": {"image": nameless, "last_image": nameless}}.get(
        config.task, {}
    )
    missing = {name: one for name, one in needs.items() if getattr(spec, name) is None}
    return pipeline.resolve(spec.model_copy(update=missing), config, picture=picture)


def prompts(spec: VideoSpec) -> tuple[str, ...]:
    """What the text encoder will be asked for."""
    from broll.engine import pipeline

    return pipeline.prompts(spec)


def in_form(target: Target, config: ModelConfig, form: str) -> Target:
    """The same device, with the weights in another form: a name of dequantize.KINDS."""
    from broll.engine import footprint

    return replace(target, held=footprint.built(config, target.precision, form))
