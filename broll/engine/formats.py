"""Every published form of WAN 2.1 weights, read as one: the engine's own names, each with a plain or a stored tensor.

    official, diffusers     the two layouts of the repositories; umT5 also under llama.cpp's names
    single files            the official names, repackaged; with or without the prefix "model.diffusion_model."
    fp8                     plain, or scaled: x = q * scale, one scale for the matrix, a row, or a part of a row
                              LAYER.scale_weight   "scaled_fp8" marks the file       ComfyUI, Kijai, musubi
                              LAYER.weight_scale   LAYER.comfy_quant: JSON, as bytes  ComfyUI
                              LAYER.weight_scale                                      LightX2V
    GGUF                    the official names (gguf_file.py)

Which one a file is, its names say; its suffix says only how to open it. What a file holds besides (scales of
activations, a tokenizer) is known by name and put aside; anything unknown is refused.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from broll.engine import containers, weights
from broll.engine.dequantize import KINDS
from broll.engine.stored import PLAIN, Entries, Entry, Stored, Value
from broll.errors import BadCheckpoint

TITLES = {
    "transformer": "a transformer",
    "vae": "an autoencoder",
    "text_encoder": "a text encoder",
    "image_encoder": "an image encoder",
}


class Form(NamedTuple):
    """A component under one set of names: how it is recognised, and how its names become the module's."""

    component: str
    names: str
    marks: re.Pattern[str]
    to_module: Callable[[str], str]


def _renamed(table: weights.Names) -> Callable[[str], str]:
    return partial(_rename, table)


def _rename(table: weights.Names, name: str) -> str:
    return weights.rename(name, table)


def _clip(name: str) -> str:
    return name.removeprefix("vision_model.")


FORMS: tuple[Form, ...] = (
    Form(
        "transformer",
        "official",
        re.compile(r"blocks\.\d+\.(self|cross)_attn\.|head\.modulation|time_projection\."),
        lambda name: name,
    ),
    Form(
        "transformer",
        "diffusers",
        re.compile(r"blocks\.\d+\.attn[12]\.|condition_embedder\.|scale_shift_table"),
        _renamed(weights.TRANSFORMER_FROM_DIFFUSERS),
    ),
    Form(
        "vae",
        "official",
        re.compile(r"(en|de)coder\.(middle|downsamples|upsamples|head)\."),
        weights.vae_from_official,
    ),
    Form(
        "vae",
        "diffusers",
        re.compile(r"(en|de)coder\.(mid_block|down_blocks|up_blocks|norm_out)\."),
        lambda name: name,
    ),
    Form(
        "text_encoder",
        "official",
        re.compile(r"token_embedding\.|blocks\.\d+\.(attn\.|pos_embedding\.|ffn\.(gate|fc))"),
        _renamed(weights.T5_FROM_OFFICIAL),
    ),
    Form(
        "text_encoder",
        "transformers",
        re.compile(r"shared\.|encoder\.block\.\d+\.layer\."),
        lambda name: name,
    ),
    Form(
        "text_encoder",
        "llama.cpp",
        re.compile(r"token_embd\.|enc\.(blk\.\d+|output_norm)\."),
        _renamed(weights.T5_FROM_LLAMA),
    ),
    Form("image_encoder", "official", re.compile(r"visual\."), _renamed(weights.CLIP_FROM_OFFICIAL)),
    Form(
        "image_encoder",
        "transformers",
        re.compile(r"(vision_model\.)?(encoder\.layers|embeddings|pre_layrnorm|post_layernorm)\."),
        _clip,
    ),
)
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
ASIDE = {"scaled_fp8", "spiece_model"}  # says that scales are there; umT5's tokenizer
# A CLIP file also holds a text tower and projections, which WAN does not use.
CLIP_NEEDS = re.compile(
    r"(visual\.(?!head)|vision_model\.|embeddings\.|encoder\.|pre_layrnorm|post_layernorm)(?!.*position_ids)"
)
BESIDE = re.compile(
    r"(?P<layer>.+)\.(?P<what>scale_weight|weight_scale|scale_input|input_scale|comfy_quant"
    r"|weight_scale_2|weight_scale_inv|weight_global_scale)"
)
FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8_tensorwise": "I8"}
HARMLESS = {"full_precision_matrix_mult", "orig_dtype", "orig_shape"}  # how others compute, not what is held


