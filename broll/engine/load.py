"""A folder of published files to the parts of the pipeline.

    original     config.json, diffusion_pytorch_model*.safetensors, models_t5_*.pth, Wan2.1_VAE.pth,
                 google/umt5-xxl/, and for pictures models_clip_*.pth
    diffusers    model_index.json and a folder for each component; nano adds broll.json with its defaults

What is on disk says what it is; if that is not what was asked for, the error says so before any weight is read.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from broll.engine import attention, packed, weights
from broll.engine.config import (
    PUBLISHED,
    Defaults,
    ImageConfig,
    ModelConfig,
    Task,
    TextConfig,
    TransformerConfig,
    VAEConfig,
)
from broll.engine.image_encoder import ImageEncoder, clip_vision
from broll.engine.text_encoder import TextEncoder, umt5
from broll.engine.transformer import Transformer, parameter_dtype
from broll.engine.vae import VAE
from broll.errors import BadCheckpoint

M = TypeVar("M", bound=nn.Module)
T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"


# Component -> its file or stem, and how its names become the module's.
ORIGINAL: dict[str, tuple[str, Callable[[str], str]]] = {
    "transformer": ("diffusion_pytorch_model", lambda name: name),
    "vae": (VAE_FILE, weights.vae_from_official),
    "text_encoder": (T5_FILE, lambda name: weights.rename(name, weights.T5_FROM_OFFICIAL)),
    "image_encoder": (CLIP_FILE, lambda name: weights.rename(name, weights.CLIP_FROM_OFFICIAL)),
}
DIFFUSERS: dict[str, tuple[str, Callable[[str], str]]] = {
    "transformer": (
        "diffusion_pytorch_model",
        lambda name: weights.rename(name, weights.TRANSFORMER_FROM_DIFFUSERS),
    ),
    "vae": ("diffusion_pytorch_model", lambda name: name),
    "text_encoder": ("model", lambda name: name),
    "image_encoder": ("model", lambda name: name.removeprefix("vision_model.")),
}
# The official file also holds CLIP's text tower and its projections, which WAN does not use.
CLIP_NEEDS = re.compile(
    r"(visual\.(?!head)|vision_model\.|embeddings\.|encoder\.|pre_layrnorm|post_layernorm)"
)


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
    """`linears`: the transformer's blocks. fp32 for proofs, bf16 for use; the islands are fp32 in both."""

    linears: torch.dtype = torch.float32
    text: torch.dtype = torch.float32
    vae: torch.dtype = torch.float32
    image: torch.dtype = torch.float32


def layout(folder: Path) -> str:
    """Which published layout this is: "diffusers" or "original"."""
    if (folder / "model_index.json").exists():
        return "diffusers"
    if (folder / "config.json").exists():
        return "original"
    raise BadCheckpoint(f"{folder} is no checkpoint: it has neither model_index.json nor config.json")


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadCheckpoint(f"{path} is missing") from None
    except ValueError as error:
        raise BadCheckpoint(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path} holds no object")
    return value


