"""What tracks say together: how the picture moves, cell by cell, and how far each cell is to be believed.

    vote    every chain has one vote in every cell of ROWS x COLUMNS: the middle rate of its tracks there
    pace    a camera starts and stops softly: how fast each chain is beside the middle of all, one number a chain
    field   the middle vote of every cell, weighted by how often it votes and how well its votes agree once the pace is
            taken out. A cell that only a passing subject shows, water or leaves, and grain in a flat sky vote seldom or
            at odds with themselves, and weigh little

Rates are in frame widths a second, x right and y down, of the picture; places in frame widths from its middle. The
camera's own moves are the opposite.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broll.media.camera_track import Chain

Floats = NDArray[np.float64]
Cells = NDArray[np.int64]

ROWS, COLUMNS = 6, 10
SLACK, SHARE = 0.006, 0.12  # a rate is the same as another within SLACK, and SHARE of its size
OFTEN = 0.4  # of the chains: a cell that votes less weighs less
SELDOM = 0.25  # and below this, nothing
BELIEVED = 0.05  # the least weight that counts
FEWEST = 4  # cells that say anything together


@dataclass(frozen=True)
class Field:
    """One value for every cell that is believed, n of them."""

    row: Cells
    x: Floats
    y: Floats
    across: Floats
    down: Floats
    weight: Floats  # 0 to 1
    steady: float  # the sum of all paces against the sum of their sizes: 1 if it never goes back

    def __len__(self) -> int:
        return len(self.x)

    def share(self, part: Floats) -> float:
        """Of all weight; `part` is 0 to 1 for each cell."""
        return float((part * self.weight).sum() / self.weight.sum())


def cell_of(chain: Chain, aspect: float) -> Cells:
    """[n]: the cell of every track; aspect: height / width of the frame."""
    column = np.clip(((chain.at[:, 0] + 0.5) * COLUMNS).astype(int), 0, COLUMNS - 1)
    row = np.clip(((chain.at[:, 1] / aspect + 0.5) * ROWS).astype(int), 0, ROWS - 1)
    return np.asarray(row * COLUMNS + column)


def votes(chains: Sequence[Chain], fps: float, aspect: float) -> Floats:
    """[chains, cells, 2]: nan where a chain has no track in a cell."""
    found = np.full((len(chains), ROWS * COLUMNS, 2), np.nan)
    for vote, chain in zip(found, chains, strict=True):
        rate, cell = chain.rate(fps), cell_of(chain, aspect)
        for each in np.unique(cell):
            vote[each] = np.median(rate[cell == each], axis=0)
    return found


def paces(vote: Floats, middle: Floats) -> Floats:
    """[chains]: how many times the middle field each chain is, negative if it goes back; 1 where nothing moves."""
    moving = np.linalg.norm(middle, axis=1) > 2 * SLACK
    found = np.ones(len(vote))
    if moving.sum() >= FEWEST:
        size = (middle[moving] ** 2).sum(axis=1)
        along = (vote[:, moving] * middle[moving]).sum(axis=2) / size
        for index, ratio in enumerate(along):
            seen = ratio[np.isfinite(ratio)]
            found[index] = np.clip(np.median(seen), -4, 4) if len(seen) >= FEWEST else 1.0
    return found


def gather(vote: Floats, aspect: float) -> Field:
    """The field of [chains, cells, 2]."""
    often = np.isfinite(vote[..., 0]).sum(axis=0)
    seen = np.flatnonzero(often >= max(1, min(2, len(vote)), SELDOM * len(vote)))
    vote, often = vote[:, seen], often[seen]
    if len(seen) == 0:
        empty = np.zeros(0)
        return Field(np.zeros(0, np.int64), empty, empty, empty, empty, empty, 1.0)
    middle = np.nanmedian(vote, axis=0)
    pace = paces(vote, middle)
    off = np.linalg.norm(vote - pace[:, None, None] * middle, axis=2)
    odds = 1.48 * np.nanmedian(off, axis=0)
    size = np.linalg.norm(middle, axis=1)
    weight = np.minimum(1, often / (OFTEN * len(vote))) ** 2 / (1 + (odds / (SLACK + SHARE * size)) ** 2)
    kept = weight > BELIEVED
    row, column = np.divmod(seen[kept], COLUMNS)
    return Field(
        row=row,
        x=(column + 0.5) / COLUMNS - 0.5,
        y=((row + 0.5) / ROWS - 0.5) * aspect,
        across=middle[kept, 0],
        down=middle[kept, 1],
        weight=weight[kept],
        steady=float(abs(pace.sum()) / max(np.abs(pace).sum(), 1e-9)),
    )
