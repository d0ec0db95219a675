"""LoRA files to deltas under the engine's own names, whatever their makers called them.

A file changes a weight W of the transformer by scale * up @ down, or by a full difference:

    NAME.lora_down.weight, .lora_up.weight     [rank, in] and [out, rank]; also lora_A and lora_B, _lora.down,
                                               .lora.down, .lora_linear_layer.down, .lora_A.default
    NAME.alpha                                 scale = alpha / rank; without it 1, or what PEFT's config says
    NAME.diff, .diff_b, .diff_m                difference of the weight, the bias, the modulation

NAME is official (blocks.0.self_attn.q) or diffusers' (blocks.0.attn1.to_q), after any of PREFIXES, with dots or,
as kohya writes it, with underscores. A key that is none of these is kept in `unmatched`; half a pair is refused.

    kohya, musubi      https://github.com/kohya-ss/musubi-tuner
    ComfyUI            comfy/lora.py, comfy/weight_adapter
    PEFT               adapter_config.json: r, lora_alpha, their patterns, use_rslora
    LightX2V           lightx2v/utils/lora_loader.py (the variants)

Left out: DoRA, LoHa, LoKr and Tucker layers, which are refused by name.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from broll.engine import weights
from broll.errors import BadCheckpoint

PREFIXES = (
    "model.diffusion_model.", "diffusion_model.", "base_model.model.", "pipe.dit.", "transformer.", "unet.",
    "model.", "lora_unet_", "lora_transformer_",
)  # fmt: skip
LORA = r"[._]lora(?:_linear_layer)?[._]"
SUFFIXES = (  # what a key says about its module
    ("down", re.compile(LORA + r"(?:down|A)(?:\.(?!bias\b)\w+)?(?:\.weight)?$")),
    ("up", re.compile(LORA + r"(?:up|B)(?:\.(?!bias\b)\w+)?(?:\.weight)?$")),
    ("up_bias", re.compile(LORA + r"(?:up|B)(?:\.\w+)?\.bias$")),
    ("alpha", re.compile(r"\.alpha$")),
    ("diff", re.compile(r"\.(?:diff|w_norm)$")),
    ("diff_b", re.compile(r"\.(?:diff_b|b_norm)$")),
    ("diff_m", re.compile(r"\.diff_m$")),
)
FOREIGN = (  # layers of another kind: leaving out one factor of them would change what the rest means
    ("DoRA", re.compile(r"dora_scale|lora_magnitude_vector")),
    ("LoHa", re.compile(r"\.hada_w")),
    ("LoKr", re.compile(r"\.lokr_w")),
    ("Tucker", re.compile(r"lora_mid|\.lora_t\d")),
    ("replaced", re.compile(r"\.set_weight$")),
)
ATTENTION = ("q", "k", "v", "o", "norm_q", "norm_k")
IN_BLOCK = (
    *(f"{kind}.{part}" for kind in ("self_attn", "cross_attn") for part in ATTENTION),
    "cross_attn.k_img", "cross_attn.v_img", "cross_attn.norm_k_img", "ffn.0", "ffn.2", "norm3", "modulation",
    "before_proj", "after_proj",
)  # fmt: skip
OUTSIDE = (
    "patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
    "time_projection.1", "img_emb.proj.0", "img_emb.proj.1", "img_emb.proj.3", "img_emb.proj.4",
    "img_emb.emb_pos", "head.head", "head.modulation", "vace_patch_embedding",
)  # fmt: skip
IN_FOLDER = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True, eq=False)
class Delta:
    """What a file changes in one module: scale * up @ down + diff for its weight, diff_b for its bias."""

    name: str  # of the module, or of a parameter that is none's weight (modulation, emb_pos)
    keys: tuple[str, ...]  # in the file
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0
    diff: Tensor | None = None
    diff_b: Tensor | None = None

    @property
    def rank(self) -> int:
        return 0 if self.down is None else self.down.shape[0]

    def full(self, shape: torch.Size) -> Tensor | None:
        """The weight's whole difference, in fp32; None if only the bias changes."""
        total = None if self.diff is None else self.diff.float().reshape(shape)
        if self.down is not None and self.up is not None:
            product = self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))
            total = product.reshape(shape) if total is None else total + product.reshape(shape)
        return total


