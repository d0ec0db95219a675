"""Tiny checkpoints in every form that WAN 2.1's weights are passed around in, from one set of random numbers.

The widths are multiples of 256, so that every kind of block fits; the names and shapes are those of the real files.
A "form" here is what a transformer's file is written as: see TRANSFORMER_FORMS.
"""

import dataclasses
import functools
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from torch import Tensor

from broll.engine import vace, weights
from broll.engine.config import ImageConfig, TextConfig, TransformerConfig, VAEConfig
from broll.engine.image_encoder import clip_vision
from broll.engine.text_encoder import umt5
from broll.engine.transformer import Transformer, parameter_dtype
from broll.engine.vae import VAE
from tests import checkpoints
from tests.checkpoints import built, state
from tests.parity.official_names import vae_names

NUMBERS = TransformerConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=256, freq_dim=32)
TEXT = TextConfig(vocab_size=99, d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4)
VAE_NUMBERS = VAEConfig(base_dim=4)
IMAGE = ImageConfig(
    hidden_size=80, intermediate_size=160, num_layers=2, num_heads=1, image_size=28, patch_size=14
)
PREFIX = "model.diffusion_model."
LEGACY = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
K_KINDS = ("Q6_K", "Q5_K", "Q4_K")
FP8 = torch.float8_e4m3fn


def numbers(task: str = "t2v") -> TransformerConfig:
    if task == "t2v":
        return NUMBERS
    if task == "vace":
        return dataclasses.replace(NUMBERS, vace_layers=(0,), vace_in_dim=96)
    positions = 2 * checkpoints.IMAGE_TOKENS if task == "flf2v" else None
    return dataclasses.replace(NUMBERS, in_dim=36, image_dim=80, image_positions=positions)


@functools.cache
def transformer(task: str = "t2v") -> Transformer:
    return built(lambda: vace.transformer(numbers(task)))


@functools.cache
def text_encoder() -> torch.nn.Module:
    return built(lambda: umt5(TEXT), seed=2)


def text_state() -> dict[str, Tensor]:
    tensors = state(text_encoder())
    tensors.pop("encoder.embed_tokens.weight", None)
    return tensors


@functools.cache
def vae() -> VAE:
    return built(lambda: VAE(VAE_NUMBERS), seed=1)


def official_vae() -> dict[str, Tensor]:
    own = state(vae())
    return {name: own[weights.vae_from_official(name)] for name in vae_names()}


@functools.cache
def image_encoder() -> torch.nn.Module:
    return built(lambda: clip_vision(IMAGE), seed=3)


def low(name: str) -> bool:
    """Whether converters quantize it: the matrices of the blocks."""
    return name.endswith(".weight") and parameter_dtype(name, torch.bfloat16) == torch.bfloat16


def renamed_back(name: str, table: weights.Names, candidates: list[str]) -> str:
    """The one candidate that the table maps to this name."""
    return next(c for c in candidates if weights.rename(c, table) == name)


def llama_names() -> list[str]:
    inner = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_o", "attn_rel_b")
    inner += ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    layers = [f"enc.blk.{i}.{name}.weight" for i in range(TEXT.num_layers) for name in inner]
    return ["token_embd.weight", "enc.output_norm.weight", *layers]


