"""Write nano as a folder that diffusers and broll load: `python -m training.export`.

bf16 weights in the diffusers layout, and broll.json with the defaults and the linear preview, which is fitted here by
least squares from latents to the mean colour of the pixels they stand for.
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from broll.engine import weights
from broll.engine.lora_facts import facts
from broll.engine.lora_files import read
from broll.engine.transformer import Transformer
from training import run, text, transformer, vae
from training.clips import rendered
from training.render import latents_path, load_clip, to_float

MODEL = run.ROOT / "nano" / "broll_nano" / "model"


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_weights(path: Path, state: dict[str, Tensor], notes: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {n: t.detach().to(torch.bfloat16).contiguous().clone() for n, t in state.items()},
        path,
        {"format": "pt"} | (notes or {}),
    )


def fit_preview(numbers: dict[str, Any], clips: int = 100) -> list[list[float]]:
    """[c + 1, 3]: RGB of each latent channel, and the bias. Of first and later latents alike."""
    folder = run.work_folder(numbers)
    both = [i for i in rendered(folder) if latents_path(folder, i).exists()]
    rows, targets = [], []
    for index in both[:clips]:
        z = torch.load(latents_path(folder, index), weights_only=True)[0].float()
        video = to_float(load_clip(folder, index)).transpose(0, 1)  # 3 f h w
        small = F.adaptive_avg_pool3d(video[:, 1:], (z.shape[1] - 1, *z.shape[2:]))
        first = F.adaptive_avg_pool3d(video[:, :1], (1, *z.shape[2:]))
        targets.append(torch.cat([first, small], dim=1).flatten(1).t())
        rows.append(z.flatten(1).t())
    a = F.pad(torch.cat(rows), (0, 1), value=1.0)
    table = torch.linalg.lstsq(a, torch.cat(targets)).solution
    return [[round(float(v), 4) for v in row] for row in table]


def export(numbers: dict[str, Any], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    clip, defaults = numbers["clip"], numbers["defaults"]
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "WanPipeline",
            "_diffusers_version": "0.35.0",
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLWan"],
            "scheduler": ["diffusers", "UniPCMultistepScheduler"],
            "text_encoder": ["transformers", "UMT5EncoderModel"],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        },
    )
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "UniPCMultistepScheduler",
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": defaults["shift"],
            "num_train_timesteps": 1000,
            "solver_order": 2,
        },
    )
    export_transformer(numbers, folder / "transformer")
    export_vae(numbers, folder / "vae")
    export_text(numbers, folder)
    export_student(numbers, folder)
    size = [clip["width"], clip["height"]]
    write_json(
        folder / "broll.json",
        {
            "name": "nano",
            "license": "Apache-2.0",
            "defaults": {
                "size": size, "max_area": size[0] * size[1], "frames": clip["frames"], "fps": clip["fps"],
                **defaults,
            },
            "task": "ti2v",
            "preview": fit_preview(numbers),
        },
    )  # fmt: skip


def export_transformer(numbers: dict[str, Any], folder: Path) -> None:
    state = run.load(run.work_folder(numbers) / "transformer.pt")
    assert state is not None, "train the transformer first"
    c = transformer.config(numbers)
    write_json(
        folder / "config.json",
        {
            "_class_name": "WanTransformer3DModel",
            "patch_size": list(c.patch_size),
            "num_attention_heads": c.num_heads,
            "attention_head_dim": c.head_dim,
            "in_channels": c.in_dim,
            "out_channels": c.out_dim,
            "text_dim": c.text_dim,
            "freq_dim": c.freq_dim,
            "ffn_dim": c.ffn_dim,
            "num_layers": c.num_layers,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": c.eps,
            "image_dim": None,
            "added_kv_proj_dim": None,
            "pos_embed_seq_len": None,
            "rope_max_seq_len": 1024,
        },
    )
    names = weights.TRANSFORMER_TO_DIFFUSERS
    renamed = {weights.rename(name, names): tensor for name, tensor in state["average"].items()}
    write_weights(folder / "diffusion_pytorch_model.safetensors", renamed)


STUDENT = "loras/nano-student.safetensors"


def export_student(numbers: dict[str, Any], folder: Path) -> None:
    """The student's LoRA, which says how it is sampled; nothing where none was taught."""
    state = run.load(run.work_folder(numbers) / "student.pt")
    if state is None:
        return
    pairs = state["adapters"].items()
    downs = {f"diffusion_model.{name}.lora_A.weight": down for name, (down, _) in pairs}
    ups = {f"diffusion_model.{name}.lora_B.weight": up for name, (_, up) in pairs}
    how = {"steps": numbers["student"]["steps"], "guidance": 1.0, "shift": numbers["defaults"]["shift"]}
    how |= {"sampler": "euler", "grid": "distilled", "source": "training/student.py"}
    write_weights(folder / STUDENT, downs | ups, {f"broll.{key}": str(value) for key, value in how.items()})


