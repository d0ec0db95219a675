"""A folder of weights to the parts of the pipeline: open, check, assign, move.

Where the parts lie is the business of sources.py, what they are that of describe.py, and how their files are read that
of formats.py. If what is there is not what was asked for, the error says so before any weight is read.

Quantized weights stay as the file keeps them in the transformer's blocks and in the text encoder (quantized.py);
everywhere else they become plain: the islands in fp32, as ever.
"""

import gc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from broll.engine import (
    attention,
    compiled,
    fp8,
    int8,
    kernels,
    lora,
    offload,
    packed,
    parallel_text,
    parallel_vae,
    quantized,
    vace,
    weights,
)
from broll.engine.batching import Meeting
from broll.engine.compiled import Compiler
from broll.engine.config import ImageConfig, ModelConfig
from broll.engine.describe import describe
from broll.engine.formats import Opened
from broll.engine.image_encoder import ImageEncoder, clip_vision
from broll.engine.int8 import Int8Linear
from broll.engine.lora import Entry
from broll.engine.mesh import Team
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
from broll.engine.text_encoder import (
    Kept,
    KeptText,
    Known,
    TextEncoder,
    Tokenizer,
    Words,
    recalled,
    remembered,
    umt5,
)
from broll.engine.tiny_decoder import TinyDecoder
from broll.engine.transformer import Transformer, parameter_dtype
from broll.engine.vae import DECODES, VAE, channels_last
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
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "spiece.model", "special_tokens_map.json", "added_tokens.json",
    "config.json",
)  # fmt: skip
Elsewhere = offload.Away | parallel_text.Share  # what is not read, and stays where it is


@dataclass(frozen=True)
class Parts:
    """A loaded model. `digests` names what the weights are, for clips and snapshots; `levers` what was switched on
    so that it fits, which changes no clip.
    """

    config: ModelConfig
    text: Words
    transformer: Transformer
    vae: VAE
    image: ImageEncoder | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    digests: tuple[tuple[str, str], ...] = ()
    levers: tuple[str, ...] = ()
    compiler: Compiler = field(default_factory=Compiler)
    tiny: TinyDecoder | None = None  # for previews
    meeting: Meeting | None = None  # where its clips are made with others
    team: Team | None = None  # the processes that make a clip together


