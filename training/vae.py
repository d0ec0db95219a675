"""Train nano's autoencoder: `python -m training.vae`.

The engine's own VAE class, in bf16 where that is fast. Loss: L1 and squares of pixels, L1 of their differences in space
and time (edges and motion survive), and a small KL that keeps the latents near a normal distribution.
Afterwards the latents' mean and deviation are measured and stored beside the weights.

`--decoder` goes on with the decoder of a trained one: latents stay what they are, so that what was made from them or
learned on them still holds.
"""

import itertools
import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from broll.engine.config import VAEConfig
from broll.engine.vae import VAE
from broll.engine.vae_layers import Downsample, FrameAttention, ResidualBlock, Upsample
from training import run
from training.clips import Clips
from training.muon import Muon
from training.render import to_float


def config(numbers: dict[str, Any], **statistics: tuple[float, ...]) -> VAEConfig:
    own = numbers["vae"]
    keys = ("base_dim", "decoder_base_dim", "z_dim", "num_res_blocks", "patch_size")
    lists = {key: tuple(own[key]) for key in ("dim_mult", "temporal_downsample")}
    return VAEConfig(**{key: own[key] for key in keys}, **lists, **statistics)


def random_crops(clips: Clips, count: int, shape: tuple[int, int, int], rng: random.Random) -> Tensor:
    """[count, 3, f, h, w] in [-1, 1], at random places and times, each mirrored half of the time."""
    frames, height, width = shape
    crops = []
    for _ in range(count):
        place = rng.randrange(len(clips))
        length, rows, columns = clips.shape
        begin, top, left = (
            rng.randrange(whole - part + 1)
            for whole, part in ((length, frames), (rows, height), (columns, width))
        )
        crop = clips.cut(
            place, slice(begin, begin + frames), slice(top, top + height), slice(left, left + width)
        )
        crops.append(crop.flip(3) if rng.random() < 0.5 else crop)
    return to_float(torch.stack(crops)).transpose(1, 2)


