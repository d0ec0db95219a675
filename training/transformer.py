"""Train nano's transformer: `python -m training.transformer`.

Flow matching: x = (1 - sigma) x0 + sigma noise; the model learns the velocity noise - x0. Clips of mixed length,
the text left out now and then (for guidance), bf16 where it is fast, an exponential moving average for the weights
that are kept. Captions are drawn anew each time a clip is seen; the text encoder is frozen.

Some clips are given their first frame, or more: those latents stay clean and have time 0, as in WAN 2.2's small
text-and-image model, and only the others are learned. So one model makes clips from text and from a picture.

    Flow matching        https://arxiv.org/abs/2210.02747
    noise levels         logit-normal, then shifted:  https://arxiv.org/abs/2403.03206
    given frames         https://github.com/Wan-Video/Wan2.2   wan/textimage2video.py
"""

import functools
import math
import random
from typing import Any

import torch
from torch import Tensor

from broll.engine.conditioning import Text, collapsed
from broll.engine.config import TransformerConfig
from broll.engine.transformer import Block, Transformer
from training import run, text, vae
from training.draws import Draws
from training.latents import Latents
from training.muon import Muon
from training.sampling import encode, velocity


def config(numbers: dict[str, Any]) -> TransformerConfig:
    keys = ("dim", "ffn_dim", "num_heads", "num_layers")
    sizes = {key: numbers["transformer"][key] for key in keys}
    channels = numbers["vae"]["z_dim"]
    return TransformerConfig(**sizes, in_dim=channels, out_dim=channels, text_dim=numbers["text"]["d_model"])


def noise_levels(count: int, shift: float, device: str = "cpu") -> Tensor:
    """Four of five by the shifted logit-normal; the fifth uniform, or fine detail would be learned too rarely."""
    s = torch.randn(count, device=device).sigmoid()
    even, dice = torch.rand(2, count, device=device)
    return torch.where(dice < 0.2, even, shift * s / (1 + (shift - 1) * s))


