"""A folder of weights to the parts of the pipeline: open, check, assign, move.

Where the parts lie is the business of sources.py, what they are that of describe.py, and how their files are read that
of formats.py. If what is there is not what was asked for, the error says so before any weight is read.

Quantized weights stay as the file keeps them in the transformer's blocks and in the text encoder (quantized.py);
everywhere else they become plain: the islands in fp32, as ever.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from broll.engine import attention, packed, quantized, weights
from broll.engine.config import ImageConfig, ModelConfig
from broll.engine.describe import describe
from broll.engine.formats import Opened
from broll.engine.image_encoder import ImageEncoder, clip_vision
from broll.engine.sources import (
    CLIP_FILE,
    T5_FILE,
    VAE_FILE,
    layout,
    need,
    sources,
    tokenizer_folder,
    weight_files,
)
from broll.engine.stored import Stored
from broll.engine.text_encoder import TextEncoder, umt5
from broll.engine.transformer import Transformer, parameter_dtype
from broll.engine.vae import VAE
from broll.errors import BadCheckpoint

__all__ = [
    "CLIP_FILE",
    "T5_FILE",
    "VAE_FILE",
    "Parts",
    "Precision",
    "assign",
    "describe",
    "fill",
    "layout",
    "load",
    "on_meta",
    "tokenizer",
    "weight_files",
]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Parts:
    """A loaded model. `digests` names what the weights are, for clips and snapshots."""

    config: ModelConfig
    text: TextEncoder
    transformer: Transformer
    vae: VAE
    image: ImageEncoder | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    digests: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Precision:
    """`linears`: the transformer's blocks. fp32 for proofs, bf16 for use; the islands are fp32 in both.

    Quantized weights are not touched by it: they are dequantized into what is computed in.
    """

    linears: torch.dtype = torch.float32
    text: torch.dtype = torch.float32
    vae: torch.dtype = torch.float32
    image: torch.dtype = torch.float32


def on_meta(build: Callable[[], M]) -> M:
    with torch.device("meta"):
        return build()


def load(
    folder: Path,
    name: str,
    *,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    digests: tuple[tuple[str, str], ...] = (),
) -> Parts:
    """Everything that `pipeline.generate` needs, on `device`."""
    precision, device = precision or Precision(), torch.device(device)
    config = describe(folder, name)
    transformer = on_meta(lambda: Transformer(config.transformer))
    transformer.compute_dtype = precision.linears
    vae, text = on_meta(lambda: VAE(config.vae)), on_meta(lambda: umt5(config.text))
    image = None if config.image is None else on_meta(lambda: clip_vision(config.image or ImageConfig()))
    low = precision.linears
    assign(folder, "transformer", transformer, lambda name: parameter_dtype(name, low))
    assign(folder, "vae", vae, lambda name: precision.vae)
    assign(folder, "text_encoder", text, lambda name: precision.text)
    if image is not None:
        assign(folder, "image_encoder", image, lambda name: precision.image)
        # Not in any checkpoint, so it is still on the meta device.
        image.embeddings.position_ids = torch.arange(image.embeddings.num_positions)[None]
    transformer = for_cpu(transformer) if device.type == "cpu" else transformer.to(device)
    return Parts(
        config=config,
        text=TextEncoder(text.to(device), tokenizer(folder), config.transformer.text_len),
        transformer=transformer.eval(),
        vae=vae.to(device).eval(),
        image=None if image is None else ImageEncoder(image.to(device)),
        device=device,
        digests=digests,
    )


def for_cpu(model: Transformer) -> Transformer:
    """A bf16 model on a CPU gets packed Linears and attention by matrix products; fp32 stays plain."""
    if model.compute_dtype == torch.bfloat16:
        if not any(isinstance(module, quantized.Quantized) for module in model.modules()):
            packed.pack(model)  # what is stored has no plain weight to pack
        model.use(attention.blocked)
    return model


def assign(folder: Path, component: str, module: nn.Module, dtype: Callable[[str], torch.dtype]) -> None:
    """Fill one component from the folder, whatever form its file has."""
    fill(need(sources(folder), component, folder).open(), module, dtype)


def fill(opened: Opened, module: nn.Module, dtype: Callable[[str], torch.dtype]) -> None:
    """Give a meta-device module what was opened."""
    stays = {"transformer": stays_in_blocks, "text_encoder": stays_in_text}.get(opened.component)

    def keep(name: str, stored: Stored) -> bool:
        return stays is not None and stays(name) and quantized.install(module, name, stored, dtype(name))

    weights.assign(module, opened.entries, source=opened.source, dtype=dtype, keep=keep)


def stays_in_blocks(name: str) -> bool:
    """The matrices that compute in low precision; the islands do not."""
    return parameter_dtype(name, torch.bfloat16) == torch.bfloat16


def stays_in_text(name: str) -> bool:
    """umT5's matrices; the table of positions is small, and read by itself."""
    return "relative_attention_bias" not in name


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    place = tokenizer_folder(folder)
    if not (place / "tokenizer.json").exists() and not (place / "spiece.model").exists():
        raise BadCheckpoint(f"{place} holds no tokenizer (tokenizer.json or spiece.model)")
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a damaged file
        raise BadCheckpoint(f"{place} cannot be read: {str(error).splitlines()[0]}") from error