@dataclass(frozen=True)
class Opened:
    """A component's tensors under the engine's names."""

    component: str
    names: str  # whose they were: official, diffusers, transformers, llama.cpp
    source: Path
    entries: Entries

    @property
    def kinds(self) -> dict[str, int]:
        """Bytes of each kind; what the file takes in memory if it is kept as it is."""
        sizes: Counter[str] = Counter()
        for entry in self.entries.values():
            if entry.kind in PLAIN:
                sizes[entry.kind] += math.prod(entry.shape) * PLAIN[entry.kind].itemsize
            else:
                values, size, _ = KINDS[entry.kind]
                sizes[entry.kind] += math.prod(entry.shape) // values * size
        return dict(sizes)


def open_weights(path: Path | list[Path], component: str | None = None) -> Opened:
    """A file, the files of one component, or a folder that holds one file or one index of shards."""
    files = path if isinstance(path, list) else files_of(path)
    entries, about = _open(files)
    source = files[0]
    entries = _without_prefix(entries)
    form = recognise(entries, source, about.get("architecture"))
    if component is not None and form.component != component:
        raise BadCheckpoint(
            f"{source} holds {TITLES[form.component]} (under {form.names} names), not {TITLES[component]}"
        )
    if form.component == "image_encoder":
        entries = {name: entry for name, entry in entries.items() if CLIP_NEEDS.match(name)}
    entries = {name: entry for name, entry in entries.items() if name not in ASIDE}
    check_metadata(about.get("_quantization_metadata"), source)
    entries = join_scales(entries, source)
    containers.check_kinds(entries, source)
    if form.component == "image_encoder":
        entries = weights.split_qkv(entries, Entry.third)
    return Opened(form.component, form.names, source, _own_names(entries, form, source))


def files_of(path: Path) -> list[Path]:
    """The file itself; in a folder, the shards of its index or the only file of weights there is."""
    if not path.is_dir():
        return [path]
    indices = sorted(path.glob(f"*{containers.INDEX}"))
    if len(indices) == 1:
        return containers.indexed(indices[0])
    found = [file for file in sorted(path.iterdir()) if file.suffix in containers.SUFFIXES]
    if len(found) == 1 and not indices:
        return found
    names = ", ".join(file.name for file in (indices or found)[:3]) or "no file of weights"
    raise BadCheckpoint(f"{path} holds {names}: name one file, or a folder with one")


def _open(files: list[Path]) -> tuple[Entries, dict[str, str]]:
    if len(files) == 1:
        return containers.open_file(files[0])
    return containers.open_tensors(files), {}