def given_frames(count: int, frames: int, share: float, rng: random.Random) -> Tensor:
    """[count, frames] bool: which latents are given. Of a share of clips the first few, now and then also the last."""
    given = torch.zeros(count, frames, dtype=torch.bool)
    for row in given:
        dice = rng.random() / max(share, 1e-9)
        if dice < 1:
            row[: 1 if dice < 0.7 else rng.randint(2, max(2, frames // 3))] = True
        if 0.9 < dice < 1:
            row[-rng.randint(1, max(1, frames // 4)) :] = True
    return given


@functools.cache
def tempi(frames: int, motion: float, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The orthonormal cosine transform over time, [k, f], and how much each tempo counts, [k], mean 1.

    A moving camera is slow change: between nothing and 0.16 cycles a latent frame. Any weights leave the best
    velocity what it is; these only say what to learn first, since motion is a small part of the plain error.
    """
    k, f = torch.meshgrid(torch.arange(frames), torch.arange(frames), indexing="ij")
    basis = (2 / frames) ** 0.5 * torch.cos(math.pi * k * (2 * f + 1) / (2 * frames))
    basis[0] /= 2**0.5
    cycles = torch.arange(frames) / (2 * frames)
    weight = torch.where((cycles > 0) & (cycles <= 0.16), motion, 1.0)
    return basis.to(device), (weight / weight.mean()).to(device)


def loss(
    model: Transformer, x0: Tensor, prompt: Text, sigma: Tensor, given: Tensor, motion: float = 1.0
) -> Tensor:
    """Mean squared error of the velocity, by tempo. x0 [b, c, f, h, w], sigma [b], given [b, f]."""
    noise = torch.randn_like(x0)
    levels = sigma[:, None] * ~given
    level = levels[:, None, :, None, None]
    v = velocity(model, (1 - level) * x0 + level * noise, 1000 * levels, prompt)
    basis, weight = tempi(x0.shape[2], motion, x0.device)
    wrong = (v - (noise - x0)) * ~given[:, None, :, None, None]
    error = torch.einsum("kf,bcfhw->bchwk", basis, wrong)
    return (weight * error.square()).mean()


def start(numbers: dict[str, Any], device: str) -> Transformer:
    torch.manual_seed(numbers["seed"])
    model = Transformer(config(numbers))
    torch.nn.init.zeros_(model.head.head.weight)
    return model.to(device)


def compile_blocks(model: Transformer) -> None:
    """All blocks by one graph, and a second one for any other number of tokens: so none is told which it is."""
    for block in model.blocks:
        assert isinstance(block, Block)
        block.self_attn.layer = block.cross_attn.layer = 0
        block.compile()


def batch_size(numbers: dict[str, Any], device: str, frames: int) -> int:
    """Clips of so many latent frames that fill a batch."""
    per_latent = numbers["clip"]["height"] * numbers["clip"]["width"] // 1024  # tokens: 32 x 32 pixels each
    return max(1, numbers["transformer"]["tokens"][device] // (frames * per_latent))


class Trainer:
    """Model, optimizers and moving average of one run, and where they are kept."""

    def __init__(self, numbers: dict[str, Any], device: str) -> None:
        self.numbers, self.own, self.device = numbers, numbers["transformer"], device
        self.model = start(numbers, device)
        inside = [p for p in self.model.blocks.parameters() if p.dim() == 2]
        ids = {id(p) for p in inside}
        self.outside = [p for p in self.model.parameters() if id(p) not in ids]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(inside, self.own["lr_muon"]),
            torch.optim.AdamW(self.outside, self.own["lr"], (0.9, 0.98), fused=True),
        ]
        if self.own["compile"][device]:
            compile_blocks(self.model)
        self.rates = [self.own["lr_muon"], self.own["lr"]]
        self.average = run.MovingAverage(self.model, self.own["ema"])
        self.path = run.work_folder(numbers) / "transformer.pt"
        state = run.load(self.path) or {"step": 0, "spent": 0.0, "clips": 0}
        self.first, self.seen = state["step"], state["clips"]
        self.clock = run.Clock(numbers["minutes"][device]["transformer"], state["spent"])
        if "model" in state:
            torch.seed()
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state.get("optimizers", ()), strict=False):
                optimizer.load_state_dict(saved)  # restored weights (training/export.py) have none
            self.average.values = {name: state["average"][name].to(device) for name in self.average.values}
            self.average.updates = state["step"]

    def warm(self) -> None:
        """Compile before the clock starts: there and back once at every length, with nothing in particular."""
        sides = [self.numbers["clip"][side] // 16 for side in ("height", "width")]
        channels, text_dim = self.model.config.in_dim, self.model.config.text_dim
        for frames in sorted(self.own["latent_frames"], reverse=True):
            count = batch_size(self.numbers, self.device, frames)
            x0 = torch.zeros(count, channels, frames, *sides, device=self.device)
            words = torch.zeros(count, self.own["words"], text_dim, device=self.device)
            levels = torch.full((count,), 0.5, device=self.device)
            given = torch.zeros(count, frames, dtype=torch.bool, device=self.device)
            loss(self.model, x0, collapsed(words, self.model.config.text_len), levels, given).backward()
        self.model.zero_grad(set_to_none=True)

    def learn(self, step: int, x0: Tensor, prompt: Text, rng: random.Random) -> Tensor:
        sigma = noise_levels(len(x0), self.own["shift"], self.device)
        given = given_frames(len(x0), x0.shape[2], self.own["given"], rng)
        given = given.to(self.device, non_blocking=True)  # a GPU's queue must not run dry for it
        value = loss(self.model, x0, prompt, sigma, given, self.own["motion"])
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.outside, 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * self.clock.rate(step)
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.average.update(self.model)
        self.seen += len(x0)
        return value.detach()

    def checkpoint(self, step: int) -> None:
        weights = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}
        progress = {
            "average": self.average.values,
            "step": step,
            "spent": self.clock.spent,
            "clips": self.seen,
        }
        run.save(self.path, weights | progress)


def train(
    numbers: dict[str, Any], device: str = "cpu", trainer: Trainer | None = None, end: float = math.inf
) -> None:
    """`trainer`: one that is warm already. `end`: by time.monotonic(), whatever the recipe's minutes are."""
    own, rng = numbers["transformer"], random.Random()  # unseeded: after a restart, other batches
    trainer = trainer or Trainer(numbers, device)
    encoder = text.load(numbers)
    encoder.model.to(device)
    pool = Latents(numbers, device, vae.load(numbers).to(device))
    log = run.Log(run.work_folder(numbers) / "transformer.jsonl")
    losses: list[Tensor] = []
    step = trainer.first - 1
    with Draws(numbers, rng, own["drop_text"]) as draws:
        pool.grow(own["first"])
        trainer.clock.start()
        trainer.clock.end_by(end)
        for step in trainer.clock.steps(trainer.first):
            if step % own["grow_every"] == 0:
                pool.grow(own["grow"], wait=False)  # rendering may still be going on beside this
            while draws.waiting < 6:
                frames = rng.choices(own["latent_frames"], own["weights"])[0]
                draws.ask(pool.indices, batch_size(numbers, device, frames), frames)
            draw = draws.next()
            x0 = pool.pick(draw.places, draw.mirrored, draw.frames)
            losses.append(trainer.learn(step, x0, encode(encoder, draw.ids, own["words"]), rng))
            if step % 50 == 0:
                mean = float(torch.stack(losses).mean())
                log(step=step, minutes=trainer.clock.spent, seen=trainer.seen, clips=len(pool), loss=mean)
                losses.clear()
            if step % own["checkpoint"] == own["checkpoint"] - 1:
                trainer.checkpoint(step + 1)
    pool.finish()
    trainer.checkpoint(step + 1)


def steps(numbers: dict[str, Any]) -> int:
    """How long it has been trained."""
    state = run.load(run.work_folder(numbers) / "transformer.pt")
    return state["step"] if state else 0


def average(numbers: dict[str, Any], device: str = "cpu") -> Transformer:
    """The trained transformer: its moving average."""
    state = run.load(run.work_folder(numbers) / "transformer.pt")
    if state is None:
        raise SystemExit("no trained transformer yet: run `python -m training.transformer` first")
    model = Transformer(config(numbers))
    model.load_state_dict(state["average"])
    return model.to(device).eval()


if __name__ == "__main__":
    run.command(__doc__, train)
