"""Tiny checkpoints with random weights, in the layouts that WAN 2.1 is published in.

diffusers_folder    a whole model that `engine.load` reads: a few hundred kilobytes, the same bits every time
official_names      the transformer's state under its official names; diffusers_names under diffusers' names
original_folder     the original layout's transformer and names of files; umT5, VAE and CLIP only by request,
                    because engine.load gives them the full published sizes in this layout
"""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from broll.engine import vace, weights
from broll.engine.config import ImageConfig, TextConfig, TransformerConfig, VAEConfig
from broll.engine.image_encoder import clip_vision
from broll.engine.load import CLIP_FILE, T5_FILE, VAE_FILE
from broll.engine.text_encoder import umt5
from broll.engine.vae import VAE

DEFAULTS = {
    "size": [64, 32], "max_area": 2048, "steps": 3, "frames": 9, "guidance": 4.0, "shift": 3.0,
}  # fmt: skip
VAE_NUMBERS = VAEConfig(base_dim=4, num_res_blocks=1, patch_size=2)
PLAIN_VAE_NUMBERS = VAEConfig(base_dim=4, num_res_blocks=1)  # diffusers' VACE pipeline takes no other
TEXT_NUMBERS = TextConfig(vocab_size=99, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
IMAGE_NUMBERS = ImageConfig(
    hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, image_size=28, patch_size=14
)
IMAGE_TOKENS = 5  # 2 x 2 patches and the class


def transformer_numbers(task: str = "t2v") -> TransformerConfig:
    small = TransformerConfig(dim=24, ffn_dim=48, num_heads=2, num_layers=2, text_dim=16, freq_dim=16)
    if task in ("t2v", "ti2v"):
        return small
    if task == "vace":
        return dataclasses.replace(small, vace_layers=(0,), vace_in_dim=2 * 16 + 64)
    positions = 2 * IMAGE_TOKENS if task == "flf2v" else None
    return dataclasses.replace(small, in_dim=36, image_dim=16, image_positions=positions)


def built(make, seed: int = 0) -> nn.Module:
    """A module with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in module.state_dict().items()}


def official_names(task: str = "t2v") -> dict[str, Tensor]:
    return state(built(lambda: vace.transformer(transformer_numbers(task))))


def diffusers_names(task: str = "t2v") -> dict[str, Tensor]:
    return {
        weights.rename(name, weights.TRANSFORMER_TO_DIFFUSERS): tensor
        for name, tensor in official_names(task).items()
    }


def diffusers_folder(path: Path, task: str = "t2v") -> Path:
    """A whole tiny model, for t2v, ti2v, i2v, flf2v or vace."""
    image = task in ("i2v", "flf2v")
    numbers = PLAIN_VAE_NUMBERS if task == "vace" else VAE_NUMBERS
    parts = ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"]
    write_json(
        path / "model_index.json", {"_class_name": "WanImageToVideoPipeline" if image else "WanPipeline"}
    )
    write_json(path / "broll.json", {"defaults": DEFAULTS} | ({"task": task} if task == "ti2v" else {}))
    for part in parts:
        (path / part).mkdir(exist_ok=True)
    write_json(path / "scheduler" / "scheduler_config.json", {"_class_name": "UniPCMultistepScheduler"})
    write_json(path / "transformer" / "config.json", transformer_json(transformer_numbers(task)))
    save_file(diffusers_names(task), path / "transformer" / "diffusion_pytorch_model.safetensors")
    write_json(path / "vae" / "config.json", vae_json(numbers))
    vae = built(lambda: VAE(numbers), seed=1)
    save_file(state(vae), path / "vae" / "diffusion_pytorch_model.safetensors")
    write_json(
        path / "text_encoder" / "config.json", dataclasses.asdict(TEXT_NUMBERS) | {"model_type": "umt5"}
    )
    text = built(lambda: umt5(TEXT_NUMBERS), seed=2)
    tensors = state(text)
    tensors.pop("encoder.embed_tokens.weight", None)  # tied to `shared`, and kept once
    save_file(tensors, path / "text_encoder" / "model.safetensors")
    tokenizer().save_pretrained(path / "tokenizer")
    if image:
        write_image_encoder(path)
    return path


def write_image_encoder(path: Path) -> None:
    c = IMAGE_NUMBERS
    numbers = dataclasses.asdict(c) | {"num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads}
    write_json(
        path / "image_encoder" / "config.json",
        numbers | {"model_type": "clip_vision_model", "hidden_act": "gelu"},
    )
    write_json(
        path / "image_processor" / "preprocessor_config.json", {"crop_size": {"height": 28, "width": 28}}
    )
    clip = built(lambda: clip_vision(c), seed=3)
    tensors = {f"vision_model.{name.removeprefix('vision_model.')}": t for name, t in state(clip).items()}
    save_file(tensors, path / "image_encoder" / "model.safetensors")


def original_folder(path: Path, task: str = "t2v") -> Path:
    """The transformer in the original layout; the other files are there, but hold nothing that fits."""
    c = transformer_numbers(task)
    numbers = {
        key: getattr(c, key) for key in ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")
    }
    numbers |= {"freq_dim": c.freq_dim, "text_len": c.text_len, "eps": c.eps, "model_type": task}
    if task == "vace":
        numbers |= {"vace_layers": list(c.vace_layers), "vace_in_dim": c.vace_in_dim}
    write_json(path / "config.json", numbers)
    save_file(official_names(task), path / "diffusion_pytorch_model.safetensors")
    for name in [T5_FILE, VAE_FILE] + ([CLIP_FILE] if task in ("i2v", "flf2v") else []):
        torch.save({"nothing": torch.zeros(1)}, path / name)
    tokenizer().save_pretrained(path / "google" / "umt5-xxl")
    return path


def tokenizer() -> PreTrainedTokenizerFast:
    """Letters, and a mark at the end, as umT5 has it."""
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "\u2581", *letters[1:]])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def transformer_json(c: TransformerConfig) -> dict:
    hinted = {"vace_layers": list(c.vace_layers), "vace_in_channels": c.vace_in_dim} if c.vace_layers else {}
    return hinted | {
        "_class_name": "WanVACETransformer3DModel" if hinted else "WanTransformer3DModel",
        "num_attention_heads": c.num_heads,
        "attention_head_dim": c.head_dim,
        "ffn_dim": c.ffn_dim,
        "num_layers": c.num_layers,
        "in_channels": c.in_dim,
        "out_channels": c.out_dim,
        "text_dim": c.text_dim,
        "freq_dim": c.freq_dim,
        "eps": c.eps,
        "patch_size": list(c.patch_size),
        "image_dim": c.image_dim,
        "added_kv_proj_dim": None if c.image_dim is None else c.dim,
        "pos_embed_seq_len": c.image_positions,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
    }


def vae_json(c: VAEConfig) -> dict:
    numbers = dataclasses.asdict(c)
    channels = 3 * c.patch_size**2
    return numbers | {
        "_class_name": "AutoencoderKLWan",
        "temperal_downsample": numbers.pop("temporal_downsample"),
        "in_channels": channels,
        "out_channels": channels,
        "scale_factor_spatial": c.spatial_stride,
    }


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
