"""Where the parts of a model lie: a folder to one source for each component, whatever its layout.

    original     config.json, diffusion_pytorch_model*.safetensors, models_t5_*.pth, Wan2.1_VAE.pth,
                 google/umt5-xxl/, and for pictures models_clip_*.pth
    diffusers    model_index.json and a folder for each component; nano adds broll.json with its defaults
    mixed        model.toml says where each part is (model_toml.py)

A model.toml beside one of the other layouts replaces the parts that it names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from broll.engine import containers, formats, model_toml, tiny_decoder
from broll.engine.formats import Opened
from broll.engine.model_toml import COMPONENTS
from broll.errors import BadCheckpoint

STEM = "diffusion_pytorch_model"
T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
ORIGINAL = {"vae": VAE_FILE, "text_encoder": T5_FILE, "image_encoder": CLIP_FILE}
DIFFUSERS = {"transformer": STEM, "vae": STEM, "text_encoder": "model", "image_encoder": "model"}
TOKENIZERS = ("tokenizer", "google/umt5-xxl")


@dataclass(frozen=True)
class Source:
    """Where one component lies."""

    component: str
    place: Path  # a file, or a folder of shards
    stem: str | None = None  # of the shards; None: whatever the folder holds
    config: Path | None = None  # the small file that gives its numbers; None: its tensors do
    num_heads: int | None = None

    def files(self) -> list[Path]:
        if self.stem is not None:
            return containers.shards(self.place, self.stem)
        return formats.files_of(self.place)

    def open(self) -> Opened:
        return formats.open_weights(self.files(), self.component)


def layout(folder: Path) -> str:
    """Which layout this is: "diffusers", "original" or "mixed"."""
    if (folder / "model_index.json").exists():
        return "diffusers"
    if (folder / "config.json").exists():
        return "original"
    if model_toml.exists(folder):
        return "mixed"
    raise BadCheckpoint(
        f"{folder} is no checkpoint: it has neither model_index.json nor config.json nor {model_toml.NAME}"
    )


def sources(folder: Path) -> dict[str, Source]:
    """A source for each component; those that a layout always has are listed unseen."""
    kind = layout(folder)
    base = {"diffusers": of_diffusers, "original": of_original, "mixed": lambda _: {}}[kind](folder)
    if not model_toml.exists(folder):
        return base
    parts = model_toml.read(folder).parts
    return base | {name: part_of(name, part.path, part.num_heads) for name, part in parts.items()}


def of_diffusers(folder: Path) -> dict[str, Source]:
    return {
        name: Source(name, folder / name, stem, folder / name / "config.json")
        for name, stem in DIFFUSERS.items()
    }


def of_original(folder: Path) -> dict[str, Source]:
    encoders = {name: Source(name, folder / file) for name, file in ORIGINAL.items()}
    return {"transformer": Source("transformer", folder, STEM, folder / "config.json"), **encoders}


def part_of(component: str, path: Path, num_heads: int | None = None) -> Source:
    """A file; a folder of shards with or without its config.json; or that part of a whole checkpoint."""
    if not path.is_dir():
        return Source(component, path, num_heads=num_heads)
    if (path / "model_index.json").exists():
        return of_diffusers(path)[component]
    if component in ORIGINAL and (path / ORIGINAL[component]).exists():
        return Source(component, path / ORIGINAL[component])
    config = path / "config.json"
    return Source(component, path, None, config if config.exists() else None, num_heads)


def need(found: Mapping[str, Source], component: str, folder: Path) -> Source:
    if component not in found:
        raise BadCheckpoint(
            f"{folder / model_toml.NAME} lacks [{component}]; it may say file or folder for "
            f"{', '.join(COMPONENTS)}"
        )
    return found[component]


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer lies, if there is one."""
    kind = layout(folder)
    if model_toml.exists(folder):
        given = model_toml.read(folder).tokenizer
        if given is not None:
            return given
    if kind != "mixed":
        return folder / TOKENIZERS[kind == "original"]
    found = [folder / name for name in TOKENIZERS if (folder / name).is_dir()]
    if not found:
        raise BadCheckpoint(
            f"{folder / model_toml.NAME} lacks [tokenizer] with folder, and there is no folder "
            f"{' or '.join(TOKENIZERS)} beside it (umT5's is in every repository of WAN 2.1)"
        )
    return found[0]


def preview_file(folder: Path) -> Path | None:
    """The weights of a tiny decoder (tiny_decoder.py), if somebody has put them there. No clip depends on them."""
    given = model_toml.read(folder).preview if model_toml.exists(folder) else None
    return given or next((folder / name for name in tiny_decoder.FILES if (folder / name).is_file()), None)


def weight_files(folder: Path) -> dict[str, list[Path]]:
    """Every file of weights that loading this folder would read, by component."""
    found = sources(folder)
    used = {name: source for name, source in found.items() if source.place.exists()}
    return {name: source.files() for name, source in used.items()}
