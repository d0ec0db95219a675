"""LoRAs on a loaded transformer: W' = W + sum of weight * (scale * up @ down + diff).

    attach     beside the weights, which stay as they are: other LoRAs, weights or steps cost no reading
    detach     the model that was loaded, bit for bit
    merge      into the weights, in fp32, once and for all: a load option, for speed

A stack says everything: which LoRAs, how strong, in which steps. Attaching another one rearranges what is there;
a Linear that is wrapped stays wrapped.

In a step range, the text embedded before the first step and the remembered keys and values would be those of
other weights. So a context then holds one stage for each mixture of the clip, and `forward` takes that of its step.

    LoRA    https://arxiv.org/abs/2106.09685
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from broll.engine.lora_files import Delta, Lora
from broll.engine.lora_fit import Shapes, Unused, fit, shapes_of, sizes
from broll.engine.lora_layers import BesideLinear, Piece, Swapped, Weights, mixed
from broll.engine.shapes import Latent
from broll.engine.transformer import Context, Transformer, parameter_dtype
from broll.errors import BadOption

Steps = tuple[int, int | None]  # first and last step, counted from 0; None: to the end
Entry = tuple[Lora, float, Steps | None]  # with its weight; None: in every step
PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PLACE = (
    "attached_loras"  # in the transformer's own dictionary, which is where an instance keeps its methods too
)


@dataclass(frozen=True)
class Staged(Context):
    """A context with one stage for each mixture of a clip; each has its own text, image and memory."""

    stages: Mapping[Weights, Context] = field(default_factory=dict)


class Attached:
    """The stack that is on a transformer. `unused` says which keys of its files have no effect."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.stack: tuple[Entry, ...] = ()
        self.unused: tuple[Unused, ...] = ()
        self.layers: dict[str, BesideLinear] = {}
        self.swapped: tuple[Swapped, ...] = ()
        self.current: Weights = ()

    def at(self, step: int) -> Weights:
        """Weights in this step."""
        return tuple(weight if within(step, steps) else 0.0 for _, weight, steps in self.stack)

    def mixtures(self) -> list[Weights]:
        """The different ones of a clip, in order."""
        edges = {0}
        for steps in (steps for _, _, steps in self.stack if steps is not None):
            edges |= {steps[0]} if steps[1] is None else {steps[0], steps[1] + 1}
        return list(dict.fromkeys(self.at(step) for step in sorted(edges)))

    def mix(self, weights: Weights) -> None:
        """Bring these weights into force. Outside of inference mode, so that the tensors may be used anywhere."""
        with torch.inference_mode(mode=False), torch.no_grad():
            for layer in self.layers.values():
                layer.mix(weights)
            for swapped in self.swapped:
                swapped.mix(weights)
        self.current = weights

    def context(self, *args: Any, **options: Any) -> Context:
        """Stands for Transformer.context where a stack has step ranges."""
        stages: dict[Weights, Context] = {}
        for weights in self.mixtures():
            self.mix(weights)
            stages[weights] = type(self.model).context(self.model, *args, **options)
        first = stages[self.at(0)]
        return Staged(**{f.name: getattr(first, f.name) for f in fields(first)}, stages=stages)

    def forward(
        self, x: Latent, t: Float[Tensor, "b"], context: Context, step: int = 0
    ) -> Float[Tensor, "b o f h w"]:
        """Stands for Transformer.forward where a stack has step ranges."""
        weights = self.at(step)
        if weights != self.current:
            self.mix(weights)
        return type(self.model).forward(self.model, x, t, stage(context, weights), step)

    def place(self, name: str) -> tuple[nn.Module, str]:
        """Where a Linear is: its parent, and its name there. A packed ffn has no activation of its own."""
        parent, _, own = name.rpartition(".")
        module = self.model.get_submodule(parent)
        if parent.endswith(".ffn") and isinstance(module, nn.Sequential) and own != "0":
            own = str(len(module) - 1)
        return module, own

    def wrap(self, pieces: Mapping[str, Sequence[Piece]]) -> None:
        """Wrap these Linears, unwrap the others, leave those that are wrapped already."""
        for name in self.layers.keys() - pieces.keys():
            module, own = self.place(name)
            setattr(module, own, self.layers.pop(name).base)
        device = self.model.head.modulation.device
        for name, own_pieces in pieces.items():
            if name not in self.layers:
                dtype = parameter_dtype(f"{name}.weight", self.model.compute_dtype)
                module, own = self.place(name)
                layer = BesideLinear(getattr(module, own), torch.empty(0, dtype=dtype, device=device))
                setattr(module, own, layer)
                self.layers[name] = layer
            self.layers[name].hold(own_pieces)

    def swap(self, differences: Mapping[str, Sequence[tuple[int, Tensor]]]) -> None:
        """Put the loaded tensors back, and prepare for others to take their place."""
        for swapped in self.swapped:
            swapped.restore()
        parameters = {name: self.model.get_parameter(name) for name in differences}
        self.swapped = tuple(
            Swapped(parameter, parameter.data, tuple(differences[name]))
            for name, parameter in parameters.items()
        )


def within(step: int, steps: Steps | None) -> bool:
    return steps is None or (steps[0] <= step and (steps[1] is None or step <= steps[1]))


def stage(context: Context, weights: Weights) -> Context:
    """The context as it is under these weights; the memory of the other stages is given up."""
    assert isinstance(context, Staged), "this context was made before LoRAs with step ranges were attached"
    assert weights in context.stages, "this context was made for another stack of LoRAs"
    for other, made in context.stages.items():
        if other != weights and made.memory is not None:
            made.memory.clear()
    own = context.stages[weights]
    memory = None if context.memory is None else own.memory
    return replace(context, text=own.text, image=own.image, memory=memory)