def transformer_config(path: Path) -> TransformerConfig:
    """From either layout's config.json."""
    c = read_json(path)
    try:
        if "num_attention_heads" in c:
            positions = c.get("pos_embed_seq_len")
            return TransformerConfig(
                dim=c["num_attention_heads"] * c["attention_head_dim"],
                ffn_dim=c["ffn_dim"],
                num_heads=c["num_attention_heads"],
                num_layers=c["num_layers"],
                in_dim=c["in_channels"],
                out_dim=c["out_channels"],
                text_dim=c["text_dim"],
                freq_dim=c["freq_dim"],
                eps=c["eps"],
                patch_size=tuple(c["patch_size"]),
                image_dim=c.get("image_dim"),
                image_positions=positions,
            )
        with_image = c["model_type"] in ("i2v", "flf2v")
        return TransformerConfig(
            **{key: c[key] for key in ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")},
            **{key: c[key] for key in ("freq_dim", "text_len", "eps")},
            image_dim=1280 if with_image else None,
            image_positions=514 if c["model_type"] == "flf2v" else None,
        )
    except KeyError as error:
        raise BadCheckpoint(f"{path} lacks {error}: is it a WAN 2.1 transformer?") from None


def vae_config(path: Path) -> VAEConfig:
    c = read_json(path)
    if c.get("is_residual"):
        raise BadCheckpoint(f"{path} is WAN 2.2's autoencoder; this engine runs WAN 2.1")
    defaults = VAEConfig()
    return VAEConfig(
        base_dim=c.get("base_dim", defaults.base_dim),
        decoder_base_dim=c.get("decoder_base_dim"),
        z_dim=c.get("z_dim", defaults.z_dim),
        dim_mult=tuple(c.get("dim_mult", defaults.dim_mult)),
        num_res_blocks=c.get("num_res_blocks", defaults.num_res_blocks),
        temporal_downsample=tuple(c.get("temperal_downsample", defaults.temporal_downsample)),
        patch_size=c.get("patch_size") or 1,
        latents_mean=tuple(c.get("latents_mean", defaults.latents_mean)),
        latents_std=tuple(c.get("latents_std", defaults.latents_std)),
    )


def text_config(path: Path) -> TextConfig:
    c = read_json(path)
    return TextConfig(**{field.name: c[field.name] for field in dataclasses.fields(TextConfig)})


def image_config(path: Path) -> ImageConfig:
    c = read_json(path)
    c = c.get("vision_config", c) | {"num_layers": c.get("num_hidden_layers", 32)}
    renamed = c | {"num_heads": c["num_attention_heads"]}
    return ImageConfig(**{f.name: renamed[f.name] for f in dataclasses.fields(ImageConfig)})


def task_of(transformer: TransformerConfig) -> Task:
    """From the numbers alone: 36 channels and the image branch make it image-to-video."""
    if transformer.image_dim is None:
        return "t2v"
    return "flf2v" if transformer.image_positions else "i2v"


def describe(folder: Path, name: str) -> ModelConfig:
    """What is in this folder, from its small files; checked against the published model of that name."""
    kind = layout(folder)
    path = folder / "transformer" / "config.json" if kind == "diffusers" else folder / "config.json"
    found = transformer_config(path)
    published = PUBLISHED.get(name)
    if published is not None:
        if found != published.transformer:
            raise BadCheckpoint(
                f"{folder} holds {describe_numbers(found)}; {name} has "
                f"{describe_numbers(published.transformer)}: it is a checkpoint of another model"
            )
        return published
    image = folder / "image_encoder" / "config.json"
    extra = folder / "broll.json"
    known = read_json(extra) if extra.exists() else {}
    defaults: dict[str, Any] = known.get("defaults", {"size": (832, 480), "max_area": 832 * 480})
    return ModelConfig(
        name=name,
        task=task_of(found),
        transformer=found,
        vae=vae_config(folder / "vae" / "config.json") if kind == "diffusers" else VAEConfig(),
        text=text_config(folder / "text_encoder" / "config.json") if kind == "diffusers" else TextConfig(),
        image=None
        if found.image_dim is None
        else (image_config(image) if kind == "diffusers" else ImageConfig()),
        defaults=Defaults(**defaults | {"size": tuple(defaults["size"])}),
        preview=tuple(map(tuple, known["preview"])) if "preview" in known else None,
        license=known.get("license", "Apache-2.0"),
    )


def describe_numbers(c: TransformerConfig) -> str:
    task = {"t2v": "text-to-video", "i2v": "image-to-video", "flf2v": "first-last-frame-to-video"}[task_of(c)]
    return f"a {task} transformer of width {c.dim} with {c.num_layers} layers"


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
        packed.pack(model).use(attention.blocked)
    return model


def assign(folder: Path, component: str, module: nn.Module, dtype: Callable[[str], torch.dtype]) -> None:
    """Fill one component from the folder, whichever layout it has."""
    if layout(folder) == "original":
        path, to_module = ORIGINAL[component]
        files = weights.shards(folder, path) if component == "transformer" else [folder / path]
        tensors = weights.open_tensors(files)
    else:
        stem, to_module = DIFFUSERS[component]
        files = weights.shards(folder / component, stem)
        tensors = weights.open_tensors(files)
    if component == "image_encoder":
        tensors = weights.split_qkv({n: t for n, t in tensors.items() if CLIP_NEEDS.match(n)})
    weights.assign(module, tensors, source=files[0], to_module=to_module, dtype=dtype)


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    place = folder / ("google/umt5-xxl" if layout(folder) == "original" else "tokenizer")
    if not (place / "tokenizer.json").exists() and not (place / "spiece.model").exists():
        raise BadCheckpoint(f"{place} holds no tokenizer (tokenizer.json or spiece.model)")
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a damaged file
        raise BadCheckpoint(f"{place} cannot be read: {str(error).splitlines()[0]}") from error
