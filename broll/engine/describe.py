"""What a model is, before its weights are read: from its small files, or else from the shapes of its tensors.

What was asked for and is not there is named here: another task, another width.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from broll.engine import detect, lora_facts, magnitudes, model_toml
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
from broll.engine.detect import task_of
from broll.engine.formats import Opened
from broll.engine.sources import Source, layout, need, sources
from broll.errors import BadCheckpoint

C = TypeVar("C")


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadCheckpoint(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
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
                vace_layers=tuple(c.get("vace_layers") or ()),
                vace_in_dim=c.get("vace_in_channels"),
            )
        with_image = c["model_type"] in ("i2v", "flf2v")
        return TransformerConfig(
            **{key: c[key] for key in ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")},
            **{key: c[key] for key in ("freq_dim", "text_len", "eps")},
            image_dim=1280 if with_image else None,
            image_positions=514 if c["model_type"] == "flf2v" else None,
            **(vace_numbers(c) if c["model_type"] == "vace" else {}),
        )
    except KeyError as error:
        raise BadCheckpoint(f"{path} lacks {error}: is it a WAN 2.1 transformer?") from None


def vace_numbers(c: dict[str, Any]) -> dict[str, Any]:
    """Of the original layout, with wan/modules/vace_model.py's defaults."""
    layers = c.get("vace_layers") or range(0, c["num_layers"], 2)
    return {"vace_layers": tuple(layers), "vace_in_dim": c.get("vace_in_dim") or c["in_dim"]}


def vae_config(path: Path) -> VAEConfig:
    c = read_json(path)
    if c.get("is_residual"):
        raise BadCheckpoint(f"{path} is WAN 2.2's autoencoder; this engine runs WAN 2.1")
    defaults = VAEConfig()
    levels = tuple(c.get("dim_mult", defaults.dim_mult))
    in_time = tuple(c.get("temperal_downsample", defaults.temporal_downsample))
    if sum(map(bool, in_time[: len(levels) - 1])) != 2:
        raise BadCheckpoint(
            f"{path}: dim_mult {levels} with temperal_downsample {in_time} does not make 4 frames of a latent, "
            "as WAN 2.1 does"
        )
    return VAEConfig(
        base_dim=c.get("base_dim", defaults.base_dim),
        decoder_base_dim=c.get("decoder_base_dim"),
        z_dim=c.get("z_dim", defaults.z_dim),
        dim_mult=levels,
        num_res_blocks=c.get("num_res_blocks", defaults.num_res_blocks),
        temporal_downsample=in_time,
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


def numbers(
    source: Source, from_json: Callable[[Path], C], from_tensors: Callable[[Opened], C], published: C | None
) -> C:
    """Of one component: its config.json, else what is published for its layout, else its tensors."""
    if source.config is not None:
        return from_json(source.config)
    return from_tensors(source.open()) if published is None else published


def describe(folder: Path, name: str) -> ModelConfig:
    """What is in this folder; checked against the published model of that name."""
    kind, found = layout(folder), sources(folder)
    source = need(found, "transformer", folder)
    shape = numbers(source, transformer_config, lambda o: detect.transformer(o, source.num_heads), None)
    mixed = model_toml.read(folder) if model_toml.exists(folder) else None
    known = PUBLISHED.get(name) or (PUBLISHED[mixed.model] if mixed and mixed.model else None)
    if known is not None:
        check_published(folder, known, shape)
    elif kind == "mixed":
        known = next((model for model in PUBLISHED.values() if model.transformer == shape), None)
    if mixed is None:
        return measured(
            distilled(known or small(folder, name, kind, shape, found), folder, source), folder, known
        )
    base = small(folder, name, kind, shape, found)
    if known is not None:
        base = dataclasses.replace(
            known, name=name, vae=base.vae, text=base.text, image=base.image, preview=base.preview
        )
    base = measured(distilled(base, folder, source), folder, known)
    return dataclasses.replace(base, defaults=dataclasses.replace(base.defaults, **mixed.defaults))


def distilled(config: ModelConfig, folder: Path, source: Source) -> ModelConfig:
    """With the few steps that its published name says it was distilled to, as LightX2V's checkpoints are."""
    place = source.place.parent if source.place.name == "transformer" else source.place
    made = lora_facts.named(f"{folder.name} {place.name}")
    if made is None or made.weight != 1:  # CausVid's numbers are for its LoRA at a third of its strength
        return config
    wants = {key: value for key in lora_facts.NUMBERS if (value := getattr(made, key)) is not None}
    return dataclasses.replace(config, defaults=dataclasses.replace(config.defaults, **wants))


def measured(config: ModelConfig, folder: Path, known: ModelConfig | None) -> ModelConfig:
    """With its own ratios for step caching; under another name, with those of the model that it is one of."""
    own = magnitudes.read(folder)
    if own is None and known is not None and known.name != config.name:
        own = magnitudes.published(known.name)
    return config if own is None else dataclasses.replace(config, ratios=own)


def check_published(folder: Path, published: ModelConfig, found: TransformerConfig) -> None:
    if found != published.transformer:
        raise BadCheckpoint(
            f"{folder} holds {describe_numbers(found)}; {published.name} has "
            f"{describe_numbers(published.transformer)}: it is a checkpoint of another model"
        )


def small(
    folder: Path, name: str, kind: str, shape: TransformerConfig, found: Mapping[str, Source]
) -> ModelConfig:
    """A model that is not published: all its numbers from what is there, its defaults from broll.json."""
    extra = folder / "broll.json"
    known = read_json(extra) if extra.exists() else {}
    defaults: dict[str, Any] = known.get("defaults", {"size": (832, 480), "max_area": 832 * 480})

    def of(
        component: str, from_json: Callable[[Path], C], from_tensors: Callable[[Opened], C], usual: C
    ) -> C:
        source = need(found, component, folder)
        whole = kind == "original" and source.place.parent == folder  # the original layout has one size
        return numbers(source, from_json, from_tensors, usual if whole else None)

    def tower(opened: Opened) -> ImageConfig:
        return detect.image(opened, found["image_encoder"].num_heads)

    with_image = shape.image_dim is not None
    return ModelConfig(
        name=name,
        task=own_task(extra, known.get("task"), shape),
        transformer=shape,
        vae=of("vae", vae_config, detect.vae, VAEConfig()),
        text=of("text_encoder", text_config, detect.text, TextConfig()),
        image=of("image_encoder", image_config, tower, ImageConfig()) if with_image else None,
        defaults=Defaults(**defaults | {"size": tuple(defaults["size"])}),
        preview=tuple(map(tuple, known["preview"])) if "preview" in known else None,
    )


def own_task(place: Path, said: object, shape: TransformerConfig) -> Task:
    """By its tensors; one that makes clips from text may also have learnt to start from a picture, and says so."""
    found = task_of(shape)
    if said is None or said == found:
        return found
    if found == "t2v" and said == "ti2v":
        return "ti2v"
    possible = "t2v or ti2v" if found == "t2v" else found
    raise BadCheckpoint(f"{place} says task {said!r}; by the tensors beside it, it can be {possible}")


def describe_numbers(c: TransformerConfig) -> str:
    task = {
        "t2v": "a text-to-video", "i2v": "an image-to-video", "flf2v": "a first-last-frame-to-video", "vace": "a VACE",
    }  # fmt: skip
    return f"{task[task_of(c)]} transformer of width {c.dim} with {c.num_layers} layers"
