"""What is in a LoRA, and which models it is for: for people, before anything is loaded.

form     whose names the file has
places   the modules of a model that it changes; what it has besides is named with its reason (lora_fit.py)
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from broll.engine import vace
from broll.engine.config import TransformerConfig
from broll.engine.lora_facts import Recommended, facts
from broll.engine.lora_files import Lora
from broll.engine.lora_fit import Shapes, Unused, fit, shapes_of
from broll.errors import BadCheckpoint

FORMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("kohya", re.compile(r"lora_(unet|transformer)_")),
    ("PEFT", re.compile(r"base_model\.model\.")),
    ("diffusers", re.compile(r".*\.(attn[12]\.|ffn\.net\.)|condition_embedder\.")),
    ("ComfyUI", re.compile(r"(model\.)?diffusion_model\.")),
)


@dataclass(frozen=True)
class Card:
    form: str
    ranks: tuple[int, ...]  # the different ones
    pairs: int  # modules with an up and a down matrix
    differences: int  # modules with a whole difference, of the weight or the bias
    unmatched: tuple[str, ...]  # keys that name nothing in a WAN transformer
    wants: Recommended | None


@dataclass(frozen=True)
class Fit:
    """How a LoRA and a model get on: so many places, or why not at all."""

    places: int
    unused: tuple[Unused, ...] = ()
    refused: str = ""


def card(lora: Lora) -> Card:
    deltas = lora.deltas.values()
    return Card(
        form=form(key for delta in deltas for key in delta.keys),
        ranks=tuple(sorted({delta.rank for delta in deltas if delta.rank})),
        pairs=sum(delta.rank > 0 for delta in deltas),
        differences=sum(delta.diff is not None or delta.diff_b is not None for delta in deltas),
        unmatched=lora.unmatched,
        wants=facts(lora),
    )


def form(keys: Iterable[str]) -> str:
    every = list(keys)
    return next((name for name, mark in FORMS if any(mark.match(key) for key in every)), "official names")


def fitting(lora: Lora, config: TransformerConfig) -> Fit:
    """What it would change in a transformer of these numbers."""
    try:
        deltas, unused = fit(lora, shapes(config))
    except BadCheckpoint as error:
        return Fit(0, refused=str(error).removeprefix(f"{lora.path}: ").removeprefix(f"{lora.path} "))
    return Fit(len(deltas), tuple(unused))


@functools.lru_cache(16)
def shapes(config: TransformerConfig) -> Shapes:
    with torch.device("meta"):
        return shapes_of(vace.transformer(config))
