"""What this device does in a second, measured at the shapes of a model in about two.

    linear         operations of one transformer block without its attention: its Linears and all that lies between
    attention      operations of the kernel that load.py chooses (on a GPU SDPA), at as many tokens as time allows
    convolution    operations of the VAE's decoder: two latents, or its widest blocks on a small picture
    text           operations of a matrix product with as many rows as a prompt has
    copy           bytes read and written
    bus            bytes that come to the device from main memory; on a CPU, half of `copy`

The real modules run, at the model's own width up to WIDEST, so that a small model is not promised what only large
matrices reach. Weights are constant: no kernel is faster or slower for them. The lower quartile of some calls counts:
what else the machine does at the moment is not its pace. Several models and sizes may share what is `Known`: each thing
is measured once.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from broll.engine import counts, int8, load
from broll.engine.attention import Attend, AttendCall
from broll.engine.config import ModelConfig, TransformerConfig, VAEConfig
from broll.engine.int8 import Int8Linear
from broll.engine.load import Precision, on_meta
from broll.engine.rope import rotary
from broll.engine.shapes import Grid, Heads, Keys
from broll.engine.transformer import Context, Transformer, set_precision
from broll.engine.vae import Decoder
from broll.engine.vae_layers import Memory, ResidualBlock

WIDEST = 1536  # of the measured block on a CPU; one of the 14B takes 1.3 GB
# Operations of one measured call. On less, convolutions reach a third of their rate (26 of 90 GFLOP/s on 2 AVX2 cores).
BUDGET = {"cpu": 4e10, "cuda": 2e13}
PROMPT = 80  # tokens
M = TypeVar("M", bound=nn.Module)
CHUNK = 4  # frames that a latent becomes
Known = dict[tuple[object, ...], float]  # what was measured, by what it was measured at


@dataclass(frozen=True)
class Rates:
    """A second's work: operations, and for `copy` bytes."""

    linear: float
    attention: float
    convolution: float
    text: float
    copy: float
    bus: float


@torch.inference_mode()
def measure(
    config: ModelConfig, precision: Precision, device: torch.device, tokens: int, area: int,
    known: Known | None = None,
) -> Rates:  # fmt: skip
    """For clips of about this many tokens and so many pixels in a frame."""
    known = {} if known is None else known
    low, copy = precision.linears, once(known, ("copy",), lambda: copying(device))
    model = narrowed(config.transformer, low, device, integers=precision.int8)
    return Rates(
        linear=linear(model, tokens, device, known),
        attention=attending(model, tokens, device, known),
        convolution=convolving(config.vae, area, precision.decodes, device, known),
        text=texts(config.text.d_model, config.text.d_ff, precision.text, device, known),
        copy=copy,
        bus=copy / 2 if device.type == "cpu" else once(known, ("bus",), lambda: carrying(device)),
    )


def once(known: Known, what: tuple[object, ...], measure: Callable[[], float]) -> float:
    if what not in known:
        known[what] = measure()
    return known[what]


