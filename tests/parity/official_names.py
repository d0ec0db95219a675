"""Tensor names of the official .pth files, written down from wan/modules/{vae,t5,clip}.py."""

from collections.abc import Iterator


def _both(prefix: str) -> Iterator[str]:
    yield f"{prefix}.weight"
    yield f"{prefix}.bias"


def _residual(prefix: str, *, shortcut: bool) -> Iterator[str]:
    for norm in (0, 3):
        yield f"{prefix}.residual.{norm}.gamma"
    for conv in (2, 6):
        yield from _both(f"{prefix}.residual.{conv}")
    if shortcut:
        yield from _both(f"{prefix}.shortcut")


def _ends_and_middle(part: str) -> Iterator[str]:
    yield from _both(f"{part}.conv1")
    yield from _residual(f"{part}.middle.0", shortcut=False)
    yield f"{part}.middle.1.norm.gamma"
    yield from _both(f"{part}.middle.1.to_qkv")
    yield from _both(f"{part}.middle.1.proj")
    yield from _residual(f"{part}.middle.2", shortcut=False)
    yield f"{part}.head.0.gamma"
    yield from _both(f"{part}.head.2")


def vae_names() -> Iterator[str]:
    """Wan2.1_VAE.pth: dim 96, dim_mult 1 2 4 4, two residual blocks a level."""
    yield from _both("conv1")
    yield from _both("conv2")
    yield from _ends_and_middle("encoder")
    for place in (0, 1, 3, 4, 6, 7, 9, 10):
        yield from _residual(f"encoder.downsamples.{place}", shortcut=place in (3, 6))
    for place, time in ((2, False), (5, True), (8, True)):
        yield from _both(f"encoder.downsamples.{place}.resample.1")
        if time:
            yield from _both(f"encoder.downsamples.{place}.time_conv")
    yield from _ends_and_middle("decoder")
    for place in (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14):
        yield from _residual(f"decoder.upsamples.{place}", shortcut=place == 4)
    for place, time in ((3, True), (7, True), (11, False)):
        yield from _both(f"decoder.upsamples.{place}.resample.1")
        if time:
            yield from _both(f"decoder.upsamples.{place}.time_conv")


def t5_names() -> Iterator[str]:
    """models_t5_umt5-xxl-enc-bf16.pth: 24 layers, no biases, a position table in each."""
    yield "token_embedding.weight"
    yield "norm.weight"
    for i in range(24):
        for inner in ("norm1", "norm2", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding"):
            yield f"blocks.{i}.{inner}.weight"
        for inner in ("ffn.gate.0", "ffn.fc1", "ffn.fc2"):
            yield f"blocks.{i}.{inner}.weight"


def clip_names() -> Iterator[str]:
    """The visual tower of models_clip_...pth, without its projection head: 32 layers."""
    yield "visual.cls_embedding"
    yield "visual.pos_embedding"
    yield "visual.patch_embedding.weight"
    yield from _both("visual.pre_norm")
    yield from _both("visual.post_norm")
    for i in range(32):
        for inner in ("norm1", "norm2", "attn.to_qkv", "attn.proj", "mlp.0", "mlp.2"):
            yield from _both(f"visual.transformer.{i}.{inner}")
