"""The same random LoRA in every form that trainers write.

pairs        official name -> (down, up), for every Linear of a model, or for those that a pattern finds
save         them as one file, or as a folder, in one of FORMS; each has alpha / rank = SCALE, said its own way
by_hand      a model's state with them added, in fp32
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from broll.engine import weights

RANK, ALPHA = 3, 6.0
SCALE = ALPHA / RANK
Pairs = dict[str, tuple[Tensor, Tensor]]


def pairs(model: nn.Module, pattern: str = "", seed: int = 7) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.search(pattern, name):
            rows, columns = module.weight.shape
            down = torch.randn(RANK, columns, generator=generator) / columns**0.5
            made[name] = down, 0.2 * torch.randn(rows, RANK, generator=generator)
    return made


def theirs(name: str) -> str:
    return weights.rename(f"{name}.weight", weights.TRANSFORMER_TO_DIFFUSERS).removesuffix(".weight")


def official(prefix: str, down: str, up: str, *, flat: bool = False):
    def tensors(made: Pairs) -> dict[str, Tensor]:
        found = {}
        for name, (a, b) in made.items():
            module = prefix + (name.replace(".", "_") if flat else name)
            found |= {module + down: a, module + up: b, module + ".alpha": torch.tensor(ALPHA)}
        return found

    return tensors


def diffusers(prefix: str, down: str, up: str):
    """Without alpha, it is in the matrices."""

    def tensors(made: Pairs) -> dict[str, Tensor]:
        found = {}
        for name, (a, b) in made.items():
            found |= {prefix + theirs(name) + down: a * SCALE, prefix + theirs(name) + up: b}
        return found

    return tensors


FORMS = {
    "kohya": official("lora_unet_", ".lora_down.weight", ".lora_up.weight", flat=True),
    "comfy": official("diffusion_model.", ".lora_down.weight", ".lora_up.weight"),
    "comfy-ab": official("diffusion_model.", ".lora_A.weight", ".lora_B.weight"),
    "checkpoint": official("model.diffusion_model.", ".lora_A.weight", ".lora_B.weight"),
    "bare": official("", ".lora_A.default.weight", ".lora_B.default.weight"),
    "mochi": official("", ".lora_A", ".lora_B"),
    "diffusers": diffusers("transformer.", ".lora_A.weight", ".lora_B.weight"),
    "diffusers-old": diffusers("transformer.", "_lora.down.weight", "_lora.up.weight"),
    "diffusers-dots": diffusers("", ".lora.down.weight", ".lora.up.weight"),
    "transformers": diffusers("unet.", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}


def save(made: Pairs, form: str, path: Path, extra: dict[str, Tensor] | None = None) -> Path:
    tensors = FORMS[form](made) | (extra or {})
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def save_peft(made: Pairs, folder: Path, **config: object) -> Path:
    """A folder, as PEFT's `save_pretrained` writes it: alpha is in the config only."""
    folder.mkdir()
    tensors = {}
    for name, (a, b) in made.items():
        module = f"base_model.model.{theirs(name)}"
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def by_hand(model: nn.Module, made: Pairs, weight: float = 1.0) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, (a, b) in made.items():
        state[f"{name}.weight"] += weight * SCALE * (b @ a)
    return state
