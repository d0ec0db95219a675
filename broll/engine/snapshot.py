"""A denoising state on disk. Continued under the same conditions, it gives the same bits.

One safetensors file: x, x0 and the sampler's history as tensors; spec, step and conditions as metadata. It is
written beside its place and renamed, so that a kill leaves the old one or the new one.
"""

import contextlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from broll import __version__
from broll.engine import fused, parallel, step_cache
from broll.engine.load import Parts
from broll.engine.sampler import Step
from broll.errors import BadSnapshot, OutputError
from broll.spec import VideoSpec

Conditions = dict[str, str]


@dataclass(frozen=True)
class Snapshot:
    spec: VideoSpec  # resolved
    step: Step
    conditions: Conditions
    memo: str = ""  # whatever the caller wants to find again


def conditions(parts: Parts, spec: VideoSpec | None = None) -> Conditions:
    """What must be the same for the same bits: device, versions, threads, precision, kernels, weights; of a spec also
    which steps are skipped, and what is compiled.
    """
    device = parts.device.type
    skipped = "" if spec is None else step_cache.choice(spec, parts.config)
    compiled = "" if spec is None else fused.named(spec, parts.config, parts.compiler)
    parted = "" if spec is None else parallel.named(spec, parts.config, parts.team)
    if "ulysses" in parted or "ring" in parted:  # then no blocks are compiled
        compiled = " ".join(name for name in compiled.split() if name != fused.FEATURE)
    return {
        "device": torch.cuda.get_device_name(parts.device) if device == "cuda" else processor(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "broll": __version__,
        "threads": str(torch.get_num_threads()) if device == "cpu" else "",
        "linears": str(parts.transformer.compute_dtype),
        "vae": decoding(parts),
        "attention": parts.transformer.attend_name,
        "weights": " ".join(f"{name}:{digest}" for name, digest in parts.digests),
    } | {
        name: value
        for name, value in (
            ("skipped", skipped),
            ("compiled", compiled),
            ("parallel", parted),
            ("batched", "" if parts.meeting is None else "with others, if there were"),
        )
        if value
    }


def decoding(parts: Parts) -> str:
    """The autoencoder's precision, and that of its decoder if it is another."""
    own, decoder = parts.vae.dtype, parts.vae.decoder_dtype
    return str(own) if own == decoder else f"{own}, decoder {decoder}"


def processor() -> str:
    """The CPU's name and the instruction set that torch uses on it."""
    name = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} {torch.backends.cpu.get_cpu_capability()}".strip()


def save(path: Path, snapshot: Snapshot) -> None:
    step = snapshot.step
    tensors = {"x": step.x, "x0": step.x0}
    tensors |= {f"history.{i}": tensor for i, tensor in enumerate(step.history)}
    header = {
        "spec": snapshot.spec.model_dump_json(),
        "index": str(step.index),
        "sigma": float(step.sigma).hex(),
        "conditions": json.dumps(snapshot.conditions),
        "memo": snapshot.memo,
    }
    part = path.with_name(path.name + ".part")
    try:
        # clone: a sampler may keep one tensor under two names, which safetensors refuses
        save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, part, header)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"the snapshot {path} cannot be written: {error}") from error


BROKEN = (SafetensorError, OSError, LookupError, ValueError, TypeError, ArithmeticError, RecursionError)


def load(path: Path) -> Snapshot:
    try:
        with safe_open(path, framework="pt") as file:
            header, names = file.metadata() or {}, list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        count = sum(name.startswith("history.") for name in names)
        step = Step(
            index=int(header["index"]),
            sigma=float.fromhex(header["sigma"]),
            x=tensors["x"],
            x0=tensors["x0"],
            history=tuple(tensors[f"history.{i}"] for i in range(count)),
        )
        spec = VideoSpec.model_validate_json(header["spec"])
        found = {str(name): str(value) for name, value in dict(json.loads(header["conditions"])).items()}
        return Snapshot(spec, step, found, header.get("memo", ""))
    except FileNotFoundError:
        raise BadSnapshot(f"there is no snapshot at {path}") from None
    except BROKEN as error:
        raise BadSnapshot(f"{path} is not a snapshot of broll: {str(error).splitlines()[0]}") from error