@dataclass(frozen=True)
class Precision:
    """`linears`: the transformer's blocks. fp32 for proofs, bf16 for use; the islands are fp32 in both.

    Quantized weights are not touched by it: they are dequantized into what is computed in. `native_fp8`: those of the
    blocks that are fp8 are multiplied as they are, where the device can (fp8.py). `halves`: matrices that the file has
    in 16 bits stay so and are cast at every call (quantized.py), which changes no number; but not where a LoRA is
    merged into them, or where they are streamed. `int8`: plain matrices of the blocks are rounded (int8.py).
    `decoder`: the autoencoder's, whose encoder is in `vae`; None: the same.
    """

    linears: torch.dtype = torch.float32
    text: torch.dtype = torch.float32
    vae: torch.dtype = torch.float32
    image: torch.dtype = torch.float32
    native_fp8: bool = False
    halves: bool = False
    int8: bool = False
    decoder: torch.dtype | None = None

    @property
    def decodes(self) -> torch.dtype:
        return self.decoder or self.vae

    def of_vae(self, name: str) -> torch.dtype:
        """What a parameter of the autoencoder is kept in."""
        return self.decodes if name.startswith(DECODES) else self.vae


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
    text_first: bool = False,
    kept: Kept | None = None,
    streamed: bool = False,
    pinnable: int = 0,
    attention: str = kernels.AUTO,
    compile: str = compiled.AUTO,
    team: Team | None = None,
) -> Parts:
    """Everything that `pipeline.generate` needs, on `device`; with the LoRAs of `merge` in its weights.

    `attention`: a name of attention.BACKENDS, checked in the first step of every clip; or the best kernel here.
    `compile`: on, off, or auto, for those clips that it pays for (fused.py).

    `prompts`: all that will be asked for, if that is known. If `kept` has their features, the text encoder is not read;
    `text_first`: else they are encoded, and it is let go, before anything else is read. `streamed`: two blocks of the
    transformer are on the device at a time, and `pinnable` bytes of main memory may hold the others. `team`: the
    processes that all load it, and then make clips together.
    """
    if merge and streamed:
        raise BadOption("LoRAs cannot be merged into blocks that are streamed; they can run beside")
    if streamed and precision is not None and precision.int8:
        raise BadOption(
            "int8 and block streaming exclude each other: blocks are streamed as their file has them"
        )
    precision, device = precision or Precision(), torch.device(device)
    compiler = Compiler(compiled.chosen(compile, device))
    config = describe(folder, name)
    known = known_text(folder, config, precision, device, digests, None if team else kept)
    words = text(folder, config, device, precision, prompts, known, first=text_first, team=team)
    if text_first:
        gc.collect()  # transformers' modules refer to themselves
    away = offload.Away() if streamed else None
    transformer = blocks(folder, config, precision, merge, away)
    vae = on_meta(lambda: VAE(config.vae))
    assign(folder, "vae", vae, precision.of_vae)
    rounded = int8.use(transformer, device) if precision.int8 else 0
    transformer = offload.move(transformer, device)
    if device.type == "cpu":
        transformer = for_cpu(transformer)
    if away is not None:
        offload.stream(transformer, away, device, pinnable)
    native = fp8.use(transformer) if precision.native_fp8 else 0
    kernels.use(transformer, attention, device)
    return Parts(
        config=config,
        text=words,
        transformer=transformer.eval(),
        vae=in_strips(on_device(vae, device).eval(), team),
        image=None if config.image is None else eyes(folder, config.image, device, precision.image),
        device=device,
        digests=digests + int8.rounding(rounded, device) + fp8.multiplied(native),
        levers=("text_first",) * text_first + ("block_streaming",) * streamed,
        compiler=compiler,
        team=team,
    )


def blocks(
    folder: Path, config: ModelConfig, precision: Precision, merge: Sequence[Entry], away: offload.Away | None
) -> Transformer:
    """The transformer as its file has it, with LoRAs in it or without."""
    low, halves = precision.linears, precision.halves and not merge
    model = on_meta(lambda: vace.transformer(config.transformer))
    model.compute_dtype = low
    assign(folder, "transformer", model, lambda name: parameter_dtype(name, low), away, halves=halves)
    if merge:
        lora.merge(model, merge)
    return model


