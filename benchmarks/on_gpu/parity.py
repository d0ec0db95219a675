"""Every part with small random weights on this device, beside the same part in fp32 on the CPU: relative errors.

fp32 is without TF32 unless a row says so. What only moves weights about, streaming, is compared with the same device's
plain run, and says whether the bits are the same. `best` attention is the one that kernels.py chooses.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.on_gpu import models
from benchmarks.on_gpu.bench import Bench, Figures, relative
from benchmarks.on_gpu.far import Flexed, Gathered
from benchmarks.on_gpu.stages import channels_last
from benchmarks.on_gpu.steps import use
from broll.engine import attention, compiled, conditioning, fused, kernels
from broll.engine.compiled import Compiler
from broll.engine.config import ImageConfig, TextConfig, TransformerConfig, VAEConfig
from broll.engine.shapes import Grid
from broll.engine.step_cache import StepCache
from broll.engine.transformer import Context, Transformer, set_precision
from broll.engine.vae import VAE

F32, BF16 = torch.float32, torch.bfloat16
SMALL = TransformerConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=3, text_dim=64, freq_dim=32)
LATENT, TOKENS = Grid(5, 12, 20), Grid(5, 6, 10)
SPARSITY = 0.3
Change = Callable[[Transformer], object]


def run(bench: Bench) -> None:
    with tf32(on=False):
        transformers(bench)
        moved(bench)
        autoencoder(bench)
        encoders(bench)


@contextmanager
def tf32(*, on: bool) -> Iterator[None]:
    """Whether fp32 products and convolutions round what they multiply to 10 bits."""
    matrix, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrix.allow_tf32, cudnn.allow_tf32
    matrix.allow_tf32 = cudnn.allow_tf32 = on
    try:
        yield
    finally:
        matrix.allow_tf32, cudnn.allow_tf32 = before


# --- the transformer --------------------------------------------------------------------------------------


def forward(model: Transformer, device: torch.device) -> Tensor:
    """Two steps, because the second may be made from the first; what is given is the same everywhere."""
    made = torch.Generator().manual_seed(1)
    shape = (1, SMALL.in_dim, LATENT.frames, LATENT.height, LATENT.width)
    first, second = (torch.randn(shape, generator=made).to(device) for _ in range(2))
    features = torch.randn(1, models.PROMPT, SMALL.text_dim, generator=made).to(device)
    text = conditioning.collapsed(features, SMALL.text_len)
    context = model.context(LATENT, text.features, text_bias=text.bias)
    times = [torch.tensor([time], device=device) for time in (900.0, 600.0)]
    outs = [
        model(x, time, context, step)
        for step, (x, time) in enumerate(zip((first, second), times, strict=True))
    ]
    return torch.stack(outs)


def plain(model: Transformer) -> None:
    """As torch computes it."""


def best(model: Transformer, device: torch.device) -> str:
    kernels.use(model, kernels.AUTO, device)
    kernels.begin(model)
    return "checked"


def cached(model: Transformer) -> None:
    model.stack = StepCache(model.run_blocks, frozenset({1}))


def far_left_out(model: Transformer) -> None:
    use(model, Gathered(TOKENS, SPARSITY, attention.sdpa))


def by_flex(model: Transformer) -> None:
    """Not compiled; that is compared in far.py, at its own size."""
    use(model, Flexed(Compiler(compiled.ON, None), TOKENS, SPARSITY, attention.sdpa))


def in_one_pass(model: Transformer) -> None:
    """The algebra of it; what is compiled is compared in forwards.py, at its own size."""

    def stack(tokens: Tensor, context: Context) -> Tensor:
        with fused.on(model, Compiler(compiled.ON, None), wanted=True):
            return model.run_blocks(tokens, context)

    model.stack = stack


def transformers(bench: Bench) -> None:
    torch.manual_seed(0)
    cpu = models.stirred(Transformer(SMALL)).eval().requires_grad_(False)
    here, host = bench.device, torch.device("cpu")
    ways: dict[str, tuple[Change, Change]] = {  # on the CPU, on the device
        "as torch computes it": (plain, plain),
        "best attention, checked": (plain, partial(best, device=here)),
        "step cached": (cached, cached),
        "sparse, tile by tile": (far_left_out, far_left_out),
        "sparse, flex": (far_left_out, by_flex),
        "fp8 dequantized": (partial(models.to_fp8, native=False), partial(models.to_fp8, native=False)),
        "fp8 multiplied": (partial(models.to_fp8, native=False), models.to_fp8),
        "fused, not compiled": (plain, in_one_pass),
    }
    for name, (there, change) in ways.items():
        truth = with_change(cpu, there, host, F32)
        for low in (F32, BF16):
            label = f"transformer {str(low)[6:]}, {name}"
            bench.attempt(label, 2, partial(compared, cpu, change, here, low, truth))
    if (
        here.type == "cuda"
    ):  # patches are a convolution, and torch lets those round unless it is told otherwise
        truth = with_change(cpu, plain, host, F32)
        torch.backends.cudnn.allow_tf32 = True
        bench.attempt(
            "transformer float32, TF32 in convolutions", 2, partial(compared, cpu, plain, here, F32, truth)
        )
        torch.backends.cudnn.allow_tf32 = False


def with_change(cpu: Transformer, change: Change, device: torch.device, low: torch.dtype) -> Tensor:
    model = set_precision(copy.deepcopy(cpu), low).to(device)
    change(model)
    return forward(model, device)


def compared(
    cpu: Transformer, change: Change, device: torch.device, low: torch.dtype, truth: Tensor
) -> Figures:
    model = set_precision(copy.deepcopy(cpu), low).to(device)
    changed = change(model)
    out = forward(model, device)
    told = kernels.verdict(model)
    figures: Figures = {"error": relative(out, truth)}
    return (
        figures
        | ({"verdict": told} if told else {})
        | ({"native": changed} if isinstance(changed, int) else {})
    )


def moved(bench: Bench) -> None:
    """Streamed in both ways: with all blocks pinned, and by way of one desk. Copies take longer than the blocks do."""
    wide = TransformerConfig(dim=1536, ffn_dim=4096, num_heads=12, num_layers=6, text_dim=64, freq_dim=32)
    config, low = (SMALL, F32) if bench.tiny else (wide, BF16)

    def compare(pinnable: int) -> Figures:
        source = models.transformer(bench, config, low)
        model = models.streamed(bench, config, low, source, pinnable)
        wanted = [forward(source, bench.device) for _ in range(3)]
        outs = [forward(model, bench.device) for _ in range(3)]
        same = all(torch.equal(a, b) for a, b in zip(outs, wanted, strict=True))
        return {"same_bits": same, "error": relative(outs[-1], wanted[-1].cpu())}

    bench.attempt("blocks streamed from pinned memory", 3, lambda: compare(1 << 34))
    bench.attempt("blocks streamed by way of one desk", 3, lambda: compare(0))


# --- the others -------------------------------------------------------------------------------------------


def autoencoder(bench: Bench) -> None:
    config = VAEConfig(base_dim=4 if bench.tiny else 32)
    torch.manual_seed(0)
    cpu = VAE(config).eval().requires_grad_(False)
    z, video = torch.randn(1, 16, 3, 4, 6), torch.rand(1, 3, 9, 32, 48) * 2 - 1
    truth = {"decode": cpu.decode(z), "encode": cpu.encode(video)}

    def compare(way: str, dtype: torch.dtype, *, rounds: bool, last: bool) -> Figures:
        model = copy.deepcopy(cpu).to(bench.device, dtype)
        model = channels_last(model) if last else model
        with tf32(on=rounds):
            out = model.decode(z.to(bench.device)) if way == "decode" else model.encode(video)
        return {"error": relative(out, truth[way])}

    for way in ("decode", "encode"):
        for name, dtype, rounds, last in (
            ("fp32", F32, False, False),
            ("fp32, TF32", F32, True, False),
            ("fp32, channels last", F32, False, True),
            ("bf16", BF16, False, False),
            ("bf16, channels last", BF16, False, True),
        ):
            if bench.tiny and dtype == BF16:
                continue
            call = partial(compare, way, dtype, rounds=rounds, last=last)
            bench.attempt(f"VAE {way} {name}", 2, call)


def encoders(bench: Bench) -> None:
    from broll.engine.image_encoder import clip_vision  # transformers takes seconds to come
    from broll.engine.text_encoder import umt5

    torch.manual_seed(0)
    text = umt5(TextConfig(vocab_size=1000, d_model=512, d_ff=1024, num_layers=8, num_heads=6))
    image = clip_vision(ImageConfig(320, 1280, 4, 4))
    ids, pixels = torch.randint(3, 1000, (1, models.PROMPT)), torch.randn(1, 3, 224, 224)

    def words(model: nn.Module, device: torch.device, _: torch.dtype) -> Tensor:
        return model(input_ids=ids.to(device)).last_hidden_state

    def view(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        return model(pixel_values=pixels.to(device, dtype), output_hidden_states=True).hidden_states[-2]

    for name, cpu, call in (("text encoder", text, words), ("CLIP", image, view)):
        cpu.requires_grad_(False)
        truth = call(cpu, torch.device("cpu"), F32)
        for dtype in (F32, BF16):
            model = copy.deepcopy(cpu).to(bench.device, dtype)
            measure = partial(away, call, model, bench.device, dtype, truth)
            bench.attempt(f"{name} {str(dtype)[6:]}", 2, measure)


def away(
    call: Callable[[nn.Module, torch.device, torch.dtype], Tensor],
    model: nn.Module, device: torch.device, dtype: torch.dtype, truth: Tensor,
) -> Figures:  # fmt: skip
    return {"error": relative(call(model, device, dtype), truth)}