def narrowed(
    c: TransformerConfig, low: torch.dtype, device: torch.device, *, integers: bool = False
) -> Transformer:
    """One block, as load.py makes it ready for this device."""
    widest = WIDEST if device.type == "cpu" else c.dim
    heads = max(1, min(c.dim, widest) // c.head_dim)
    dim = heads * c.head_dim
    small = replace(
        c, dim=dim, ffn_dim=round(c.ffn_dim * dim / c.dim), num_heads=heads, num_layers=1, vace_layers=(),
        vace_in_dim=None, image_dim=None, image_positions=None,
    )  # fmt: skip
    model = set_precision(constant(on_meta(lambda: Transformer(small)), device), low).eval()
    if integers:
        int8.use(model, device)
    return load.for_cpu(model) if device.type == "cpu" else model


def constant(module: M, device: torch.device) -> M:
    module.to_empty(device=device).requires_grad_(False)
    for parameter in module.parameters():
        parameter.data.fill_(0.01)
    return module


def linear(model: Transformer, tokens: int, device: torch.device, known: Known) -> float:
    c = model.config

    def operations(n: int) -> float:
        return 2.0 * n * (6 * c.dim**2 + 2 * c.dim * c.ffn_dim)

    n = fitting(tokens, operations, device)
    integers = any(isinstance(module, Int8Linear) for module in model.modules())
    what = ("linear", c.dim, c.ffn_dim, c.num_heads, n, model.compute_dtype, integers)
    return once(known, what, lambda: operations(n) / of_block(model, n, device))


def of_block(model: Transformer, n: int, device: torch.device) -> float:
    """Seconds of a block on n tokens, its attention left out."""
    c, block, kernel = model.config, model.blocks[0], attention_of(model)
    context = Context(
        Grid(1, 1, n), rotary(Grid(1, 1, n), c.head_dim, device), torch.zeros(1, PROMPT, c.dim, device=device),
        model.compute_dtype, time=torch.zeros(1, 1, 6, c.dim, device=device),
    )  # fmt: skip
    x = torch.zeros(1, n, c.dim, device=device)
    model.use(passed_on)
    seconds = timed(lambda: block(x, context), device)
    model.use(kernel)
    return seconds


def passed_on(q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:  # noqa: ARG001
    return q


def attention_of(model: Transformer) -> Attend:
    return next(block.self_attn.attend for block in model.blocks)  # type: ignore[union-attr,return-value]


def attending(model: Transformer, tokens: int, device: torch.device, known: Known) -> float:
    c = model.config
    n = fitting(tokens, lambda n: 4.0 * n**2 * c.dim, device)
    what = ("attention", c.num_heads, c.head_dim, n, model.compute_dtype)
    return once(known, what, lambda: 4.0 * n**2 * c.dim / of_kernel(model, n, device))


def of_kernel(model: Transformer, n: int, device: torch.device) -> float:
    """Seconds of the chosen attention on n tokens."""
    c, kernel = model.config, attention_of(model)
    shape = (1, c.num_heads, n, c.head_dim)
    q, k, v = (torch.zeros(shape, device=device, dtype=model.compute_dtype) for _ in range(3))
    call = AttendCall("self", 0, Grid(1, 1, n))
    return timed(lambda: kernel(q, k, v, call), device)


def convolving(c: VAEConfig, area: int, dtype: torch.dtype, device: torch.device, known: Known) -> float:
    """Two latents of this area through the decoder; if that is too much, its widest blocks alone."""
    side = max(2, math.isqrt(area) // c.spatial_stride)
    operations = counts.decode(c, Grid(2, side, side)).total
    if operations > BUDGET.get(device.type, BUDGET["cpu"]):
        return residual(c, area, dtype, device, known)
    return once(known, ("decoder", c, side, dtype), lambda: operations / of_decoder(c, side, dtype, device))


def of_decoder(c: VAEConfig, side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of two latents of side x side."""
    decoder = constant(on_meta(partial(Decoder, c)), device).to(dtype)
    z = torch.zeros(1, c.z_dim, 1, side, side, device=device, dtype=dtype)

    def run() -> None:
        memory: Memory = {}
        for _ in range(2):
            decoder(z, memory)

    return timed(run, device)


def residual(c: VAEConfig, area: int, dtype: torch.dtype, device: torch.device, known: Known) -> float:
    """A residual block of each of the two levels where three quarters of the decoder's operations are."""
    dims = [(c.decoder_base_dim or c.base_dim) * m for m in c.dim_mult[:2]]

    def operations(side: int) -> float:
        levels = zip(dims, (side, side // 2), strict=True)
        return sum(counts.residuals(dim, dim, 1, CHUNK * s**2).total for dim, s in levels)

    side = fitting(math.isqrt(area) // c.patch_size, operations, device)
    what = ("residual", *dims, side, dtype)
    return once(known, what, lambda: operations(side) / of_residuals(dims, side, dtype, device))


def of_residuals(dims: list[int], side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of a block of each width, the second on half the side."""
    blocks = [constant(on_meta(partial(ResidualBlock, dim, dim)), device).to(dtype) for dim in dims]
    shapes = zip(dims, (side, side // 2), strict=True)
    given = [torch.zeros(1, dim, CHUNK, s, s, device=device, dtype=dtype) for dim, s in shapes]

    def run() -> None:
        for block, x in zip(blocks, given, strict=True):
            block(x, {})

    return timed(run, device)


def texts(width: int, inner: int, dtype: torch.dtype, device: torch.device, known: Known) -> float:
    width, inner = min(width, 2048), min(inner, 5120)
    operations = 2.0 * PROMPT * width * inner
    return once(
        known, ("text", width, inner, dtype), lambda: operations / of_text(width, inner, dtype, device)
    )


def of_text(width: int, inner: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one product of a prompt."""
    x = torch.zeros(PROMPT, width, device=device, dtype=dtype)
    matrix = torch.full((inner, width), 0.01, device=device, dtype=dtype)
    return timed(lambda: F.linear(x, matrix), device)


def copying(device: torch.device) -> float:
    source = torch.zeros(1 << (24 if device.type == "cpu" else 28), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), device)


def carrying(device: torch.device) -> float:
    """From pinned main memory to a GPU."""
    source = torch.zeros(1 << 26, pin_memory=True)
    target = torch.empty_like(source, device=device)
    return source.nbytes / timed(lambda: target.copy_(source, non_blocking=True), device)


def fitting(most: int, operations: Callable[[int], float], device: torch.device) -> int:
    """The greatest power of two that is below `most` and within the budget."""
    n = 16
    while 2 * n <= most and operations(2 * n) <= BUDGET.get(device.type, BUDGET["cpu"]):
        n *= 2
    return n


def timed(call: Callable[[], object], device: torch.device, *, seconds: float = 0.2) -> float:
    """Seconds of a call, the lower quartile of some; the first, which fills caches, does not count."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < until:
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[(len(times) - 1) // 4]


def matrix_rate(dtype: torch.dtype, device: torch.device, *, seconds: float = 0.2) -> float:
    """Operations a second of a 1024-square matrix product here, now: the best of a short run."""
    a = torch.randn(1024, 1024, device=device).to(dtype)
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        begin = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * 1024**3 / (time.perf_counter() - begin))
    return best


def name_of(device: torch.device) -> str:
    """What tells one machine from another."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    features = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_model()} {features}, {torch.get_num_threads()} threads"


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return "cpu"