@torch.no_grad()
def student(model: Transformer, folder: Path) -> dict[str, Any]:
    """Turn a loaded model into its student, and say how that one is sampled; nothing where the folder has none."""
    if not (folder / STUDENT).exists():
        return {}
    for name, (down, up) in adapters(folder / STUDENT).items():
        weight = model.get_parameter(f"{name}.weight")
        weight += up.to(weight) @ down.to(weight)
    how = facts(read(folder / STUDENT))
    assert how is not None, "export_student writes it"
    return {key: getattr(how, key) for key in ("steps", "guidance", "shift", "sampler", "grid")}


def adapters(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up of an exported student, by the Linear's name."""
    state = floats(file)
    downs = [key for key in state if ".lora_A." in key]
    named = {key.removeprefix("diffusion_model.").removesuffix(".lora_A.weight"): key for key in downs}
    return {name: (state[key], state[key.replace("lora_A", "lora_B")]) for name, key in named.items()}


def export_vae(numbers: dict[str, Any], folder: Path) -> None:
    model = vae.load(numbers)
    c = dataclasses.asdict(model.config)
    channels = 3 * model.config.patch_size**2
    time = c.pop("temporal_downsample")
    write_json(
        folder / "config.json",
        {
            "_class_name": "AutoencoderKLWan",
            **c,
            "temperal_downsample": time,
            "in_channels": channels,
            "out_channels": channels,
            "scale_factor_spatial": model.config.spatial_stride,
            "scale_factor_temporal": 4,
        },
    )
    write_weights(folder / "diffusion_pytorch_model.safetensors", model.state_dict())


def export_text(numbers: dict[str, Any], folder: Path) -> None:
    encoder = text.load(numbers)
    encoder.tokenizer.save_pretrained(folder / "tokenizer")
    config = encoder.model.config.to_dict()
    config = {k: v for k, v in config.items() if k not in ("dtype", "transformers_version", "_name_or_path")}
    write_json(folder / "text_encoder" / "config.json", config | {"architectures": ["UMT5EncoderModel"]})
    state = {n: t for n, t in encoder.model.state_dict().items() if n != "encoder.embed_tokens.weight"}
    write_weights(folder / "text_encoder" / "model.safetensors", state)


def restore(numbers: dict[str, Any], folder: Path) -> None:
    """Put an exported folder's weights back into the run's folder, so that training goes on from them.

    Optimizers start anew and no minutes count as spent; a run that has its own checkpoints is left alone.
    """
    work = run.work_folder(numbers)
    files = [work / name for name in ("vae_final.pt", "text.pt", "transformer.pt", "student.pt")]
    there = [path.name for path in files if path.exists()]
    if there:
        raise SystemExit(f"{work} already has {', '.join(there)}")
    stem = "diffusion_pytorch_model.safetensors"
    config = json.loads((folder / "vae" / "config.json").read_text())
    statistics = {"mean": config["latents_mean"], "std": config["latents_std"]}
    run.save(files[0], {"model": floats(folder / "vae" / stem)} | statistics)
    text_state = floats(folder / "text_encoder" / "model.safetensors")
    run.save(files[1], {"model": text_state | {"encoder.embed_tokens.weight": text_state["shared.weight"]}})
    shutil.copytree(folder / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    names = weights.TRANSFORMER_FROM_DIFFUSERS
    model = {weights.rename(n, names): t for n, t in floats(folder / "transformer" / stem).items()}
    run.save(files[2], {"model": model, "average": model, "step": 0, "spent": 0.0, "clips": 0})
    if (folder / STUDENT).exists():
        run.save(files[3], {"adapters": adapters(folder / STUDENT), "teacher": 0, "updates": 0, "spent": 0.0})


def floats(path: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--restore", action="store_true", help="the way back, to train on")
    args = parser.parse_args()
    (restore if args.restore else export)(run.recipe(args.recipe), args.out)


if __name__ == "__main__":
    main()
