"""The rendered clips, where crops are cut from them: in a GPU's memory, or mapped from disk beside a CPU."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.render import clip_path


def rendered(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "clips").glob("*.npy"))


class Clips:
    """At most `room` clips of the run's folder; `refresh` takes in what was rendered since."""

    def __init__(self, folder: Path, device: str, room: int) -> None:
        self.folder, self.device, self.room = folder, device, room
        self.indices: list[int] = []
        self._data: list[np.ndarray | Tensor] = []

    def __len__(self) -> int:
        return len(self.indices)

    def refresh(self, at_most: int = 1_000_000) -> None:
        known = set(self.indices)
        new = [i for i in rendered(self.folder) if i not in known]
        for index in new[: min(at_most, self.room - len(self))]:
            mapped = np.load(clip_path(self.folder, index), mmap_mode="r")
            self.add(
                index, mapped if self.device == "cpu" else torch.from_numpy(mapped.copy()).to(self.device)
            )

    def add(self, index: int, clip: "np.ndarray | Tensor") -> None:
        """A clip [f, 3, h, w] of uint8."""
        self.indices.append(index)
        self._data.append(clip)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width of a clip."""
        frames, _, height, width = self._data[0].shape
        return frames, height, width

    def cut(self, place: int, frames: slice, rows: slice, columns: slice) -> Tensor:
        """[f, 3, h, w] uint8 of the clip at this place of `indices`."""
        part = self._data[place][frames, :, rows, columns]
        return part if isinstance(part, Tensor) else torch.from_numpy(part.copy())