def _without_prefix(entries: Entries) -> Entries:
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in entries):
            return {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return entries


def recognise(names: Iterable[str], source: Path, architecture: str | None = None) -> Form:
    """The form whose marks most of the names bear."""
    counts: Counter[Form] = Counter()
    first = None
    for name in names:
        first = name if first is None else first
        counts.update(form for form in FORMS if form.marks.match(name))
    if counts:
        return counts.most_common(1)[0][0]
    says = f" of the architecture {architecture!r}" if architecture else ""
    what = f"its first tensor is {first}" if first else "it is empty"
    raise BadCheckpoint(f"{source} holds nothing{says} that WAN 2.1 has: {what}")


def _own_names(entries: Entries, form: Form, source: Path) -> Entries:
    own: Entries = {}
    for name, entry in entries.items():
        target = form.to_module(name)
        if target in own:
            raise BadCheckpoint(f"{source} has both {own[target].key} and {entry.key}, which are the same")
        own[target] = entry
    tied = own.pop("encoder.embed_tokens.weight", None) if form.component == "text_encoder" else None
    if tied is not None:
        own.setdefault("shared.weight", tied)
    return own


# --- scales -----------------------------------------------------------------------------------------------


def join_scales(entries: Entries, source: Path) -> Entries:
    """Every scale with its weight; what only says how others multiply is checked and put aside."""
    joined = {name: entry for name, entry in entries.items() if not BESIDE.fullmatch(name)}
    for name, entry in entries.items():
        match = BESIDE.fullmatch(name)
        if match is None:
            continue
        weight = f"{match['layer']}.weight"
        if weight not in joined:
            raise BadCheckpoint(
                f"{entry.file or source} has {entry.key}, but not the weight that it belongs to"
            )
        if match["what"] in ("scale_weight", "weight_scale"):
            if joined[weight] is not entries[weight]:
                raise BadCheckpoint(f"{entry.file or source} has {entry.key}, a second scale of its weight")
            joined[weight] = scaled(joined[weight], entry, source)
        elif match["what"] == "comfy_quant":
            check_format(_json(entry, source), entries[weight].kind, entry.key, source)
        elif match["what"] not in ("scale_input", "input_scale"):
            raise BadCheckpoint(
                f"{entry.file or source} has {entry.key}: fp4 and fp8 with scales of their own are not read; "
                "possible are one scale for a matrix, a row or a part of a row"
            )
    check_scaled(joined, entries, source)
    return joined


def check_scaled(joined: Entries, entries: Entries, source: Path) -> None:
    """Integers need a scale; where one matrix in fp8 has a scale, all have: without it they would be nonsense."""
    scales = {name for name, entry in joined.items() if entry is not entries[name]}
    for name, entry in joined.items():
        matrix = entry.kind in FORMATS.values() and len(entry.shape) == 2 and name.endswith(".weight")
        if name not in scales and (entry.kind == "I8" or (matrix and scales)):
            kind = "integers" if entry.kind == "I8" else entry.kind
            raise BadCheckpoint(f"{entry.file or source} has {entry.key} as {kind}, but not its scale")


def scaled(weight: Entry, scale: Entry, source: Path) -> Entry:
    """The weight with its scale of shape [], [1], [out], [out, 1] or [out, parts, 1]."""
    rows, row = weight.shape[0] if weight.shape else 0, math.prod(weight.shape[1:])
    parts = {0: 1, 1: 1, 2: 1, 3: scale.shape[1] if len(scale.shape) == 3 else 1}.get(len(scale.shape), 0)
    count = math.prod(scale.shape)
    fits = count == 1 or (count == rows * parts and scale.shape[:1] == (rows,))
    if not fits or scale.kind not in PLAIN or weight.kind not in FORMATS.values() or not parts or row % parts:
        raise BadCheckpoint(
            f"{scale.file or source}: {scale.key} has shape {list(scale.shape)} and kind {scale.kind}, which is no "
            f"scale of {weight.key}, {list(weight.shape)} {weight.kind}"
        )
    return replace(weight, read=partial(_read_scaled, weight, scale, 1 if count == 1 else rows, parts))


def _read_scaled(weight: Entry, scale: Entry, rows: int, parts: int) -> Value:
    value = weight.read()
    assert isinstance(value, Stored)
    return replace(value, scale=scale.plain().float().reshape(rows, parts, 1).contiguous())


def _json(entry: Entry, source: Path) -> Any:
    try:
        value = entry.read()
        assert not isinstance(value, Stored)
        return json.loads(bytes(value.flatten().tolist()))
    except (ValueError, TypeError, AssertionError, RecursionError) as error:
        raise BadCheckpoint(f"{entry.file or source}: {entry.key} is not JSON") from error


def check_format(value: Any, kind: str | None, key: str, source: Path) -> None:
    """Refuse a `comfy_quant` that asks for more than a scale."""
    name = value.get("format") if isinstance(value, dict) else None
    if not isinstance(name, str) or FORMATS.get(name) is None:
        raise BadCheckpoint(f"{source}: {key} says {value!r:.100}; possible formats are {', '.join(FORMATS)}")
    if kind is not None and FORMATS[name] != kind:
        raise BadCheckpoint(f"{source}: {key} says {name}, but the weight is {kind}")
    asked = sorted(key for key, on in value.items() if key not in {"format", *HARMLESS} and on)
    if asked:
        raise BadCheckpoint(f"{source}: {key} asks for {asked[0]}, which this engine does not do")


def check_metadata(text: str | None, source: Path) -> None:
    """`_quantization_metadata` in a header says for all layers what `comfy_quant` says for one."""
    if text is None:
        return
    try:
        layers = dict(json.loads(text)["layers"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadCheckpoint(f"{source} has a _quantization_metadata that cannot be read") from error
    for layer, value in layers.items():
        check_format(value, None, layer, source)
