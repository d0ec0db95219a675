"""A client's wishes to a spec that a model can make: the server's side of `pipeline.resolve`.

A size that the model cannot make becomes its nearest of the same aspect, and that is said; a length that it
cannot make is refused, naming the longest.
"""
# ruff: noqa: PLC0415  torch comes with the first plan

import io
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from broll import catalog, coaching, group, loras, pace, takes, wiring
from broll import plan as plans
from broll.engine.config import PUBLISHED, ModelConfig, frames_of
from broll.errors import BadOption, ModelMissing, UnknownModel
from broll.prompts.findings import Context
from broll.prompts.rewriter import Rewrite
from broll.server.deps import Card, Plan, Wish
from broll.settings import Settings
from broll.spec import VideoSpec, parse

if TYPE_CHECKING:
    import torch

    from broll.engine.estimate import Estimate
    from broll.engine.load import Precision


class Planner:
    """What can be made with the models of this machine, or with those that devices elsewhere have."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._configs: dict[str, ModelConfig] = {}
        self._costs: dict[tuple[Any, ...], Estimate] = {}
        self._held: dict[str, dict[str, int]] = {}  # bytes of the weights that are here, by model
        self._one = threading.Lock()  # torch's meta device is set for a whole thread; counting takes a moment

    def names(self) -> list[str]:
        return self._settings.offer or list(catalog.installed(self._settings))

    def cards(self) -> list[Card]:
        found = []
        for name in self.names():
            config = self.config(name)
            frames = self._longest(config)
            seconds = round(frames / config.defaults.fps, 2)
            found.append(Card(name, config.task, config.defaults.size, seconds, config.defaults.fps))
        return found

    def config(self, name: str) -> ModelConfig:
        if name not in self._configs:
            try:
                self._configs[name] = wiring.describe(catalog.find(self._settings, name))
            except ModelMissing:
                if name not in self._settings.offer or name not in PUBLISHED:
                    raise
                self._configs[name] = PUBLISHED[name]  # devices elsewhere have it
        return self._configs[name]

    def context(self, fields: Mapping[str, Any], wish: Wish) -> Context:
        """Also of a published model that is not here: a prompt may be written for it."""
        given = {name: value for name, value in fields.items() if value is not None}
        seconds = given.pop("seconds", None)
        name = str(given.get("model", ""))
        config = PUBLISHED.get(catalog.published_name(name) or name)
        if config is None:
            given["model"] = self._name(given)
            config = self.config(given["model"])
        if seconds is not None:
            given["frames"] = frames_of(seconds, given.get("fps") or config.defaults.fps)
        return coaching.context(config, parse(**given), self._settings, use=wish.preset, style=wish.style)

    def better(self, prompt: str, known: Context, without: tuple[str, ...]) -> tuple[Rewrite, str]:
        return coaching.better(prompt, known, coaching.endpoint(self._settings), without=without)

    def plan(self, fields: Mapping[str, Any], pictures: Mapping[str, bytes], wish: Wish) -> Plan:
        given = {name: value for name, value in fields.items() if value is not None}
        seconds = given.pop("seconds", None)
        given["model"] = self._name(given)
        config = self.config(given["model"])
        notes = []
        if "width" in given or "height" in given:
            note = self._fit(given, config)
            notes += [note] if note else []
        if seconds is not None:
            given["frames"] = self._frames(seconds, given.get("fps") or config.defaults.fps, config)
        elif given.get("frames", 0) > self._longest(config):
            raise BadOption(
                f"frames is {given['frames']}; {config.name} makes at most {self._longest(config)}"
            )
        first = given.get("image")
        picture = None if first is None else Image.open(io.BytesIO(pictures[first["sha256"]])).convert("RGB")
        from broll.engine import guidance, pipeline, sparse, step_cache

        asked, told = self._with_loras(given)
        notes += [told] if told else []
        known = coaching.context(config, asked, self._settings, use=wish.preset, style=wish.style)
        coaching.refuse_blocked(asked.prompt, known)
        seen = None if first is None else pictures[first["sha256"]]
        model = coaching.endpoint(self._settings)
        asked, report = coaching.coached(asked, known, wish.mode, model, seen)
        takes.check(asked)
        spec = pipeline.resolve(asked, config, picture=picture)
        group.check(self._settings, spec, config)
        notes += filter(None, (guidance.told(spec), step_cache.told(spec, config), sparse.told(spec, config)))
        return Plan(spec, self._needs(spec, config) // 10**6, tuple(notes), report)

    def _with_loras(self, given: dict[str, Any]) -> tuple[VideoSpec, str]:
        """Names become digests, and what they want is filled in. Only what lies in the folder can be asked for."""
        asked, uses = given.pop("loras", []), []
        for one in asked:
            made, _ = loras.wanted(self._settings, [loras.Asked(one.name, one.weight)])
            if one.sha256 not in (None, made[0].sha256):
                raise ModelMissing(f"the LoRA {one.name!r} here is another one than was asked for")
            uses.append(made[0].model_dump() | {"first": one.first, "last": one.last})
        return loras.fitted(parse(**given, loras=uses), self._settings, {})

    def _name(self, given: Mapping[str, Any]) -> str:
        if "model" in given:
            wanted = str(given["model"])
            name = catalog.published_name(wanted) or wanted
            if name not in self.names():
                known = ", ".join(sorted(self.names()))
                raise UnknownModel(f"there is no model {wanted!r} here; possible are {known}")
            return name
        task = catalog.task_for(given)
        if not self._settings.offer:
            return catalog.best(self._settings, task).name
        able = catalog.able({name: self.config(name).task for name in self.names()}, task)
        if not able:
            raise ModelMissing(f"no model here makes this kind of clip ({task})")
        return able[0]

    def _fit(self, given: dict[str, Any], config: ModelConfig) -> str | None:
        """The nearest size of the same aspect that the model can make."""
        if "width" not in given or "height" not in given:
            raise BadOption("width and height go together; only one of them was given")
        width, height = given["width"], given["height"]
        if width < 1 or height < 1:
            raise BadOption(f"size is {width}x{height}; both sides are at least 1")
        step, most = config.size_multiple, config.defaults.max_area
        fits = (
            width * height <= 2 * most
        )  # as pipeline.resolve has it; larger ones come down to what it knows
        shrink = 1.0 if fits else (most / (width * height)) ** 0.5
        made = [max(step, round(side * shrink / step) * step) for side in (width, height)]
        while made[0] * made[1] > 2 * most and max(made) > step:
            made[made.index(max(made))] -= step
        given["width"], given["height"] = made
        if made == [width, height]:
            return None
        return f"{width}x{height} became {made[0]}x{made[1]}, the nearest that {config.name} makes"

    def _longest(self, config: ModelConfig) -> int:
        limit = round(self._settings.max_seconds * config.defaults.fps)
        return max(config.defaults.frames, 4 * (limit // 4) + 1)

    def _frames(self, seconds: float, fps: int, config: ModelConfig) -> int:
        frames = frames_of(seconds, fps)
        longest = self._longest(config)
        if frames > longest:
            most = (longest - 1) / fps
            raise BadOption(f"seconds is {seconds:g}; {config.name} makes clips of at most {most:g} seconds")
        return frames

    def seconds(self, spec: VideoSpec) -> float | None:
        """By the measured rates of this machine; None if the jobs do not run on it."""
        if not self._own():
            return None
        config, where = self.config(spec.model), catalog.device()
        with self._one:
            seen, tokens = pace.seen(self._settings, config.name), plans.tokens(spec, config)
            like = seen is not None
            rates = pace.measured(self._settings, config, where, tokens, plans.area(spec), like=like)
        stages = plans.times(self._cost(spec, config), rates, seen)
        return (spec.takes or 1) * sum(stages.values())

    def _needs(self, spec: VideoSpec, config: ModelConfig) -> int:
        """Bytes of a device: where the whole model does not fit, blocks are streamed, unless LoRAs are merged or blocks
        are rounded; where decoding does not, it is done in tiles.
        """
        from broll.engine.estimate import blocks_streamed

        cost, own = self._cost(spec, config), self._settings
        merged = own.merge_loras and spec.loras and own.offload != "on"
        rounded = own.int8 and self._precision(config, self._where()).int8
        if own.offload != "off" and not merged and not rounded:
            cost = min(cost, cost.changed(blocks_streamed), key=lambda one: one.memory_bytes)
        with self._one:
            smallest, _ = plans.fitted(cost, 0, plans.possible(own, merging=True))
        return smallest.memory_bytes

    def _precision(self, config: ModelConfig, where: "torch.device | None") -> "Precision":
        loading = self._settings.loading()
        if where is None:
            return plans.on_a_gpu(config, loading)
        return wiring.precision(config, where, loading)

    def _where(self) -> "torch.device | None":
        return catalog.device() if self._own() else None

    def _own(self) -> bool:
        """Whether the devices are this machine's."""
        return self._settings.role != "api" and self._settings.executor == "local"

    def _cost(self, spec: VideoSpec, config: ModelConfig) -> "Estimate":
        """With everything in memory from the first stage to the last: a warm model keeps its text encoder."""
        size = (spec.width, spec.height, spec.frames)
        asked = (spec.steps, spec.guided, spec.quality, spec.step_cache, spec.grid, spec.loras)
        key = (spec.model, *size, *asked, spec.sparsity, spec.image is None)
        with self._one:
            if len(self._costs) > 1000:
                self._costs.clear()
            if key not in self._costs:
                where = self._where()
                kind = "cuda" if where is None else where.type
                how = self._precision(config, where)
                self._costs[key] = plans.estimate(spec, config, how, self._weights(config, how), kind)
            return self._costs[key]

    def _weights(self, config: ModelConfig, how: "Precision") -> dict[str, int] | None:
        """As they lie on this machine; None if they lie elsewhere."""
        from broll.engine import footprint

        if config.name not in self._held:
            try:
                folder = catalog.find(self._settings, config.name).folder
            except ModelMissing:
                return None
            self._held[config.name] = footprint.kept(folder, config, how)
        return self._held[config.name]