# --- attach, detach ---------------------------------------------------------------------------------------


def attached(model: Transformer) -> Attached | None:
    found = vars(model).get(PLACE)
    return found if isinstance(found, Attached) else None


def attach(model: Transformer, stack: Sequence[Entry]) -> Attached | None:
    """Put this stack on the model instead of what is there; an empty one takes everything off.

    A context that was made before belongs to the stack of that time: make contexts anew.
    """
    check(stack)
    if not stack:
        detach(model)
        return None
    shapes = shapes_of(model)
    fits = [fit(lora, shapes) for lora, _, _ in stack]  # nothing has been touched if one of them is refused
    mine = attached(model) or Attached(model)
    beside, swapped = sort(fits, shapes)
    with torch.inference_mode(mode=False), torch.no_grad():
        mine.wrap(beside)
        mine.swap(swapped)
    mine.stack, mine.unused = tuple(stack), tuple(unused for _, unuseds in fits for unused in unuseds)
    own = vars(model)
    own[PLACE] = mine
    if len(mine.mixtures()) > 1:
        own.update(context=mine.context, forward=mine.forward)
    else:
        own.pop("context", None), own.pop("forward", None)
    mine.mix(mine.at(0))
    return mine


def detach(model: Transformer) -> None:
    """The model as it was loaded."""
    mine = attached(model)
    if mine is None:
        return
    mine.wrap({})
    mine.swap({})
    for name in (PLACE, "context", "forward"):
        vars(model).pop(name, None)


def check(stack: Sequence[Entry]) -> None:
    for lora, weight, steps in stack:
        if not math.isfinite(weight):
            raise BadOption(f"the weight of {lora.name} is {weight}; it must be a finite number")
        if steps is not None and (steps[0] < 0 or (steps[1] is not None and steps[1] < steps[0])):
            raise BadOption(
                f"the steps of {lora.name} are {steps[0]} to {steps[1]}; the first comes first, from 0"
            )


def sort(
    fits: Sequence[tuple[list[Delta], list[Unused]]], shapes: Shapes
) -> tuple[dict[str, list[Piece]], dict[str, list[tuple[int, Tensor]]]]:
    """What goes beside which Linear, and what is added to which other parameter."""
    beside: dict[str, list[Piece]] = {}
    swapped: dict[str, list[tuple[int, Tensor]]] = {}
    for place, (deltas, _) in enumerate(fits):
        for delta in deltas:
            if delta.name in shapes.linears:
                beside.setdefault(delta.name, []).append((place, delta))
            else:
                for name, difference in differences(delta, shapes):
                    swapped.setdefault(name, []).append((place, difference))
    return beside, swapped


def differences(delta: Delta, shapes: Shapes) -> list[tuple[str, Tensor]]:
    """Parameter -> what is added to it, in fp32 and in its shape."""
    weight, bias = shapes.parameter(delta, "weight"), shapes.parameter(delta, "bias")
    full = delta.full(shapes.parameters[weight])
    found = [] if full is None else [(weight, full)]
    return found if delta.diff_b is None else [*found, (bias, delta.diff_b.float())]


# --- merge ------------------------------------------------------------------------------------------------


def merge(model: Transformer, stack: Sequence[Entry]) -> tuple[Unused, ...]:
    """Add the stack to the weights, each rounded once. Reading the files again is the only way back.

    For a model as it was loaded: before its Linears are packed or quantized.
    """
    check(stack)
    ranged = next((lora for lora, _, steps in stack if steps is not None), None)
    if ranged is not None:
        raise BadOption(f"{ranged.name} is for some steps only, so it cannot be merged; it can run beside")
    if attached(model) is not None:
        raise BadOption("other LoRAs run beside this model; merge before they are attached")
    shapes = shapes_of(model)
    fits = [fit(lora, shapes) for lora, _, _ in stack]
    gathered: dict[str, list[tuple[float, Delta]]] = {}
    for (deltas, _), (_, weight, _) in zip(fits, stack, strict=True):
        for delta in deltas:
            gathered.setdefault(delta.name, []).append((weight, delta))
    parameters = dict(model.named_parameters())
    names = {
        shapes.parameter(d, part) for parts in gathered.values() for _, d in parts for part, _ in sizes(d)
    }
    for name in sorted(names):  # all of them, before the first is changed
        parameter = parameters.get(name)
        if parameter is None or parameter.dtype not in PLAIN or parameter.shape != shapes.parameters[name]:
            raise BadOption(
                f"{name} is packed or quantized, so no LoRA can be merged into it; it can run beside"
            )
    for parts in gathered.values():
        merge_one(parts, parameters, shapes)
    return tuple(unused for _, unuseds in fits for unused in unuseds)


@torch.no_grad()
def merge_one(
    parts: Sequence[tuple[float, Delta]], parameters: Mapping[str, nn.Parameter], shapes: Shapes
) -> None:
    """One module's weight and bias."""
    added: dict[str, list[tuple[float, Tensor]]] = {}
    for weight, delta in parts:
        for name, difference in differences(delta, shapes):
            added.setdefault(name, []).append((weight, difference))
    for name, terms in added.items():
        parameter = parameters[name]
        total = mixed(terms, parameter.device)
        if total is not None:
            parameter.data = (parameter.data.float() + total).to(parameter.dtype)
