"""Models with random weights, made on the device: nothing of 28 GB crosses the bus; and the same in other forms.

Matrices are small random numbers, norms are ones. Time does not depend on the values, but zeros would be faster than
any real data (a bf16 product by 13 % on an H200).
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.on_gpu.bench import Bench
from broll.engine import conditioning, fp8, offload, quantized
from broll.engine.config import TransformerConfig
from broll.engine.fp8 import LARGEST
from broll.engine.offload import MATRIX, Away, Cargo
from broll.engine.shapes import Grid
from broll.engine.stored import Entry, Stored
from broll.engine.transformer import Context, Transformer, set_precision

M = TypeVar("M", bound=nn.Module)
SMALL = 0.02
PROMPT = 40  # tokens
NORM = re.compile(r"norm|gamma")


def filled(module: M) -> M:
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        if NORM.search(name) and name.endswith(("weight", "gamma")):
            parameter.data.fill_(1)
        else:
            parameter.data.normal_(std=SMALL)
    return module.eval().requires_grad_(False)


def stirred(module: M) -> M:
    """First values that would hide an error are moved: norms are not all one, and a block adds as much as there is."""
    for name, parameter in module.named_parameters():
        if NORM.search(name):
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        elif name.endswith("modulation"):
            parameter.data.copy_(torch.randn_like(parameter) * 0.5)
    return module


def on_device(build: Callable[[], M], device: torch.device, dtype: torch.dtype | None = None) -> M:
    with torch.device("meta"):
        module = build()
    if dtype is not None:
        module.to(dtype)
    return filled(module.to_empty(device=device))


def transformer(bench: Bench, config: TransformerConfig, low: torch.dtype) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    return filled(set_precision(model, low).to_empty(device=bench.device))


def context(bench: Bench, model: Transformer, latent: Grid, branch: str = "positive") -> Context:
    """A prompt of 40 tokens; the padding is one token with its weight."""
    features = torch.randn(1, PROMPT, model.config.text_dim, device=bench.device)
    text = conditioning.collapsed(features, model.config.text_len)
    return model.context(latent, text.features, text_bias=text.bias, branch=branch)


def noise(bench: Bench, model: Transformer, latent: Grid) -> Tensor:
    shape = (1, model.config.in_dim, latent.frames, latent.height, latent.width)
    return torch.randn(shape, device=bench.device)


# --- other forms ------------------------------------------------------------------------------------------


def to_fp8(model: Transformer, *, native: bool = True) -> int:
    """The blocks' matrices in e4m3 with a scale for each row, in place; how many of them are multiplied so."""
    for name, parameter in list(model.named_parameters()):
        if MATRIX.fullmatch(name) is None:
            continue
        weight = parameter.data.float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
        data = (weight / scale).to(torch.float8_e4m3fn).view(torch.uint8)
        quantized.install(model, name, Stored("F8_E4M3", tuple(weight.shape), data, scale[:, None]))
    return fp8.use(model) if native else 0


def streamed(
    bench: Bench,
    config: TransformerConfig,
    low: torch.dtype,
    source: Transformer | None = None,
    pinnable: int = 0,
) -> Transformer:
    """Its blocks come when they run. `source` has the weights; without one all blocks are one and the same memory."""
    with torch.device("meta"):
        model = set_precision(Transformer(config), low)
    away = Away()
    given = {} if source is None else dict(source.named_parameters())
    for name, parameter in list(model.named_parameters()):
        where, _, own = name.rpartition(".")
        if MATRIX.fullmatch(name):
            away(name, entry(name, parameter, given.get(name)))
            continue
        value = (
            given[name].data.to(bench.device) if given else torch.empty_like(parameter, device=bench.device)
        )
        setattr(model.get_submodule(where), own, nn.Parameter(value.clone(), requires_grad=False))
    if source is None:
        filled(model)
        with torch.inference_mode(mode=False):
            cargoes = offload.cargoes(model, away, bench.device)
            offload.Streaming(cargoes, OneMemory(cargoes, bench.device).bring, bench.device)
    else:
        offload.stream(model, away, bench.device, pinnable)
    return model.eval().requires_grad_(False)


def entry(name: str, parameter: Tensor, given: Tensor | None) -> Entry:
    kind = {torch.float32: "F32", torch.bfloat16: "BF16"}[parameter.dtype]

    def read() -> Tensor:
        assert given is not None
        return given.detach().cpu()

    return Entry(name, tuple(parameter.shape), kind, read)


class OneMemory(offload.Copier):
    """Every block is copied from the same pinned memory: the bus carries as much, and 28 GB need not be filled."""

    def __init__(self, cargoes: Sequence[Cargo], device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        memory = offload.pinned(max(cargo.size for cargo in cargoes))
        memory.view(torch.bfloat16)[:] = torch.randn(1 << 20).mul(SMALL).bfloat16().repeat(
            memory.numel() // 2 // (1 << 20) + 1
        )[: memory.numel() // 2]  # fmt: skip
        self._ready = dict.fromkeys(cargoes, memory)