def through(weight: Tensor) -> Tensor:
    """A convolution that looks at one place, here and now, and repeats or averages channels."""
    rows, columns = weight.shape[:2]
    mix = torch.zeros(rows, columns)
    if rows >= columns:
        mix[torch.arange(rows), torch.arange(rows) * columns // rows] = 1
    else:
        mix[torch.arange(columns) * rows // columns, torch.arange(columns)] = rows / columns
    kernel = torch.zeros_like(weight)
    y, x = weight.shape[-2] // 2, weight.shape[-1] // 2
    kernel[(..., -1, y, x) if weight.dim() == 5 else (..., y, x)] = mix
    return kernel


def orthogonal(weight: Tensor) -> Tensor:
    """The same, with channels mixed orthogonally."""
    kernel = through(weight)
    kernel[kernel != 0] = 0
    y, x = weight.shape[-2] // 2, weight.shape[-1] // 2
    kernel[(..., -1, y, x)] = torch.nn.init.orthogonal_(torch.empty(weight.shape[:2]))
    return kernel


@torch.no_grad()
def start(model: VAE) -> None:
    """Begin as a crude linear autoencoder: average on the way down, repeat on the way up.

    Every norm divides a feature's length away, and brightness with it, unless there is something constant to
    measure against: hence the bias of 1 at both entrances. Little noise in the latents, too: at deviation 1
    it drowns the means, and nothing is learnt. (Both tried without; training/LOG.md.)
    """
    for part in model.modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.Conv3d):
            part.bias.zero_()
        if isinstance(part, ResidualBlock):
            part.conv2.weight *= 0.1
            if part.conv_shortcut is not None:
                part.conv_shortcut.weight.copy_(through(part.conv_shortcut.weight))
        elif isinstance(part, FrameAttention):
            part.proj.weight.zero_()
        elif isinstance(part, Downsample):
            average_pairs(part.resample[1].weight, (0, 1), (0, 1))
            if part.time_conv is not None:
                average_pairs(part.time_conv.weight, (1, 2))
        elif isinstance(part, Upsample):
            part.resample[1].weight.mul_(0.1).add_(through(part.resample[1].weight))
            if part.time_conv is not None:
                for half in part.time_conv.weight.chunk(2):
                    average_pairs(half, (2,))
    entrances = ((model.encoder, 0.5 * orthogonal(model.encoder.conv_in.weight)),
                 (model.decoder, 0.3 * through(model.decoder.conv_in.weight)))  # fmt: skip
    for end, kernel in entrances:
        end.conv_in.weight.mul_(0.1).add_(kernel)
        end.conv_in.bias.fill_(1.0)
        end.conv_out.weight.mul_(0.1).add_(orthogonal(end.conv_out.weight))
    for conv in (model.quant_conv, model.post_quant_conv):
        conv.weight.copy_(orthogonal(conv.weight))
    model.quant_conv.weight[model.config.z_dim :] *= 0.1
    model.quant_conv.bias[model.config.z_dim :] = -6.0


def average_pairs(weight: Tensor, *taps: tuple[int, ...]) -> None:
    """Add to a square convolution the mean over the given taps of its first kernel axes, channel by channel."""
    weight *= 0.1
    i = torch.arange(weight.shape[0])
    places = list(itertools.product(*taps))
    for place in places:
        index = (*place, 0, 0) if weight.dim() == 5 else place
        weight[(i, i, *index)] += 1 / len(places)


def differences(x: Tensor) -> list[Tensor]:
    return [x.diff(dim=axis) for axis in (2, 3, 4)]


def loss(model: VAE, x: Tensor, weights: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Training loss, and the mean squared error for the log. x is [b, 3, f, h, w]."""
    with run.autocast(x.device.type):
        mean, logvar = (part.float() for part in model.moments(x, {}))
        logvar = logvar.clamp(-20, 10)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        y = model.pixels(z, {}).float()
    plain, square = (y - x).abs().mean(), (y - x).square().mean()
    edges = sum((a - b).abs().mean() for a, b in zip(differences(y), differences(x), strict=True))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    value = plain + weights["square"] * square + weights["edge"] * edges + weights["kl"] * kl
    return value, square.detach()


def train(numbers: dict[str, Any], device: str = "cpu") -> None:
    folder = run.work_folder(numbers)
    torch.manual_seed(numbers["seed"])
    model = VAE(config(numbers))
    start(model)
    clips = Clips(folder, device, numbers["vae"]["clips"])
    average, steps = learn(numbers, device, "vae", model.to(device), clips)
    if steps or not (folder / "vae_final.pt").exists():
        measure(clips, numbers, average, device)


def polish(numbers: dict[str, Any], device: str = "cpu") -> None:
    """Go on with the decoder of a trained autoencoder."""
    folder = run.work_folder(numbers)
    model = load(numbers).train()
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(requires_grad=False)
    clips = Clips(folder, device, numbers["vae"]["clips"])
    average, _ = learn(numbers, device, "decoder", model.to(device), clips)
    state = run.load(folder / "vae_final.pt")
    assert state is not None, "it was loaded just now"
    weights = {name: value.cpu() for name, value in average.values.items()}
    run.save(folder / "vae_final.pt", state | {"model": weights})


def learn(
    numbers: dict[str, Any], device: str, name: str, model: VAE, clips: Clips
) -> tuple[run.MovingAverage, int]:
    """Train what may be trained of the model, by the recipe's table and minutes of this name: steps done now."""
    torch.backends.cudnn.benchmark = True  # few shapes, seen often
    folder, minutes, own = clips.folder, numbers["minutes"][device][name], numbers[name]
    rng = random.Random()  # unseeded: after a restart, other crops
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizers = [
        Muon([p for p in learning if p.dim() >= 4 and p.shape[0] > 1], own["lr_muon"]),
        torch.optim.AdamW(
            [p for p in learning if p.dim() < 4 or p.shape[0] == 1],
            lr=own["lr"],
            betas=(0.9, 0.99),
            weight_decay=0.0,
        ),
    ]
    rates = [own["lr_muon"], own["lr"]]
    average = run.MovingAverage(model, 0.999)
    path = folder / f"{name}.pt"
    state = run.load(path) or {"step": 0, "spent": 0.0}
    if "model" in state:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average.values, average.updates = state["average"], state["step"]
    log, clock = run.Log(folder / f"{name}.jsonl"), run.Clock(minutes, state["spent"])
    errors: list[Tensor] = []
    step = state["step"] - 1
    for step in clock.steps(state["step"]):
        share, *shape = rng.choice(own["crops"])
        if step % 50 == 0 or step == state["step"]:
            clips.refresh()  # rendering may still be going on beside this
        count = max(1, round(share * own["pixels"][device] / math.prod(shape)))
        value, error = loss(model, random_crops(clips, count, tuple(shape), rng), own)
        value.backward()
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * clock.rate(step, warmup=30)
            optimizer.step()
        model.zero_grad(set_to_none=True)
        average.update(model)
        errors.append(error)
        if step % 50 == 0:
            psnr = -10 * torch.stack(errors).div(4).mean().log10()
            log(
                step=step,
                minutes=clock.spent,
                loss=float(value.detach()),
                psnr=float(psnr),
                clips=len(clips),
            )
            errors.clear()
        if step % 500 == 499:
            checkpoint(path, model, optimizers, average, step + 1, clock)
    if step >= state["step"]:
        checkpoint(path, model, optimizers, average, step + 1, clock)
    return average, step + 1 - state["step"]


def checkpoint(path: Path, model: VAE, optimizers: Any, average: Any, step: int, clock: run.Clock) -> None:
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    run.save(path, state | {"average": average.values, "step": step, "spent": clock.spent})


@torch.no_grad()
def measure(clips: Clips, numbers: dict[str, Any], average: run.MovingAverage, device: str) -> None:
    """Mean and deviation of each latent channel over up to 64 whole clips, to vae_final.pt with the weights."""
    model = VAE(config(numbers)).to(device)
    model.load_state_dict(average.values)
    means = []
    for place in range(min(64, len(clips))):
        video = to_float(clips.cut(place, slice(None), slice(None), slice(None))).transpose(0, 1)[None]
        with run.autocast(device):
            means.append(model.moments(video, {})[0].float())
    flat = torch.cat([m.transpose(0, 1).flatten(1) for m in means], dim=1)
    statistics = {"mean": flat.mean(1).tolist(), "std": flat.std(1).tolist()}
    weights = {name: value.cpu() for name, value in average.values.items()}
    run.save(clips.folder / "vae_final.pt", {"model": weights} | statistics)


def load(numbers: dict[str, Any]) -> VAE:
    """The trained autoencoder with its latent statistics."""
    state = run.load(run.work_folder(numbers) / "vae_final.pt")
    if state is None:
        raise SystemExit("no trained autoencoder yet: run `python -m training.vae` first")
    statistics = {"latents_mean": tuple(state["mean"]), "latents_std": tuple(state["std"])}
    model = VAE(config(numbers, **statistics)).eval()
    model.load_state_dict(state["model"])
    return model


if __name__ == "__main__":
    run.command(__doc__, train, decoder=polish)
