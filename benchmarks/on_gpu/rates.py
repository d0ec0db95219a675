"""What the device reaches in one kernel at a time: the roof of everything after it.

Matrix products are 8192 square and those of a 14B block; attention has 40 heads of 128 and the layout that the engine
gives it (tokens before heads). The fastest backend at a size is what the roof there is made of.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.on_gpu.bench import Bench, Figures
from broll.engine import attention, fp8
from broll.engine.shapes import Heads

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
TEXT = 41  # keys of a prompt of 40 tokens and its collapsed padding
LOW = torch.bfloat16


def run(bench: Bench) -> None:
    side = 64 if bench.tiny else 8192
    bench.attempt("matrix bf16, square", 1, lambda: matrix(bench, side, side, side, "bf16"))
    for name, fast in (("fp8 by rows, as the engine", False), ("fp8 by rows, fast sums", True)):
        bench.attempt(name, 1, partial(eight_bits, bench, side, fast=fast))
    wide, inner = (64, 128) if bench.tiny else (5120, 13824)
    rows = bench.tokens("720p").size
    bench.attempt("Linear 14B, 720p", 1, lambda: matrix(bench, rows, wide, wide))
    bench.attempt("Linear 14B into ffn, 720p", 1, lambda: matrix(bench, rows, wide, inner))
    for name, call in (("apart", apart), ("in the product", inside)):
        bench.attempt(f"Linear into ffn and GELU {name}, 720p", 1, partial(gelu, bench, rows, call))
    for size in ("480p", "720p"):
        for name in ("as torch chooses", *BACKENDS):
            bench.attempt(f"attention {size}, {name}", 3, partial(attending, bench, size, name))
    bench.attempt("text attention 720p, as torch chooses", 1, lambda: text(bench))
    bench.attempt("copy on the device", 1, lambda: copying(bench))
    if bench.device.type == "cuda":
        bench.attempt("copy from pinned memory", 2, lambda: carrying(bench))


def random(bench: Bench, *shape: int, dtype: torch.dtype = LOW) -> Tensor:
    return torch.randn(*shape, device=bench.device, dtype=dtype)


def noted(bench: Bench, operations: float, times: list[float], *keys: str) -> Figures:
    rate = operations / median(times)
    for key in keys:
        bench.rates[key] = max(rate, bench.rates.get(key, 0.0))
    return {"ms": 1e3 * median(times), "tflops": rate / 1e12, "n": len(times)}


def matrix(bench: Bench, rows: int, inner: int, columns: int, *keys: str) -> Figures:
    x, weight = random(bench, rows, inner), random(bench, columns, inner)
    bias = random(bench, columns)
    times = bench.timed(lambda: F.linear(x, weight, bias), 20, 3)
    return noted(bench, 2.0 * rows * inner * columns, times, *(keys or ("bf16",)))


def eight_bits(bench: Bench, side: int, *, fast: bool) -> Figures:
    x, weight = (fp8.rounded(random(bench, side, side)) for _ in range(2))
    bias = random(bench, side)

    def product() -> Tensor:
        return torch._scaled_mm(
            x[0], weight[0].t(), scale_a=x[1], scale_b=weight[1].t().contiguous(), bias=bias,
            out_dtype=LOW, use_fast_accum=fast,
        )  # fmt: skip

    return noted(bench, 2.0 * side**3, bench.timed(product, 20, 3), "fp8")


def apart(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def inside(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In cuBLASLt's epilogue, whose GELU is the one by tanh."""
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)


def gelu(bench: Bench, rows: int, call: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Figures:
    wide, inner = (64, 128) if bench.tiny else (5120, 13824)
    x, weight, bias = random(bench, rows, wide), random(bench, inner, wide) / wide**0.5, random(bench, inner)
    times = bench.timed(lambda: call(x, weight, bias), 10, 2)
    some = slice(0, 256)
    wanted = apart(*(value.float() for value in (x[some], weight, bias)))
    error = float((call(x, weight, bias)[some].float() - wanted).norm() / wanted.norm())
    kind = "gelu apart" if call is apart else "gelu inside"
    return noted(bench, 2.0 * rows * wide * inner, times, kind) | {"error": error}


def backend(name: str) -> AbstractContextManager[object]:
    """Attention by this backend alone."""
    return sdpa_kernel(BACKENDS[name]) if name in BACKENDS else nullcontext()


def heads(bench: Bench, tokens: int) -> Heads:
    count, width = (2, 32) if bench.tiny else (40, 128)
    return random(bench, 1, tokens, count, width).transpose(1, 2)


def attending(bench: Bench, size: str, name: str) -> Figures:
    n = bench.tokens(size).size
    q, k, v = (heads(bench, n) for _ in range(3))
    operations = 4.0 * n**2 * q.shape[1] * q.shape[3]
    with backend(name):
        times = bench.timed(lambda: F.scaled_dot_product_attention(q, k, v), 3)
    rate = operations / median(times)
    if name in BACKENDS and rate > bench.rates.get(f"attention {size}", 0.0):
        bench.best[size] = name
    figures = noted(bench, operations, times, f"attention {size}", f"attention {size} {name}")
    rows = torch.linspace(0, n - 1, min(n, 16), device=bench.device).long()
    with backend(name):
        out = F.scaled_dot_product_attention(q, k, v)[:, :2, rows].float()
    logits = q[:, :2, rows].float() @ k[:, :2].float().transpose(-1, -2) / q.shape[3] ** 0.5
    truth = logits.softmax(-1) @ v[:, :2].float()
    return figures | {"error": float((out - truth).norm() / truth.norm())}


def text(bench: Bench) -> Figures:
    """With the weight of the collapsed padding, which a kernel must take as a mask."""
    q, k, v = heads(bench, bench.tokens("720p").size), heads(bench, TEXT), heads(bench, TEXT)
    bias = torch.zeros(TEXT, device=bench.device)
    bias[-1] = 6.1
    call = attention.AttendCall("text", 0, bench.tokens("720p"), bias)
    weighed = bench.timed(lambda: attention.sdpa(q, k, v, call), 10, 2)
    plain = bench.timed(lambda: F.scaled_dot_product_attention(q, k, v), 10, 2)
    return {"ms": 1e3 * median(weighed), "ms_without_mask": 1e3 * median(plain)}


def copying(bench: Bench) -> Figures:
    source = random(bench, 1 << (16 if bench.tiny else 31))
    target = torch.empty_like(source)
    times = bench.timed(lambda: target.copy_(source), 10, 2)
    return {"ms": 1e3 * median(times), "gb_per_s": 2 * source.nbytes / median(times) / 1e9}


def carrying(bench: Bench) -> Figures:
    source = torch.arange(1 << (16 if bench.tiny else 28), dtype=torch.float32).pin_memory()
    target = torch.empty_like(source, device=bench.device)
    times = bench.timed(lambda: target.copy_(source, non_blocking=True), 5)
    return {"ms": 1e3 * median(times), "gb_per_s": source.nbytes / median(times) / 1e9}
