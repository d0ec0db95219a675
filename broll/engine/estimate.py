"""What a clip costs before it is made: operations and bytes, from the shapes alone.

    transformer    2 n L (6 d^2 + 2 d ffn) linear + 4 n^2 d L self-attention + 4 n l d L cross-attention,
                   for n tokens, once or (with guidance) twice a step
    VAE decode     counted from the layers: 2 * weights * output positions of every convolution
    memory         weights, one forward's activations, one chunk of decoding with what it remembers

Counted, not guessed: tests/engine/test_estimate.py holds the counts against torch's own FlopCounterMode.
"""

import time
from dataclasses import dataclass

import torch

from broll.engine import shapes
from broll.engine.config import ModelConfig, TransformerConfig, VAEConfig
from broll.engine.shapes import Grid
from broll.engine.transformer import Transformer
from broll.engine.vae import VAE
from broll.spec import VideoSpec


@dataclass(frozen=True)
class Estimate:
    denoise_flops: float
    decode_flops: float
    weight_bytes: int
    memory_bytes: int  # peak: weights and working memory

    @property
    def flops(self) -> float:
        return self.denoise_flops + self.decode_flops


def transformer_flops(c: TransformerConfig, n: int, text: int) -> float:
    """One forward over n tokens, attending `text` text tokens, whose keys and values are already known."""
    linear = 2 * n * c.num_layers * (6 * c.dim**2 + 2 * c.dim * c.ffn_dim)
    attention = 4 * n * (n + text) * c.dim * c.num_layers
    patch = c.patch_size[0] * c.patch_size[1] * c.patch_size[2]
    ends = 2 * n * c.dim * patch * (c.in_dim + c.out_dim)
    return float(linear + attention + ends)


def decode_flops(c: VAEConfig, latent: Grid) -> float:
    """All latents to pixels; the first makes 1 frame, the others 4."""
    dims = [(c.decoder_base_dim or c.base_dim) * m for m in reversed(c.dim_mult)]
    area, total = latent.height * latent.width, 0.0
    frames = latent.frames
    total += 2 * area * frames * (c.z_dim**2 + 27 * c.z_dim * dims[0])
    total += 2 * area * frames * (4 * 27 * dims[0] ** 2 + 4 * dims[0] ** 2 + 2 * area * dims[0])
    dim_in = dims[0]
    for level, dim in enumerate(dims):
        positions = area * frames
        total += 2 * positions * 27 * (dim_in * dim + dim**2 + c.num_res_blocks * 2 * dim**2)
        total += 2 * positions * dim_in * dim if dim_in != dim else 0
        if level == len(dims) - 1:
            return total + 2 * positions * 27 * dim * 3 * c.patch_size**2
        if c.temporal_downsample[::-1][level]:
            total += 2 * area * (frames - 1) * 3 * dim * 2 * dim
            frames = 2 * frames - 1
        area *= 4
        total += 2 * area * frames * 9 * dim * (dim // 2)
        dim_in = dim // 2
    return total


def estimate(
    spec: VideoSpec, config: ModelConfig, *, linears: torch.dtype, text_tokens: int = 80
) -> Estimate:
    """Operations and peak bytes of a resolved spec."""
    assert spec.frames and spec.width and spec.height and spec.steps and spec.guidance
    latent = shapes.latent_grid(Grid(spec.frames, spec.height, spec.width), config.vae.spatial_stride)
    tokens = shapes.token_grid(latent, config.transformer.patch_size).size
    forwards = spec.steps * (1 if spec.guidance == 1 else 2)
    with torch.device("meta"):
        transformer = sum(p.numel() for p in Transformer(config.transformer).parameters())
        vae = sum(p.numel() for p in VAE(config.vae).parameters())
    t = config.text
    inner = t.num_heads * t.d_kv
    text = t.vocab_size * t.d_model + t.num_layers * (4 * t.d_model * inner + 3 * t.d_model * t.d_ff)
    low = linears.itemsize
    weights = transformer * low + vae * 4 + text * low
    # fp32 residual, its normed copy, q, k, v and the widest feed-forward activation of one block
    activations = tokens * (
        2 * 4 * config.transformer.dim + low * (4 * config.transformer.dim + 2 * config.transformer.ffn_dim)
    )
    # the widest level of the decoder: four frames, in, out and two remembered, fp32
    widest = max((config.vae.decoder_base_dim or config.vae.base_dim), 3 * config.vae.patch_size**2)
    area = spec.width * spec.height // config.vae.patch_size**2
    working = max(activations, 4 * 4 * 6 * 2 * widest * area)
    return Estimate(
        denoise_flops=forwards * transformer_flops(config.transformer, tokens, text_tokens),
        decode_flops=decode_flops(config.vae, latent),
        weight_bytes=int(weights),
        memory_bytes=int(
            weights + working + 500_000_000
        ),  # Python, torch and transformers; nano's whole process peaks at 0.59 GB
    )


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
