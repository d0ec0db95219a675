"""`model.toml`: a model put together from files that lie in different places, one table for each part.

    model = "wan2.1-t2v-14b"                   optional: whose defaults it has

    [transformer]
    file = "diffusion_models/wan2.1-t2v-14b-Q4_K_M.gguf"
    [vae]
    file = "vae/wan_2.1_vae.safetensors"
    [text_encoder]
    file = "/models/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    [tokenizer]
    folder = "tokenizer"
    [preview]                                  optional: a tiny decoder, for sharper previews
    file = "vae_approx/taew2_1.safetensors"

    [defaults]                                 optional: what a request gets that does not say otherwise
    steps = 4
    guidance = 1.0

Paths are absolute, or start in the folder of the file. `folder` is a folder of shards, or a whole checkpoint, of which
that part is taken. It is the user's own file, so it may point anywhere; what it does not know it refuses, by name.
Knows no torch.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from broll.engine.config import PUBLISHED, Defaults
from broll.errors import BadCheckpoint
from broll.spec import VideoSpec

NAME = "model.toml"
COMPONENTS = ("transformer", "vae", "text_encoder", "image_encoder")
TABLES = (*COMPONENTS, "tokenizer", "preview", "defaults")
WHOLE, NUMBERS = ("max_area", "steps", "frames", "fps"), ("guidance", "shift")
LARGEST = 1_000_000  # bytes


@dataclass(frozen=True)
class Part:
    """Where one part lies. `num_heads` says what tensors cannot, if a head is not as wide as the published ones."""

    path: Path
    num_heads: int | None = None


@dataclass(frozen=True)
class ModelToml:
    path: Path
    parts: Mapping[str, Part]
    model: str | None = None
    tokenizer: Path | None = None
    preview: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


def exists(folder: Path) -> bool:
    return (folder / NAME).is_file()


def read(folder: Path) -> ModelToml:
    """The model.toml of this folder, checked; every path in it is there."""
    path = folder / NAME
    try:
        if path.stat().st_size > LARGEST:
            raise BadCheckpoint(f"{path} is larger than {LARGEST // 1_000_000} MB")
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    _only(path, "", value, ("model", *TABLES))
    for table in TABLES:
        if not isinstance(value.get(table, {}), dict):
            raise BadCheckpoint(f"{path}: {table} must be a table, [{table}]")
    model = value.get("model")
    if model is not None and model not in PUBLISHED:
        raise BadCheckpoint(f"{path}: model is {model!r}; possible are {', '.join(PUBLISHED)}")
    places = {"tokenizer": "folder", "preview": "file"}
    given = {
        name: _only_place(path, name, kind, value[name]) for name, kind in places.items() if name in value
    }
    return ModelToml(
        path=path,
        parts={name: _part(path, name, value[name]) for name in COMPONENTS if name in value},
        model=model,
        tokenizer=given.get("tokenizer"),
        preview=given.get("preview"),
        defaults=_defaults(path, value.get("defaults", {})),
    )


def _only(path: Path, table: str, value: Mapping[str, Any], possible: tuple[str, ...]) -> None:
    odd = [key for key in value if key not in possible]
    if odd:
        where = f"[{table}] has" if table else "has"
        raise BadCheckpoint(f"{path} {where} {odd[0]!r}; possible are {', '.join(possible)}")


def _part(path: Path, name: str, value: Mapping[str, Any]) -> Part:
    with_heads = name in ("transformer", "image_encoder")
    _only(path, name, value, ("file", "folder", "num_heads") if with_heads else ("file", "folder"))
    given = [key for key in ("file", "folder") if key in value]
    if len(given) != 1:
        raise BadCheckpoint(f"{path}: [{name}] must have either file or folder")
    heads = value.get("num_heads")
    if heads is not None and (type(heads) is not int or heads < 1):
        raise BadCheckpoint(f"{path}: [{name}] num_heads is {heads!r}; it must be a whole number from 1")
    return Part(_place(path, name, given[0], value[given[0]]), heads)


def _only_place(path: Path, table: str, kind: str, value: Mapping[str, Any]) -> Path:
    """Of a table that says nothing else."""
    _only(path, table, value, (kind,))
    if kind not in value:
        raise BadCheckpoint(f"{path}: [{table}] must have {kind}")
    return _place(path, table, kind, value[kind])


def _place(path: Path, table: str, kind: str, value: Any) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise BadCheckpoint(f"{path}: [{table}] {kind} is {value!r}; it must be a path")
    place = path.parent / Path(value).expanduser()  # an absolute one stays as it is
    there = place.is_file() if kind == "file" else place.is_dir()
    if not there:
        raise BadCheckpoint(f"{path}: [{table}] {kind} {value} is missing: {place} is no {kind}")
    return place


def _defaults(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    _only(path, "defaults", value, tuple(Defaults.__dataclass_fields__))
    return {key: _default(path, key, given) for key, given in value.items()}


def _default(path: Path, key: str, value: Any) -> Any:
    names = _names(key)
    if key == "size":
        right = isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
        needed = "[width, height]"
    elif key in WHOLE:
        right, needed = type(value) is int and value > 0, "a whole number from 1"
    elif key in NUMBERS:
        right, needed = type(value) in (int, float) and 0 <= value < 1000, "a number from 0"
    elif names:
        right, needed = value in names, f"one of {', '.join(names)}"
    else:
        right, needed = isinstance(value, str), "a text"
    if not right:
        raise BadCheckpoint(f"{path}: [defaults] {key} is {value!r}; it must be {needed}")
    if key in NUMBERS:
        return float(value)
    return tuple(value) if key == "size" else value


def _names(key: str) -> tuple[str, ...]:
    """The names that a request may have there: `str | None` of a Literal."""
    if key not in ("sampler", "grid"):
        return ()
    annotation = VideoSpec.model_fields[key].annotation
    return tuple(
        name for part in get_args(annotation) for name in (get_args(part) or (part,)) if type(name) is str
    )
