"""What tracks say together: the motion of the picture on a grid, and its parts.

    votes     every chain has one vote in every cell of ROWS x COLUMNS, the middle rate of its tracks there
    field     the middle vote of every cell over the clip: a subject that crosses is in a cell for a moment only, and
              one that stays is a few cells of many
    parts     every cell votes once, and the middle vote counts, so that a third of the picture may do as it likes:

              across, down   the middle rate
              grow           d x-rate / d x from pairs of cells in one row, which share their depth more often than
                             not, if d y-rate / d y from pairs in one column says the same
              lean           d y-rate / d x, if d x-rate / d y says the opposite
              far, subject   the x-rate at the sides above the floor, and in the middle, where a subject stands
              bend, spread   across = c (1 + k x²) for a camera that turns, k = 1 / focal length²: how much is left

    residual  a turn of the camera moves all depths alike, a move of the camera does not: what is left is parallax. It
              is measured where MOST of the cells are below, because one plane alone may be half of the picture

Rates are in frame widths a second, x right and y down, of the picture: the camera's are the opposite.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broll.media.camera_track import Chain

Floats = NDArray[np.float64]
Cells = NDArray[np.int64]

ROWS, COLUMNS = 6, 10
OFTEN = 0.4  # of the chains: a cell in which only a passing subject is ever seen has no vote
FEWEST = 4  # cells that say anything
BENDS = np.linspace(0, 1.8, 10)  # 1 / focal length²; 1.8 is a view of 67 degrees
REACH_X, REACH_Y = 0.3, 0.25  # how far apart cells of a pair are: frame widths, frame heights
MOST = 0.7  # of the cells: the rest may be subjects
SIDE, MIDDLE = 0.2, 0.12  # frame widths from the middle


@dataclass(frozen=True)
class Field:
    """One value for every cell that was seen, n of them."""

    row: Cells
    column: Cells
    x: Floats
    y: Floats
    across: Floats
    down: Floats

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Parts:
    """Of a field; see above. Rates a second."""

    cells: int
    across: float = 0.0
    down: float = 0.0
    grow: float = 0.0
    lean: float = 0.0
    far: float = 0.0
    subject: float = 0.0
    spread_across: float = 0.0  # share of the rate that no turn of the camera explains
    spread_down: float = 0.0
    spread_grow: float = 0.0


def cell_of(chain: Chain, aspect: float) -> Cells:
    """[n]: the cell of every track."""
    column = np.clip(((chain.at[:, 0] + 0.5) * COLUMNS).astype(int), 0, COLUMNS - 1)
    row = np.clip(((chain.at[:, 1] / aspect + 0.5) * ROWS).astype(int), 0, ROWS - 1)
    return np.asarray(row * COLUMNS + column)


def votes(chains: Sequence[Chain], fps: float, aspect: float) -> Floats:
    """[chains, cells, 2]: the middle rate of the tracks of every chain in every cell; nan where there is none."""
    found = np.full((len(chains), ROWS * COLUMNS, 2), np.nan)
    for vote, chain in zip(found, chains, strict=True):
        rate, cell = chain.moved * fps / chain.steps, cell_of(chain, aspect)
        for each in np.unique(cell):
            vote[each] = np.median(rate[cell == each], axis=0)
    return found


def gather(vote: Floats, aspect: float) -> Field:
    """The field of [chains, cells, 2]: the middle vote of the cells that vote OFTEN enough."""
    often = np.isfinite(vote[..., 0]).sum(axis=0)
    seen = np.flatnonzero(often >= max(1, OFTEN * len(vote)))
    middle = np.nanmedian(vote[:, seen], axis=0) if len(seen) else np.zeros((0, 2))
    row, column = np.divmod(seen, COLUMNS)
    return Field(
        row=row,
        column=column,
        x=(column + 0.5) / COLUMNS - 0.5,
        y=((row + 0.5) / ROWS - 0.5) * aspect,
        across=middle[:, 0],
        down=middle[:, 1],
    )


def median(values: Floats) -> float:
    return float(np.median(values)) if len(values) else 0.0


def most(values: Floats) -> float:
    return float(np.quantile(values, MOST)) if len(values) else 0.0


def slope(group: Cells, place: Floats, value: Floats, reach: float) -> float:
    """The middle slope over all pairs of one group that are at least `reach` apart (Theil, Sen)."""
    i, j = np.triu_indices(len(place), 1)
    pair = (group[i] == group[j]) & (np.abs(place[j] - place[i]) >= reach)
    i, j = i[pair], j[pair]
    return median((value[j] - value[i]) / (place[j] - place[i]))


def agreeing(one: float, other: float) -> float:
    """The one, if the other has its sign and is not far smaller."""
    return one if one * other > 0 and abs(other) > 0.25 * abs(one) else 0.0


def spread(along: Floats, aside: Floats, place: Floats, other: Floats) -> float:
    """How far a rate is from any turn of a camera: along = c (1 + k place²), aside = c k place other."""
    corner = np.abs(place * other) > 0.02
    best, found = np.inf, 0.0
    for bend in BENDS:
        rise = 1 + bend * place**2
        rate = median(along / rise)
        left = most(np.abs(along - rate * rise))
        miss = left + median(np.abs(aside - rate * bend * place * other)[corner])
        if miss < best:
            best, found = miss, left / max(abs(rate), 1e-6)
    return found


def parts(field: Field, aspect: float) -> Parts:
    if len(field) < FEWEST:
        return Parts(len(field))
    x, y, u, v = field.x, field.y, field.across, field.down
    tall = REACH_Y * aspect
    grow = agreeing(slope(field.row, x, u, REACH_X), slope(field.column, y, v, tall))
    lean = agreeing(slope(field.row, x, v, REACH_X), -slope(field.column, y, u, tall))
    left = np.hypot(u - grow * x - median(u - grow * x), v - grow * y - median(v - grow * y))
    side = (np.abs(x) > SIDE) & (field.row < 4)
    subject = (np.abs(x) < MIDDLE) & (field.row > 0) & (field.row < 5)
    return Parts(
        cells=len(field),
        across=median(u),
        down=median(v),
        grow=grow,
        lean=lean,
        far=median(u[side]),
        subject=median(u[subject]),
        spread_across=spread(u, v, x, y),
        spread_down=spread(v, u, y, x),
        spread_grow=most(left) / max(abs(grow) * median(np.hypot(x, y)), 1e-6),
    )
