"""Train nano's transformer: `python -m training.transformer`.

Flow matching: x = (1 - sigma) x0 + sigma noise; the model learns the velocity noise - x0. Clips of mixed length,
the text left out now and then (for guidance), bf16 where it is fast, an exponential moving average for the weights
that are kept. Captions are drawn anew each time a clip is seen; the text encoder is frozen.

    Flow matching        https://arxiv.org/abs/2210.02747
    noise levels         logit-normal, then shifted:  https://arxiv.org/abs/2403.03206
"""

import argparse
import functools
import math
import random
from typing import Any

import torch
from torch import Tensor

from broll.engine.conditioning import Text, collapsed
from broll.engine.config import TransformerConfig
from broll.engine.shapes import Grid
from broll.engine.text_encoder import TextEncoder
from broll.engine.transformer import Transformer
from training import latents, run, text
from training.captions import caption
from training.muon import Muon
from training.render import scene


def config(numbers: dict[str, Any]) -> TransformerConfig:
    keys = ("dim", "ffn_dim", "num_heads", "num_layers")
    sizes = {key: numbers["transformer"][key] for key in keys}
    channels = numbers["vae"]["z_dim"]
    return TransformerConfig(**sizes, in_dim=channels, out_dim=channels, text_dim=numbers["text"]["d_model"])


@torch.no_grad()
def encode_text(encoder: TextEncoder, captions: list[str]) -> Text:
    """Features of a batch of captions: zeros behind each one's end, and the collapsed rest up to 512."""
    batch = encoder.tokenizer(captions, padding=True, return_tensors="pt").to(encoder.model.device)
    features = encoder.model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    return collapsed(features * batch["attention_mask"][..., None], encoder.text_len)


def noise_levels(count: int, shift: float) -> Tensor:
    s = torch.randn(count).sigmoid()
    return shift * s / (1 + (shift - 1) * s)


@functools.cache
def tempi(frames: int, motion: float) -> tuple[Tensor, Tensor]:
    """The orthonormal cosine transform over time, [k, f], and how much each tempo counts, [k], mean 1.

    A moving camera is slow change: between nothing and 0.16 cycles a latent frame. Any weights leave the best
    velocity what it is; these only say what to learn first, since motion is a small part of the plain error.
    """
    k, f = torch.meshgrid(torch.arange(frames), torch.arange(frames), indexing="ij")
    basis = (2 / frames) ** 0.5 * torch.cos(math.pi * k * (2 * f + 1) / (2 * frames))
    basis[0] /= 2**0.5
    cycles = torch.arange(frames) / (2 * frames)
    weight = torch.where((cycles > 0) & (cycles <= 0.16), motion, 1.0)
    return basis, weight / weight.mean()


def loss(model: Transformer, x0: Tensor, prompt: Text, sigma: Tensor, motion: float = 1.0) -> Tensor:
    """Mean squared error of the velocity, by tempo. x0 [b, c, f, h, w], sigma [b]."""
    noise = torch.randn_like(x0)
    level = sigma[:, None, None, None, None]
    x = (1 - level) * x0 + level * noise
    with run.autocast(x0.device.type):
        context = model.context(Grid(*x0.shape[2:]), prompt.features, text_bias=prompt.bias)
        v = model(x, 1000 * sigma, context)
    basis, weight = (tensor.to(x0.device) for tensor in tempi(x0.shape[2], motion))
    error = torch.einsum("kf,bcfhw->bchwk", basis, v.float() - (noise - x0))
    return (weight * error.square()).mean()


def train(numbers: dict[str, Any], device: str = "cpu") -> None:
    folder, own = run.work_folder(numbers), numbers["transformer"]
    rng = random.Random()  # unseeded: after a restart the run must not see the same batches again
    torch.manual_seed(numbers["seed"])
    encoder = text.load(numbers)
    encoder.model.to(device)
    model = Transformer(config(numbers)).to(device)
    torch.nn.init.zeros_(model.head.head.weight)
    inside = [p for p in model.blocks.parameters() if p.dim() == 2]
    ids = {id(p) for p in inside}
    outside = [p for p in model.parameters() if id(p) not in ids]
    optimizers = [
        Muon(inside, own["lr_muon"]),
        torch.optim.AdamW(outside, own["lr"], (0.9, 0.98), fused=True),
    ]
    rates = [own["lr_muon"], own["lr"]]
    average = run.MovingAverage(model, own["ema"])
    state = run.load(folder / "transformer.pt") or {"step": 0, "spent": 0.0, "clips": 0}
    if "model" in state:
        torch.seed()
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state.get("optimizers", ()), strict=False):
            optimizer.load_state_dict(saved)  # restored weights (training/export.py) have none
        average.values, average.updates = state["average"], state["step"]
    log, clock = run.Log(folder / "transformer.jsonl"), run.Clock(own["minutes"], state["spent"])
    seen, losses = state["clips"], []

    def checkpoint(step: int) -> None:
        weights = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
        progress = {"average": average.values, "step": step, "spent": clock.spent, "clips": seen}
        run.save(folder / "transformer.pt", weights | progress)

    for step in clock.steps(state["step"]):
        if step % 500 == 0 or step == state["step"]:
            indices, data = latents.load_all(folder)  # encoding may still be going on beside this
            scenes = [scene(i, numbers["seed"]) for i in indices]
        frames = rng.choices(own["latent_frames"], own["weights"])[0]
        tokens = frames * data.shape[3] * data.shape[4] // 4
        picked = [rng.randrange(len(indices)) for _ in range(max(1, own["tokens"] // tokens))]
        captions = ["" if rng.random() < own["drop_text"] else caption(scenes[i], rng) for i in picked]
        x0 = data[picked, :, :frames].float().to(device)
        sigma = noise_levels(len(picked), own["shift"]).to(device)
        value = loss(model, x0, encode_text(encoder, captions), sigma, own["motion"])
        value.backward()
        torch.nn.utils.clip_grad_norm_(outside, 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * clock.rate(step)
            optimizer.step()
        model.zero_grad(set_to_none=True)
        average.update(model)
        seen += len(picked)
        losses.append(float(value.detach()))
        if step % 50 == 0:
            mean = sum(losses) / len(losses)
            log(step=step, minutes=clock.spent, seen=seen, clips=len(indices), loss=mean)
            losses.clear()
        if step % 100 == 99:
            checkpoint(step + 1)
    checkpoint(step + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(run.recipe(args.recipe), args.device)


if __name__ == "__main__":
    main()
