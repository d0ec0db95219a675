"""What the text encoder said of prompts, kept on this disk: `data/prompts`, a file for each.

A file's name is a hash of all that its features depend on: the prompt, the tokenizer, the encoder's weights, which the
engine puts together (engine/load.py), and this machine, since another one rounds differently. So what is found is what
would be computed, bit for bit. Inside are the features, their digest, and no word of the prompt.

When it is full, what was not used for the longest time goes. A file that cannot be read, or that is not what it says it
is, is as good as none; and what cannot be written is not worth an error.
"""
# ruff: noqa: PLC0415  torch is there once a model is loaded

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from broll import catalog, pace, wiring
from broll.errors import OutputError
from broll.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "prompts"
TENSOR = "features"


@dataclass(frozen=True)
class Shelf:
    """engine.text_encoder.Kept, on a disk."""

    folder: Path
    most_bytes: int
    machine: str

    def find(self, name: str) -> "Tensor | None":
        from safetensors import SafetensorError, safe_open

        path = self._path(name)
        try:
            with safe_open(path, framework="pt") as file:
                features, said = file.get_tensor(TENSOR).clone(), (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError):
            return None
        if digest(path, features) != said:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        return features.float()

    def keep(self, name: str, features: "Tensor") -> None:
        from safetensors.torch import save

        path, least = self._path(name), smallest(features.detach().cpu().contiguous())
        data = save({TENSOR: least}, {"sha256": digest(path, least)})
        if len(data) <= self.most_bytes:
            with contextlib.suppress(OutputError):
                wiring.write_whole(path, data)
            self._sweep()

    def _path(self, name: str) -> Path:
        whole = hashlib.sha256(f"{self.machine}\n{name}".encode()).hexdigest()
        return self.folder / f"{whole}.safetensors"

    def _sweep(self) -> None:
        """What a killed process left half-written goes like the rest."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process took it away
                    facts = entry.stat()
                    found.append((facts.st_mtime_ns, facts.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.most_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            total -= size


def smallest(features: "Tensor") -> "Tensor":
    """In half the bytes where that loses nothing: an encoder that runs in bf16 says no more."""
    import torch

    half = features.to(torch.bfloat16)
    return half if torch.equal(half.to(features.dtype), features) else features


def digest(path: Path, features: "Tensor") -> str:
    """Of the numbers, and of the name that they belong to."""
    import torch

    return hashlib.sha256(path.stem.encode() + features.view(torch.uint8).numpy().tobytes()).hexdigest()


def shelf(settings: Settings) -> Shelf | None:
    """Of this machine; None if it is switched off."""
    if settings.prompt_cache_mb == 0:
        return None
    machine = pace.machine_of(catalog.device())
    return Shelf(settings.data / FOLDER, settings.prompt_cache_mb * 10**6, machine)