def official_text_names() -> list[str]:
    inner = ("norm1", "norm2", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding")
    inner += ("ffn.gate.0", "ffn.fc1", "ffn.fc2")
    layers = [f"blocks.{i}.{name}.weight" for i in range(TEXT.num_layers) for name in inner]
    return ["token_embedding.weight", "norm.weight", *layers]


def under(tensors: dict[str, Tensor], table: weights.Names, names: list[str]) -> dict[str, Tensor]:
    """The tensors under names that the table maps to their own."""
    return {name: tensors[weights.rename(name, table)].clone() for name in names}


# --- fp8 --------------------------------------------------------------------------------------------------


def to_fp8(weight: Tensor, parts: int | None) -> tuple[Tensor, Tensor]:
    """Bytes and scale. parts: None for one scale of the matrix, else so many scales a row."""
    rows = weight.shape[0]
    cut = weight.reshape(1, 1, -1) if parts is None else weight.reshape(rows, parts, -1)
    scale = cut.abs().amax(-1, keepdim=True) / torch.finfo(FP8).max
    return (cut / scale).to(FP8).reshape(weight.shape), scale


def fp8_plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `.to(float8)` makes it: the matrices of the blocks, and their biases."""
    return {n: t.to(FP8) if parameter_dtype(n, FP8) == FP8 else t.half() for n, t in tensors.items()}


def fp8_scaled(tensors: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    """how: scalar, one (shape [1]), rows ([out, 1]), parts ([out, 4, 1]), comfy_quant, lightx2v."""
    parts = {"rows": 1, "lightx2v": 1, "parts": 4}.get(how)
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not low(name) or tensor.dim() != 2:
            out[name] = tensor.clone()
            continue
        layer = name.removesuffix(".weight")
        out[name], scale = to_fp8(tensor, parts)
        if how in ("comfy_quant", "lightx2v"):
            out[f"{layer}.weight_scale"] = scale.reshape(()) if how == "comfy_quant" else scale[:, 0]
        else:
            shape = {"scalar": (), "one": (1,), "rows": (-1, 1), "parts": (-1, 4, 1)}[how]
            out[f"{layer}.scale_weight"] = scale.reshape(shape)
            out[f"{layer}.scale_input"] = torch.ones(())
        if how == "comfy_quant":
            said = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
            out[f"{layer}.comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    if how in ("scalar", "one", "rows", "parts"):
        out["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    return out


# --- GGUF -------------------------------------------------------------------------------------------------


def to_blocks(weight: Tensor, kind: str) -> np.ndarray:
    """Rows of bytes. The library quantizes the simple kinds; the K kinds are made here, plainly."""
    array = weight.float().numpy()
    if kind not in K_KINDS:
        return gguf.quants.quantize(array, Kind[kind])
    blocks = {"Q6_K": q6_k, "Q5_K": q5_k, "Q4_K": q4_k}[kind](array.reshape(-1, 256).astype(np.float32))
    return blocks.reshape(array.shape[0], -1)


def half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).reshape(-1, 1).view(np.uint8)


def q6_k(x: np.ndarray) -> np.ndarray:
    parts = x.reshape(-1, 16, 16)
    scales = np.abs(parts).max(-1) / 31
    d = scales.max(-1, keepdims=True) / 127
    d = np.where(d == 0, 1, d).astype(np.float16).astype(np.float32)
    s = np.clip(np.round(scales / d), 1, 127)
    q = np.clip(np.round(parts / (d * s)[..., None]), -32, 31).astype(np.int8) + 32
    q = q.astype(np.uint8).reshape(-1, 2, 4, 32)  # half, quarter, place
    low = (q & 15).reshape(-1, 2, 2, 64)
    ql = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    qh = np.bitwise_or.reduce((q >> 4) << shifts, axis=2).reshape(-1, 64)
    return np.concatenate([ql, qh, s.astype(np.int8).view(np.uint8), half(d)], axis=1)


def pack_scales(s: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Eight scales and eight offsets of six bits in twelve bytes."""
    first = (s[:, :4] & 63) | ((s[:, 4:] >> 4) << 6)
    second = (m[:, :4] & 63) | ((m[:, 4:] >> 4) << 6)
    return np.concatenate([first, second, (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)], axis=1).astype(np.uint8)


def k_parts(x: np.ndarray, most: int) -> tuple[np.ndarray, ...]:
    """d, dmin, packed scales and q of Q4_K (most = 15) and Q5_K (31)."""
    parts = x.reshape(-1, 8, 32)
    lowest = np.minimum(parts.min(-1), 0)
    scales, offsets = (parts.max(-1) - lowest) / most, -lowest
    d = (scales.max(-1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    dmin = (offsets.max(-1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    s = np.clip(np.round(scales / np.where(d == 0, 1, d)), 1, 63).astype(np.uint8)
    m = np.clip(np.round(offsets / np.where(dmin == 0, 1, dmin)), 0, 63).astype(np.uint8)
    q = np.round((parts + (dmin * m)[..., None]) / np.where(d == 0, 1, d * s)[..., None])
    return half(d), half(dmin), pack_scales(s, m), np.clip(q, 0, most).astype(np.uint8)


def pack_nibbles(q: np.ndarray) -> np.ndarray:
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)


def q4_k(x: np.ndarray) -> np.ndarray:
    d, dmin, scales, q = k_parts(x, 15)
    return np.concatenate([d, dmin, scales, pack_nibbles(q)], axis=1)


def q5_k(x: np.ndarray) -> np.ndarray:
    d, dmin, scales, q = k_parts(x, 31)
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    high = np.bitwise_or.reduce((q >> 4) << shifts, axis=1)
    return np.concatenate([d, dmin, scales, high, pack_nibbles(q)], axis=1)


def write_gguf(
    path: Path, tensors: dict[str, Tensor], kind: str, *, architecture: str = "wan", quantize=low
) -> Path:
    """As the converters do: matrices of the blocks in `kind`, vectors in F32; more than four axes flattened."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, tensor in tensors.items():
        chosen = kind if quantize(name) and tensor.dim() == 2 else "F32"
        if tensor.dim() > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
        flat = tensor.flatten(1) if tensor.dim() > 4 else tensor
        if chosen in ("F32", "F16"):
            writer.add_tensor(name, flat.to(torch.float16 if chosen == "F16" else torch.float32).numpy())
        else:
            writer.add_tensor(name, to_blocks(flat, chosen), raw_dtype=Kind[chosen])
    if architecture == "t5encoder":
        writer.add_array("tokenizer.ggml.tokens", [f"word {i}" for i in range(TEXT.vocab_size)])
        writer.add_array("tokenizer.ggml.scores", [0.5] * TEXT.vocab_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- files ------------------------------------------------------------------------------------------------

FP8_FORMS = ("fp8-scalar", "fp8-one", "fp8-rows", "fp8-parts", "fp8-comfy_quant", "fp8-lightx2v")
LOSSLESS = ("official", "single", "prefixed", "diffusers", "shards", "gguf-F32")
TRANSFORMER_FORMS = (
    *LOSSLESS, "f16", "bf16", "fp8", *FP8_FORMS, "gguf-F16", "gguf-BF16",
    *(f"gguf-{kind}" for kind in (*LEGACY, *K_KINDS)),
)  # fmt: skip


def transformer_file(folder: Path, form: str, task: str = "t2v") -> Path:
    """A file of this form; a folder for shards."""
    tensors = state(transformer(task))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"wan2.1_{task}_{form}.safetensors"
    kind, _, how = form.partition("-")
    if kind == "gguf":
        return write_gguf(path.with_suffix(".gguf"), tensors, how)
    if kind == "shards":
        return write_shards(folder / form, tensors)
    if kind == "fp8":
        tensors = fp8_scaled(tensors, how) if how else fp8_plain(tensors)
    elif kind in ("f16", "bf16"):
        tensors = {n: t.to(torch.float16 if kind == "f16" else torch.bfloat16) for n, t in tensors.items()}
    elif kind == "prefixed":
        tensors = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
    elif kind == "diffusers":
        names = weights.TRANSFORMER_TO_DIFFUSERS
        tensors = {weights.rename(name, names): tensor for name, tensor in tensors.items()}
    save_file(tensors, path)
    return path


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names, files = sorted(tensors), ("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors")
    own = {files[0]: names[::2], files[1]: names[1::2]}
    for file, part in own.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in own.items() for name in part}}
    checkpoints.write_json(folder / "diffusion_pytorch_model.safetensors.index.json", index)
    return folder


TEXT_FORMS = ("official-pth", "official", "transformers", "fp16", "fp8-scaled", "llama-F16", "llama-Q8_0")


def text_file(folder: Path, form: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors, path = text_state(), folder / f"umt5_xxl_{form}.safetensors"
    if form.startswith("official"):
        tensors = under(tensors, weights.T5_FROM_OFFICIAL, official_text_names())
        if form == "official-pth":
            torch.save(tensors, path.with_suffix(".pth"))
            return path.with_suffix(".pth")
    elif form.startswith("llama"):
        tensors = under(tensors, weights.T5_FROM_LLAMA, llama_names())
        return write_gguf(
            path.with_suffix(".gguf"), tensors, form.partition("-")[2], architecture="t5encoder",
            quantize=lambda name: "norm" not in name and "rel_b" not in name,
        )  # fmt: skip
    elif form == "fp16":
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    elif form == "fp8-scaled":
        tensors = scaled_text(tensors)
    save_file(tensors, path)
    return path


def scaled_text(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ComfyUI has it: Linears in fp8, a scalar for each, the tokenizer in the file."""
    out = {"scaled_fp8": torch.zeros(0, dtype=FP8), "spiece_model": torch.zeros(9, dtype=torch.uint8)}
    for name, tensor in tensors.items():
        if ("SelfAttention." in name or "DenseReluDense" in name) and "bias" not in name:
            out[name], scale = to_fp8(tensor, None)
            out[f"{name.removesuffix('.weight')}.scale_weight"] = scale.reshape(())
        else:
            out[name] = tensor.half()
    return out


def comfy_folder(folder: Path, form: str = "single", task: str = "t2v", text: str = "fp16") -> Path:
    """ComfyUI's folders, and a model.toml that puts them together."""
    file = transformer_file(folder / "diffusion_models", form, task)
    words = text_file(folder / "text_encoders", text)
    for name in ("vae", "clip_vision"):
        (folder / name).mkdir(exist_ok=True)
    save_file(official_vae(), folder / "vae" / "wan_2.1_vae.safetensors")
    clip = {f"vision_model.{name}": tensor for name, tensor in state(image_encoder()).items()}
    clip["visual_projection.weight"] = torch.zeros(4, 80)
    clip["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(clip, folder / "clip_vision" / "clip_vision_h.safetensors")
    checkpoints.tokenizer().save_pretrained(folder / "tokenizer")
    kind = "folder" if file.is_dir() else "file"
    lines = ["[transformer]", f'{kind} = "diffusion_models/{file.name}"']
    lines += ["[text_encoder]", f'file = "text_encoders/{words.name}"']
    lines += ["[vae]", 'file = "vae/wan_2.1_vae.safetensors"']
    lines += ["[tokenizer]", 'folder = "tokenizer"']
    if task in ("i2v", "flf2v"):
        lines += ["[image_encoder]", 'file = "clip_vision/clip_vision_h.safetensors"']
    (folder / "model.toml").write_text("\n".join(lines) + "\n")
    return folder