@dataclass(frozen=True, eq=False)
class Lora:
    """One file, read. `unmatched` are keys that name nothing in a WAN transformer."""

    name: str
    path: Path
    deltas: Mapping[str, Delta]
    unmatched: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scaling:
    """PEFT's alpha and its patterns: literal names, or their ends."""

    alpha: float | None = None
    patterns: tuple[tuple[str, float], ...] = ()
    rslora: bool = False

    def scale(self, path: str, rank: int) -> float:
        ends = (alpha for name, alpha in self.patterns if path == name or path.endswith(f".{name}"))
        alpha = next(ends, self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.rslora else rank)


# --- names ------------------------------------------------------------------------------------------------


@functools.cache
def known_names(*, inside: bool) -> Mapping[str, str]:
    """Every spelling of a module's name, inside a block or outside of them -> the official one."""
    table: dict[str, str] = {}
    for name in IN_BLOCK if inside else OUTSIDE:
        full = f"blocks.0.{name}" if inside else name
        whole = name.endswith(("modulation", "emb_pos"))  # a parameter, without `.weight`
        theirs = weights.rename(full if whole else f"{full}.weight", weights.TRANSFORMER_TO_DIFFUSERS)
        theirs = theirs.removeprefix("blocks.0.").removesuffix("" if whole else ".weight")
        for spelling in (name, theirs):
            table[spelling] = table[spelling.replace(".", "_")] = name
    return table


def bare(path: str) -> str:
    """Without what trainers put in front."""
    while prefix := next((prefix for prefix in PREFIXES if path.startswith(prefix)), ""):
        path = path.removeprefix(prefix)
    return path


def official(path: str) -> str | None:
    """The engine's name of a module that a file names; None if a WAN transformer has no such module."""
    path = bare(path)
    block = re.fullmatch(r"((?:vace_)?blocks)[._](\d{1,4})[._](.+)", path)
    if block is None:
        return known_names(inside=False).get(path)
    name = known_names(inside=True).get(block[3])
    return None if name is None else f"{block[1]}.{int(block[2])}.{name}"


# --- reading ----------------------------------------------------------------------------------------------


def read(path: Path) -> Lora:
    """A file, or a folder as PEFT and diffusers write it."""
    file = file_of(path)
    tensors, metadata = open_file(file)
    for kind, pattern in FOREIGN:
        odd = next((key for key in sorted(tensors) if pattern.search(key)), None)
        if odd is not None:
            raise BadCheckpoint(
                f"{file} holds {kind} weights ({odd}); LoRA pairs and differences are possible"
            )
    scaling = scaling_of(file, metadata)
    parts, unmatched = sort_keys(file, tensors)
    if not parts:
        example = f", such as {unmatched[0]}" if unmatched else ""
        raise BadCheckpoint(f"{file} is no LoRA for WAN: none of its {len(tensors)} keys is known{example}")
    deltas = {name: delta_of(file, name, found, tensors, scaling) for name, found in parts.items()}
    stem = path.name if path.is_dir() else path.stem
    return Lora(stem, file, deltas, tuple(unmatched), metadata)


def file_of(path: Path) -> Path:
    if not path.exists():
        raise BadCheckpoint(f"there is no LoRA at {path}")
    if not path.is_dir():
        return path
    named = [path / name for name in IN_FOLDER if (path / name).is_file()]
    found = named[:1] or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise BadCheckpoint(f"{path} must hold one LoRA, {' or '.join(IN_FOLDER)}; found {names}")
    return found[0]


