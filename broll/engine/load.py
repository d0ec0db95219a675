"""A folder of weights to the parts of the pipeline: open, check, assign, move.

Where the parts lie is the business of sources.py, what they are that of describe.py, and how their files are read that
of formats.py. If what is there is not what was asked for, the error says so before any weight is read.

Quantized weights stay as the file keeps them in the transformer's blocks and in the text encoder (quantized.py);
everywhere else they become plain: the islands in fp32, as ever.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from broll.engine import attention, compiled, fp8, kernels, lora, offload, packed, quantized, vace, weights
from broll.engine.compiled import Compiler
from broll.engine.config import ImageConfig, ModelConfig
from broll.engine.describe import describe
from broll.engine.formats import Opened
from broll.engine.image_encoder import ImageEncoder, clip_vision
from broll.engine.lora import Entry
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
from broll.engine.text_encoder import RememberedText, TextEncoder, umt5
from broll.engine.transformer import Transformer, parameter_dtype
from broll.engine.vae import VAE
from broll.errors import BadCheckpoint, BadOption

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
    """A loaded model. `digests` names what the weights are, for clips and snapshots; `levers` what was switched on
    so that it fits, which changes no clip.
    """

    config: ModelConfig
    text: TextEncoder | RememberedText
    transformer: Transformer
    vae: VAE
    image: ImageEncoder | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    digests: tuple[tuple[str, str], ...] = ()
    levers: tuple[str, ...] = ()
    compiler: Compiler = field(default_factory=Compiler)


@dataclass(frozen=True)
class Precision:
    """`linears`: the transformer's blocks. fp32 for proofs, bf16 for use; the islands are fp32 in both.

    Quantized weights are not touched by it: they are dequantized into what is computed in. `native_fp8`: those of the
    blocks that are fp8 are multiplied as they are, where the device can (fp8.py).
    """

    linears: torch.dtype = torch.float32
    text: torch.dtype = torch.float32
    vae: torch.dtype = torch.float32
    image: torch.dtype = torch.float32
    native_fp8: bool = False


class Unset(TorchFunctionMode):
    """Parameters get no first values: the file has them. It takes a third off building a model on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" and "tensor" in given:
            return given["tensor"]
        return func(*args, **given)


def on_meta(build: Callable[[], M]) -> M:
    with torch.device("meta"), Unset():
        return build()


def load(
    folder: Path,
    name: str,
    *,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    digests: tuple[tuple[str, str], ...] = (),
    merge: Sequence[Entry] = (),
    prompts: Sequence[str] = (),
    streamed: bool = False,
    pinnable: int = 0,
    attention: str = kernels.AUTO,
    compile: str = compiled.AUTO,
) -> Parts:
    """Everything that `pipeline.generate` needs, on `device`; with the LoRAs of `merge` in its weights.

    `attention`: a name of attention.BACKENDS, checked in the first step of every clip; or the best kernel here.
    `compile`: on, off, or auto, for those clips that it pays for (fused.py).

    With `prompts`, these are encoded first and the text encoder is let go before anything else is read. `streamed`: two
    blocks of the transformer are on the device at a time, and `pinnable` bytes of main memory may hold the others.
    """
    if merge and streamed:
        raise BadOption("LoRAs cannot be merged into blocks that are streamed; they can run beside")
    precision, device = precision or Precision(), torch.device(device)
    compiler = Compiler(compiled.chosen(compile, device))
    config = describe(folder, name)
    text = text_encoder(folder, config, device, precision.text)
    words = RememberedText(text, prompts) if prompts else text
    del text
    if prompts:
        gc.collect()  # transformers' modules refer to themselves
    transformer = on_meta(lambda: vace.transformer(config.transformer))
    transformer.compute_dtype = precision.linears
    vae = on_meta(lambda: VAE(config.vae))
    image = None if config.image is None else on_meta(lambda: clip_vision(config.image or ImageConfig()))
    low = precision.linears
    away = offload.Away() if streamed else None
    assign(folder, "transformer", transformer, lambda name: parameter_dtype(name, low), away)
    assign(folder, "vae", vae, lambda name: precision.vae)
    if image is not None:
        assign(folder, "image_encoder", image, lambda name: precision.image)
        # Not in any checkpoint, so it is still on the meta device.
        image.embeddings.position_ids = torch.arange(image.embeddings.num_positions)[None]
    if merge:
        lora.merge(transformer, merge)
    transformer = for_cpu(transformer) if device.type == "cpu" else offload.move(transformer, device)
    if away is not None:
        offload.stream(transformer, away, device, pinnable)
    if precision.native_fp8:
        fp8.use(transformer)
    kernels.use(transformer, attention, device)
    return Parts(
        config=config,
        text=words,
        transformer=transformer.eval(),
        vae=vae.to(device).eval(),
        image=None if image is None else ImageEncoder(image.to(device)),
        device=device,
        digests=digests,
        levers=("text_first",) * bool(prompts) + ("block_streaming",) * streamed,
        compiler=compiler,
    )


def text_encoder(folder: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    model = on_meta(lambda: umt5(config.text))
    assign(folder, "text_encoder", model, lambda name: dtype)
    return TextEncoder(model.to(device), tokenizer(folder), config.transformer.text_len)


def for_cpu(model: Transformer) -> Transformer:
    """A bf16 model on a CPU gets packed Linears; and the kernel that is best there, unchecked."""
    stored = any(isinstance(module, quantized.Quantized) for module in model.modules())
    if model.compute_dtype == torch.bfloat16 and not stored:  # what is stored has no plain weight to pack
        packed.pack(model)
    model.use(attention.BACKENDS[kernels.best(kernels.Here("cpu", model.compute_dtype))].attend)
    return model


def assign(
    folder: Path, component: str, module: nn.Module, dtype: Callable[[str], torch.dtype],
    away: offload.Away | None = None,
) -> None:  # fmt: skip
    """Fill one component from the folder, whatever form its file has."""
    fill(need(sources(folder), component, folder).open(), module, dtype, away)


def fill(
    opened: Opened, module: nn.Module, dtype: Callable[[str], torch.dtype], away: offload.Away | None = None
) -> None:
    """Give a meta-device module what was opened; what is `away` stays there."""
    stays = {"transformer": stays_in_blocks, "text_encoder": stays_in_text}.get(opened.component)

    def keep(name: str, stored: Stored) -> bool:
        return stays is not None and stays(name) and quantized.install(module, name, stored, dtype(name))

    if away is None:
        weights.assign(module, opened.entries, source=opened.source, dtype=dtype, keep=keep)
        return
    weights.assign(module, opened.entries, source=opened.source, dtype=dtype, keep=keep, put_off=away)
    away.settle(module, opened.source, dtype)


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
