"""Whether a LoRA fits a model: what has its place there, what has none, and what is for a model of another size.

A text-to-video LoRA fits an image-to-video model; its image branch stays as it is. The other way round, the keys of
the image branch have no effect and are reported. A place of another size is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from broll.engine.lora_files import Delta, Lora
from broll.engine.transformer import Transformer
from broll.errors import BadCheckpoint


@dataclass(frozen=True)
class Unused:
    """Keys of a file that change nothing, and why."""

    lora: str
    keys: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        count = f"{len(self.keys)} keys have" if len(self.keys) > 1 else "1 key has"
        return f"{self.lora}: {count} no effect, such as {self.keys[0]}: {self.why}"


@dataclass(frozen=True)
class Shapes:
    """The plain model: which of its modules are Linears, and the shape of every parameter."""

    linears: frozenset[str]
    parameters: Mapping[str, torch.Size]

    def parameter(self, delta: Delta, part: str) -> str:
        """Which one a delta's `weight` or `bias` is for. A modulation is a parameter by itself."""
        return delta.name if delta.name in self.parameters else f"{delta.name}.{part}"


def shapes_of(model: Transformer) -> Shapes:
    """From the same class on the meta device: `model` itself may be packed, quantized or wrapped."""
    with torch.device("meta"):
        plain = type(model)(model.config)
    linears = frozenset(name for name, module in plain.named_modules() if isinstance(module, nn.Linear))
    return Shapes(linears, {name: parameter.shape for name, parameter in plain.named_parameters()})


def fit(lora: Lora, shapes: Shapes) -> tuple[list[Delta], list[Unused]]:
    """The deltas that this model has a place for, and what it has none for."""
    fitting: list[Delta] = []
    without: dict[str, list[str]] = {}
    for delta in lora.deltas.values():
        why = misfit(lora, delta, shapes)
        if why is None:
            fitting.append(delta)
        else:
            without.setdefault(why, []).extend(delta.keys)
    if lora.unmatched:
        without["a WAN transformer has no such part"] = list(lora.unmatched)
    unused = [Unused(lora.name, tuple(sorted(keys)), why) for why, keys in without.items()]
    if not fitting:
        raise BadCheckpoint(f"{lora.path} changes nothing in this model: {unused[0]}")
    return fitting, unused


def misfit(lora: Lora, delta: Delta, shapes: Shapes) -> str | None:
    """Why this model has no place for it; an error if it has one, but of another size."""
    for part, size in sizes(delta):
        wanted = shapes.parameters.get(shapes.parameter(delta, part))
        if wanted is None:
            image = "_img" in delta.name or delta.name.startswith("img_emb")
            return "it is for the image branch, which this model lacks" if image else "this model lacks that"
        if squeezed(size) == squeezed(wanted):
            continue
        if delta.name == "patch_embedding" and size[:1] == wanted[:1] and len(size) == len(wanted):
            return f"it is for {size[1]} input channels, this model has {wanted[1]}"
        raise BadCheckpoint(
            f"{lora.path}: {delta.keys[0]} is for a {part} of {list(size)}, this model has {list(wanted)}: "
            "is it a LoRA for another model?"
        )
    return None


def sizes(delta: Delta) -> list[tuple[str, torch.Size]]:
    """Of what it would be added to."""
    found = []
    if delta.down is not None and delta.up is not None:
        found.append(("weight", torch.Size([delta.up.shape[0], *delta.down.shape[1:]])))
    if delta.diff is not None:
        found.append(("weight", delta.diff.shape))
    if delta.diff_b is not None:
        found.append(("bias", delta.diff_b.shape))
    return found


def squeezed(size: torch.Size) -> list[int]:
    """Trainers keep a modulation as [6, m] or [1, 6, m]."""
    return [side for side in size if side != 1]