def open_file(file: Path) -> tuple[weights.Tensors, dict[str, str]]:
    try:
        tensors = weights.open_tensors([file])
        if file.suffix not in (".safetensors", ".sft"):
            return tensors, {}
        with safe_open(file, framework="pt") as opened:
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError, AttributeError, TypeError) as error:
        raise BadCheckpoint(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def sort_keys(file: Path, tensors: weights.Tensors) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Official name -> what is said about it -> key in the file; and the keys that say nothing."""
    parts: dict[str, dict[str, str]] = {}
    unmatched = []
    for key in sorted(tensors):
        kind, path = split(key)
        name = official(path) if kind else None
        if name is None:
            unmatched.append(key)
            continue
        found = parts.setdefault(name, {})
        if kind in found:
            raise BadCheckpoint(f"{file} says twice what to do with {name}: {found[kind]} and {key}")
        found[kind] = key
    alone = [name for name, found in parts.items() if found.keys() == {"alpha"}]  # a scale of nothing
    unmatched.extend(parts.pop(name)["alpha"] for name in alone)
    return parts, sorted(unmatched)


def split(key: str) -> tuple[str, str]:
    """Which kind of tensor a key names, and of which module; an empty kind if it is not known."""
    for kind, pattern in SUFFIXES:
        found = pattern.search(key)
        if found is not None:
            path = key[: found.start()]
            return ("diff", f"{path}.modulation") if kind == "diff_m" else (kind, path)
    return "", key


def delta_of(
    file: Path, name: str, keys: dict[str, str], tensors: weights.Tensors, scaling: Scaling
) -> Delta:
    """Read one module's tensors, and check that they belong together."""
    got = {kind: tensor_of(file, key, tensors) for kind, key in keys.items()}
    delta = Delta(name, tuple(keys.values()), diff=got.get("diff"), diff_b=got.get("diff_b"))
    if "down" not in got and "up" not in got:
        if "up_bias" in got:
            raise BadCheckpoint(f"{file}: {keys['up_bias']} is the bias of an up matrix that is not there")
        return delta
    for kind, other in (("down", "up"), ("up", "down")):
        if kind not in got:
            raise BadCheckpoint(f"{file} has {keys[other]}, but not its {kind} matrix: is it cut short?")
    down, up = got["down"], got["up"]
    if min(down.dim(), up.dim()) < 2 or down.shape[0] != up.flatten(1).shape[1] or not down.numel():
        raise BadCheckpoint(
            f"{file}: {keys['down']} {list(down.shape)} and {keys['up']} {list(up.shape)} do not share a rank"
        )
    path = bare(split(keys["down"])[1])
    alpha = got.get("alpha")
    rank = down.shape[0]
    scale = scaling.scale(path, rank) if alpha is None else number(file, keys["alpha"], alpha) / rank
    if "up_bias" in got:
        bias = scale * got["up_bias"].float()
        delta = replace(delta, diff_b=bias if delta.diff_b is None else bias + delta.diff_b.float())
    return replace(delta, down=down, up=up, scale=scale)


def tensor_of(file: Path, key: str, tensors: weights.Tensors) -> Tensor:
    try:
        tensor: object = tensors[key]()
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise BadCheckpoint(f"{file}: {key} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or key.endswith(".alpha")):
        what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise BadCheckpoint(f"{file}: {key} is {what}; it must be a tensor of floating point numbers")
    return tensor


def number(file: Path, key: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or not math.isfinite(value := float(tensor)):
        raise BadCheckpoint(f"{file}: {key} has shape {list(tensor.shape)}; it must be one finite number")
    return value


# --- PEFT -------------------------------------------------------------------------------------------------


def scaling_of(file: Path, metadata: Mapping[str, str]) -> Scaling:
    """From adapter_config.json beside the file, or from diffusers' header; alpha keys in the file win."""
    beside = file.with_name("adapter_config.json")
    if file.name in IN_FOLDER and beside.exists():
        text, source = beside.read_text("utf-8", errors="replace"), str(beside)
    elif "lora_adapter_metadata" in metadata:
        text, source = metadata["lora_adapter_metadata"], f"the header of {file}"
    else:
        return Scaling()
    try:
        config = json.loads(text)
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadCheckpoint(f"{source} is no LoRA configuration: {error}") from error
    return scaling_from(config, source)


def scaling_from(config: dict[str, Any], source: str) -> Scaling:
    if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config["peft_type"]
        raise BadCheckpoint(f"{source} describes {kind}; only LORA is possible")
    try:
        alpha = config.get("lora_alpha")
        patterns = config.get("alpha_pattern") or {}
        return Scaling(
            alpha=None if alpha is None else float(alpha),
            patterns=tuple((literal(name, source), float(value)) for name, value in patterns.items()),
            rslora=bool(config.get("use_rslora")),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise BadCheckpoint(
            f"{source} has a lora_alpha or alpha_pattern that cannot be read: {error}"
        ) from error


def literal(pattern: str, source: str) -> str:
    """PEFT matches regular expressions; what it writes itself are names. Others are refused, not guessed."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise BadCheckpoint(f"{source} has alpha_pattern {pattern!r}; only names of modules are possible")
    return bare(name)
