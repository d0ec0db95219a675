"""Many clips at once by the engine's own samplers: what teaches the student, and what is evaluated."""

from functools import lru_cache

import torch
from torch import Tensor

from broll.engine import pipeline
from broll.engine.conditioning import Text, collapsed
from broll.engine.config import TransformerConfig
from broll.engine.rope import Rotary, rotary
from broll.engine.sampler import SAMPLERS
from broll.engine.schedule import schedule
from broll.engine.shapes import Grid, token_grid
from broll.engine.text_encoder import TextEncoder
from broll.engine.transformer import Context, Transformer
from training import run


@torch.no_grad()
def encode(encoder: TextEncoder, ids: list[list[int]], width: int = 0) -> Text:
    """Features of a batch of captions' tokens: zeros behind each one's end, and the collapsed rest up to 512.

    With `width`, exactly so many tokens: a compiled model wants one shape.
    """
    device, width = encoder.model.device, width or max(map(len, ids))
    ids = [row if len(row) <= width else [*row[: width - 1], row[-1]] for row in ids]
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    tokens, mask = tokens.to(device, non_blocking=True), mask.to(device, non_blocking=True)
    features = encoder.model(input_ids=tokens, attention_mask=mask).last_hidden_state
    return collapsed(features * mask[..., None], encoder.text_len)


def velocity(model: Transformer, x: Tensor, times: Tensor, prompt: Text) -> Tensor:
    """Of x [b, c, f, h, w] at times [b, f] (or [b]), in fp32; with gradients, so nothing is remembered."""
    with run.autocast(x.device.type):
        context = Context(
            grid=token_grid(Grid(*x.shape[2:]), model.config.patch_size),
            rotary=turns(Grid(*x.shape[2:]), model.config, x.device),
            text=model.text_embedding(prompt.features.float()),
            dtype=model.compute_dtype,
            text_bias=prompt.bias,
            memory=None,
        )
        return model(x, times, context).float()


@lru_cache(8)
def turns(latent: Grid, config: TransformerConfig, device: torch.device) -> Rotary:
    """Made once, not at every step: it is made on the CPU, and a GPU would wait for it with an empty queue."""
    return rotary(token_grid(latent, config.patch_size), config.head_dim, device)


def guided(
    model: Transformer, x: Tensor, times: Tensor, prompts: tuple[Text, Text | None], scale: float
) -> Tensor:
    positive, negative = prompts
    v = velocity(model, x, times, positive)
    if negative is None or scale == 1:
        return v
    against = velocity(model, x, times, negative)
    return against + scale * (v - against)


@torch.no_grad()
def sample(
    model: Transformer, prompts: tuple[Text, Text | None], noise: Tensor, *,
    steps: int, guidance: float, shift: float, sampler: str = "unipc", grid: str = "official",
    first: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Latents [b, c, f, h, w] from noise of that shape; `first` [b, c, k, h, w] are given."""
    levels = schedule(steps, shift=shift, grid=grid, sampler=sampler)
    kept = 0 if first is None else first.shape[2]

    def at(x: Tensor, index: int) -> Tensor:
        times = torch.full((x.shape[0], x.shape[2]), levels.times[index], device=x.device)
        times[:, :kept] = 0
        return guided(model, put(x, first), times, prompts, guidance)

    for step in SAMPLERS[sampler](at, noise, levels, None):
        x = step.x
    return put(x, first)


def put(x: Tensor, first: Tensor | None) -> Tensor:
    return x if first is None else torch.cat([first, x[:, :, first.shape[2] :]], dim=2)


def noise(grid: Grid, channels: int, seeds: list[int], device: str) -> Tensor:
    """What the engine would draw for each of these seeds."""
    return torch.cat([pipeline.noise(grid, channels, seed) for seed in seeds]).to(device)