def eyes(folder: Path, config: ImageConfig, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    model = on_meta(lambda: clip_vision(config))
    assign(folder, "image_encoder", model, lambda name: dtype)
    # Not in any checkpoint, so it is still on the meta device.
    model.embeddings.position_ids = torch.arange(model.embeddings.num_positions)[None]
    return ImageEncoder(model.to(device))


def in_strips(vae: VAE, team: Team | None) -> VAE:
    return vae if team is None else parallel_vae.use(vae, team.all)


def on_device(vae: VAE, device: torch.device) -> VAE:
    """On a GPU convolutions are fastest with channels last (docs/engine/vae.md)."""
    return channels_last(vae.to(device)) if device.type == "cuda" else vae.to(device)


def text(
    folder: Path, config: ModelConfig, device: torch.device, how: Precision, prompts: Sequence[str],
    known: Known | None, *, first: bool, team: Team | None = None,
) -> Words:  # fmt: skip
    """Words to features: by an encoder, or without one where these prompts are all and their features are there."""
    found = recalled(known, prompts, device) if known is not None and prompts else None
    if found is not None:
        return found
    model = on_meta(lambda: umt5(config.text))
    share = None if team is None else parallel_text.Share(config.text, team.all)
    assign(folder, "text_encoder", model, lambda name: how.text, share, halves=how.halves)
    encoder = TextEncoder(model.to(device), tokenizer(folder), config.transformer.text_len)
    asked = encoder if known is None else KeptText(encoder, known)
    return remembered(asked, prompts) if first else asked


def known_text(
    folder: Path, config: ModelConfig, how: Precision, device: torch.device,
    digests: tuple[tuple[str, str], ...], kept: Kept | None,
) -> Known | None:  # fmt: skip
    """What is kept of this encoder, as this device and these libraries compute it; None if nobody says which it is, or
    of a team, whose members must all compute, or none.
    """
    files = [path.as_posix() for path in weight_files(folder).get("text_encoder", [])]
    own = [digest for name, digest in digests if any(file.endswith(name) for file in files)]
    facts = [own, config.text, config.transformer.text_len, how.text, how.halves]
    facts += [device.type, torch.get_float32_matmul_precision(), torch.__version__]
    facts += [version(package) for package in ("transformers", "tokenizers", "ftfy")]
    places = [tokenizer_folder(folder) / name for name in TOKENIZER_FILES]
    facts += [hashlib.sha256(place.read_bytes()).hexdigest() for place in places if place.is_file()]
    return Known(kept, " ".join(map(str, facts))) if own and kept is not None else None


def for_cpu(model: Transformer) -> Transformer:
    """A bf16 model on a CPU gets packed Linears; and the kernel that is best there, unchecked."""
    taken = any(isinstance(module, quantized.Quantized | Int8Linear) for module in model.modules())
    if model.compute_dtype == torch.bfloat16 and not taken:  # what is stored has no plain weight to pack
        packed.pack(model)
    model.use(attention.BACKENDS[kernels.best(kernels.Here("cpu", model.compute_dtype))].attend)
    return model


def assign(
    folder: Path, component: str, module: nn.Module, dtype: Callable[[str], torch.dtype],
    away: Elsewhere | None = None, *, halves: bool = False,
) -> None:  # fmt: skip
    """Fill one component from the folder, whatever form its file has."""
    fill(need(sources(folder), component, folder).open(), module, dtype, away, halves=halves)


def fill(
    opened: Opened, module: nn.Module, dtype: Callable[[str], torch.dtype], away: Elsewhere | None = None,
    *, halves: bool = False,
) -> None:  # fmt: skip
    """Give a meta-device module what was opened; what is `away` stays there. `halves`: see Precision."""
    stays, desk = STAYS.get(opened.component), quantized.Desk()

    def keep(name: str, stored: Stored) -> bool:
        return (
            stays is not None and stays(name) and quantized.install(module, name, stored, dtype(name), desk)
        )

    def stays_half(name: str) -> bool:
        return halves and stays is not None and stays(name)

    how: dict[str, Any] = {"source": opened.source, "dtype": dtype, "keep": keep, "halves": stays_half}
    if away is None:
        weights.assign(module, opened.entries, **how)
        return
    weights.assign(module, opened.entries, put_off=away, **how)
    away.settle(module, opened.source, dtype)


def stays_in_blocks(name: str) -> bool:
    """The matrices that compute in low precision; the islands do not."""
    return parameter_dtype(name, torch.bfloat16) == torch.bfloat16


def stays_in_text(name: str) -> bool:
    """umT5's matrices; the table of positions is small, and read by itself."""
    return "relative_attention_bias" not in name


STAYS: dict[str, Callable[[str], bool]] = {"transformer": stays_in_blocks, "text_encoder": stays_in_text}


def tokenizer(folder: Path) -> Tokenizer:
    place = tokenizer_folder(folder)
    if not (place / "tokenizer.json").exists() and not (place / "spiece.model").exists():
        raise BadCheckpoint(f"{place} holds no tokenizer (tokenizer.json or spiece.model)")
    from transformers import AutoTokenizer  # noqa: PLC0415  only for who reads prompts

    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a damaged file
        raise BadCheckpoint(f"{place} cannot be read: {str(error).splitlines()[0]}") from error
