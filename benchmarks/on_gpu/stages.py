"""The stages around the steps, at full width with random weights: the autoencoder both ways, and the text encoder.

The autoencoder streams, one latent frame after the other, and from the third on all cost the same. Where not all 21
are run, the others are counted as the median of those, and `latents` says how many were.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.on_gpu import models
from benchmarks.on_gpu.bench import Bench, Figures, between, relative
from broll.engine import counts
from broll.engine import vae_layers as engine
from broll.engine.config import TextConfig, VAEConfig
from broll.engine.vae import VAE
from broll.engine.vae_layers import FrameAttention, RMSNorm

F32, BF16 = torch.float32, torch.bfloat16
SOME = 6  # latents
FORMATS = {5: torch.channels_last_3d, 4: torch.channels_last}


def channels_last(vae: VAE) -> VAE:
    """Convolutions give their outputs in the order of their weights."""
    for parameter in vae.parameters():
        if parameter.dim() in FORMATS:
            parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.dim()])
    return vae


def config(bench: Bench) -> VAEConfig:
    return VAEConfig(base_dim=4) if bench.tiny else VAEConfig()


def vae(bench: Bench, dtype: torch.dtype, *, last: bool) -> VAE:
    made = models.on_device(lambda: VAE(config(bench)), bench.device, dtype)
    for name, parameter in made.named_parameters():
        if (
            parameter.dim() > 1 and "gamma" not in name
        ):  # so that numbers stay near one through 60 convolutions
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    return channels_last(made) if last else made


def run(bench: Bench) -> None:
    text(bench)
    for way, size in (("decode", "480p"), ("decode", "720p"), ("encode", "720p")):
        autoencoder(bench, size, way, lowest(bench), last=True)


def more(bench: Bench) -> None:
    cost = seconds(bench, "decode", "720p", "convolution", 2 * SOME)
    bench.attempt("VAE decode 720p, norms in one pass", cost + 10, lambda: in_one_pass(bench, "720p"))
    bench.attempt("kernels of a latent's decoding, 480p", 3, lambda: looked_into(bench))
    for size in ("720p", "480p"):
        autoencoder(bench, size, "decode", lowest(bench), last=False)
        autoencoder(bench, size, "decode", F32, last=False, rounds=True)
    autoencoder(bench, "480p", "encode", lowest(bench), last=True)
    autoencoder(bench, "480p", "encode", F32, last=False, rounds=True)
    autoencoder(bench, "480p", "decode", F32, last=False)


def lowest(bench: Bench) -> torch.dtype:
    """bf16; fp32 where all is small, because a CPU without it convolves in bf16 ten times slower."""
    return F32 if bench.tiny else BF16


def looked_into(bench: Bench) -> Figures:
    model = vae(bench, lowest(bench), last=True)
    stream = decoded(bench, model, "480p", 3)
    next(stream), next(stream)
    return bench.kernels(lambda: next(stream))


def autoencoder(
    bench: Bench, size: str, way: str, dtype: torch.dtype, *,
    last: bool, rounds: bool = False,
) -> None:  # fmt: skip
    """`rounds`: fp32 convolutions in TF32, as torch does unless told otherwise."""
    torch.backends.cudnn.allow_tf32 = rounds
    name = f"VAE {way} {size} {str(dtype)[6:]}" + ", TF32" * rounds + ", channels last" * last
    cost = seconds(bench, way, size, "convolution" if dtype == BF16 or rounds else "fp32", 2 * SOME)
    bench.attempt(name, cost, partial(streamed, bench, size, way, dtype, last=last))
    torch.backends.cudnn.allow_tf32 = True


def seconds(bench: Bench, way: str, size: str, kind: str, latents: int) -> float:
    return 1 + operations(bench, way, size) / bench.rate(kind) * latents / 21


def operations(bench: Bench, way: str, size: str) -> float:
    c = config(bench)
    if way == "decode":
        return counts.decode(c, bench.latent(size)).total
    return counts.encode(c, bench.pixels(size)).total


def streamed(bench: Bench, size: str, way: str, dtype: torch.dtype, *, last: bool) -> Figures:
    model, frames = vae(bench, dtype, last=last), bench.latent(size).frames
    begin = decoded if way == "decode" else encoded
    timed(bench, begin(bench, model, size, 3))  # every shape that comes
    return counted(bench, size, way, timed(bench, begin(bench, model, size, min(frames, SOME))))


def counted(bench: Bench, size: str, way: str, times: list[float]) -> Figures:
    frames = bench.latent(size).frames
    whole = sum(times) + (frames - len(times)) * median(times[2:] or times)
    return {
        "seconds": whole, "tflops": operations(bench, way, size) / whole / 1e12,
        "latent_ms": 1e3 * median(times[2:] or times), "latents": f"{len(times)} of {frames}",
    }  # fmt: skip


def timed(bench: Bench, stream: Iterator[Tensor]) -> list[float]:
    marks = [bench.mark()]
    marks.extend(bench.mark() for _ in stream)
    return between(marks)


def decoded(bench: Bench, model: VAE, size: str, latents: int) -> Iterator[Tensor]:
    grid = bench.latent(size)
    z = torch.randn(1, 16, latents, grid.height, grid.width, device=bench.device)
    return model.decode_stream(z)


def encoded(bench: Bench, model: VAE, size: str, latents: int) -> Iterator[Tensor]:
    grid = bench.pixels(size)
    lengths = [1] + [4] * (latents - 1)
    shapes = [(1, 3, length, grid.height, grid.width) for length in lengths]
    return model.encode_stream([torch.rand(shape, device=bench.device) * 2 - 1 for shape in shapes])


# --- norm and SiLU in one pass ----------------------------------------------------------------------------


def normed(x: Tensor, gain: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp(min=1e-12)
    return (x / length).to(x.dtype) * gain


def activated(x: Tensor, gain: Tensor) -> Tensor:
    return F.silu(normed(x, gain))


class OnePass(nn.Module):
    def __init__(self, norm: RMSNorm, fast: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gain, self._fast = norm.scale * norm.gamma, fast

    def forward(self, x: Tensor) -> Tensor:
        return self._fast(x, self.gain)


def in_one_pass(bench: Bench, size: str) -> Figures:
    """Channels last; and how far its first frames are from those of the norm and SiLU as they are."""
    compiled = bench.compiled and bench.device.type == "cuda"
    fast = [torch.compile(f, dynamic=True) if compiled else f for f in (normed, activated)]
    model = vae(bench, lowest(bench), last=True)
    grid = bench.latent(size)
    z = torch.randn(1, 16, min(SOME, grid.frames), grid.height, grid.width, device=bench.device)
    wanted = model.decode(z[:, :, :2])
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RMSNorm):
                setattr(parent, name, OnePass(child, fast[not isinstance(parent, FrameAttention)]))
    before, engine.activated = engine.activated, lambda x: x
    try:
        out = model.decode(z[:, :, :3])[:, :, : wanted.shape[2]]
        times = timed(bench, model.decode_stream(z))
    finally:
        engine.activated = before
    error = relative(out, wanted.cpu())
    return counted(bench, size, "decode", times) | {"error": error}


# --- text -------------------------------------------------------------------------------------------------


def text_encoder(bench: Bench, dtype: torch.dtype) -> Callable[[int], Tensor]:
    """Features of so many random tokens."""
    from broll.engine.text_encoder import umt5

    small = TextConfig(vocab_size=1000, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    given = small if bench.tiny else TextConfig()
    model = models.on_device(lambda: umt5(given), bench.device, dtype)

    def call(tokens: int) -> Tensor:
        ids = torch.randint(3, 1000, (1, tokens), device=bench.device)
        return model(input_ids=ids).last_hidden_state

    return call


def text(bench: Bench) -> None:
    """Of the prompt's own tokens, and of 512, which is what padding costs."""

    def measure() -> Figures:
        encode = text_encoder(bench, BF16)
        short, padded = (bench.timed(partial(encode, n), 10, 2) for n in (models.PROMPT, 512))
        return {"ms_40_tokens": 1e3 * median(short), "ms_512_tokens": 1e3 * median(padded)}

    bench.attempt("text encoder, umT5-XXL bf16", 8, measure)
