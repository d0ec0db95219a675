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

from broll import catalog, coaching, loras, takes, wiring
from broll.engine.config import PUBLISHED, ModelConfig, Task
from broll.errors import BadOption, ModelMissing, UnknownModel
from broll.prompts.findings import Context
from broll.prompts.rewriter import Rewrite
from broll.server.deps import Card, Plan, Wish
from broll.settings import Settings
from broll.spec import VideoSpec, parse

if TYPE_CHECKING:
    import torch


class Planner:
    """What can be made with the models of this machine, or with those that devices elsewhere have."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._configs: dict[str, ModelConfig] = {}
        self._memory: dict[tuple[Any, ...], int] = {}
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
            given["frames"] = max(1, 4 * round((seconds * config.defaults.fps - 1) / 4) + 1)
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
            given["frames"] = self._frames(seconds, config)
        elif given.get("frames", 0) > self._longest(config):
            raise BadOption(
                f"frames is {given['frames']}; {config.name} makes at most {self._longest(config)}"
            )
        first = given.get("image")
        picture = None if first is None else Image.open(io.BytesIO(pictures[first["sha256"]])).convert("RGB")
        from broll.engine import pipeline

        asked, told = self._with_loras(given)
        notes += [told] if told else []
        known = coaching.context(config, asked, self._settings, use=wish.preset, style=wish.style)
        coaching.refuse_blocked(asked.prompt, known)
        seen = None if first is None else pictures[first["sha256"]]
        model = coaching.endpoint(self._settings)
        asked, report = coaching.coached(asked, known, wish.mode, model, seen)
        takes.check(asked)
        spec = pipeline.resolve(asked, config, picture=picture)
        return Plan(spec, self._memory_mb(spec, config), tuple(notes), report)

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
        task: Task = "flf2v" if "last_image" in given else "i2v" if "image" in given else "t2v"
        if not self._settings.offer:
            return catalog.best(self._settings, task).name
        able = [name for name in self.names() if self.config(name).task == task]
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
        shrink = min(1.0, (most / (width * height)) ** 0.5)
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

    def _frames(self, seconds: float, config: ModelConfig) -> int:
        frames = max(1, 4 * round((seconds * config.defaults.fps - 1) / 4) + 1)
        longest = self._longest(config)
        if frames > longest:
            most = (longest - 1) / config.defaults.fps
            raise BadOption(f"seconds is {seconds:g}; {config.name} makes clips of at most {most:g} seconds")
        return frames

    def _linears(self, config: ModelConfig) -> "torch.dtype":
        """Of the devices, which are this machine's only if it runs the jobs itself."""
        import torch

        if self._settings.role != "api" and self._settings.executor == "local":
            return wiring.precision(config, catalog.device()).linears
        return torch.bfloat16 if config.transformer.dim >= 1024 else torch.float32

    def _memory_mb(self, spec: VideoSpec, config: ModelConfig) -> int:
        from broll.engine.estimate import estimate

        key = (spec.model, spec.width, spec.height, spec.frames)
        if key not in self._memory:
            with self._one:
                linears = self._linears(config)
                self._memory[key] = estimate(spec, config, linears=linears).memory_bytes // 10**6
        return self._memory[key]
