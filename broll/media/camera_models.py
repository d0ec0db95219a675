"""How much of a field each kind of camera explains, and the marks that tell alike kinds apart.

    rest        nothing moves
    rigid       a turn of the camera or of its lens: all depths alike. across = a (1 + k x²) + k b x y + s x - r y, and
                down likewise: a pan, b tilt, s zoom, r roll, k = 1 / focal length²; by consensus of pairs of cells
    sliding     truck: every cell moves to one side or rests, at any depth; rising: pedestal, the same up or down
    growing     dolly: every cell moves away from a middle or rests, or towards it
    orbiting    turns one way; what is near may be slower, still, or go the other way

    swelling    whether cells of one row move apart (+1) or together (-1); purity: how much of their motion does
    two_sided   the cells at the left and those at the right both do: the weight of the lesser side
    sideways    how much of the motion across goes to one side, -1 to 1; both_sides: the weight of the lesser side
    bow         down against x y: a camera that turns bends what it sees, one that moves sideways does not
    held        at the middle something stays while the sides move: in how many chains; still_middle: weight of cells

A share is 1 within the slack of a rate and falls to 0 at twice that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broll.media.camera_field import SHARE, SLACK, Field
from broll.media.camera_track import Chain

Floats = NDArray[np.float64]

BENDS = (0.0, 0.6, 1.2)
PAIRS = 400  # of cells tried
APART = 0.25  # frame widths between the two
REACH = 0.3  # frame widths between cells of a row that are compared
MIDDLES = (-0.15, -0.1, -0.05, 0.0, 0.05, 0.1)  # frame widths: how far below the middle a dolly may aim
MIDDLE, SIDE = 0.12, 0.22  # frame widths: |x| of the middle and of the sides
STAYS = 0.2  # of the rate at the sides: slower is held


@dataclass(frozen=True)
class Rigid:
    share: float
    across: float  # rate at the middle of the picture, and so on: see above
    down: float
    grow: float
    lean: float


@dataclass(frozen=True)
class Evidence:
    cells: int
    weight: float
    rest: float
    rigid: Rigid
    left: float  # sliding: the picture moves to the left
    right: float
    up: float
    down: float
    bigger: float
    smaller: float
    orbit_left: float  # orbiting: the far sides move to the left
    orbit_right: float
    growth: float  # middle slope of the rows
    swelling: float
    purity: float
    two_sided: float
    sideways: float
    both_sides: float
    pace: float  # middle size of the rate across of what moves
    bow: float
    bow_sure: float  # in standard errors
    bow_across: float  # the same of a tilt: across against x y
    held: float
    still_middle: float
    steady: float  # 1 if it never goes back

    @property
    def plain(self) -> float:
        """How much the best of the simple cameras explains."""
        return max(
            self.rest, self.rigid.share, self.left, self.right, self.up, self.down, self.bigger, self.smaller
        )


def within(miss: Floats, size: Floats | float) -> Floats:
    return np.asarray(np.clip(2 - miss / (SLACK + SHARE * size), 0, 1))


def ratio(values: Floats, weight: Floats) -> float:
    total = float((np.abs(values) * weight).sum())
    return float((values * weight).sum()) / total if total > 0 else 0.0


def rigid(field: Field) -> Rigid:
    """The similarity, bent by a lens, that most of the weight agrees with."""
    place, rate = field.x + 1j * field.y, field.across + 1j * field.down
    i, j = np.triu_indices(len(field), 1)
    apart = np.abs(place[i] - place[j]) > APART
    i, j = i[apart], j[apart]
    if len(i) > PAIRS:
        some = np.linspace(0, len(i) - 1, PAIRS).astype(int)
        i, j = i[some], j[some]
    twist = (rate[j] - rate[i]) / (place[j] - place[i])
    # Pairs give all four numbers; single cells a pure pan or tilt; and nothing at all.
    spin = np.r_[0j * rate, twist, 0j]
    shift = np.r_[rate, rate[i] - twist * place[i], 0j]
    best = Rigid(-1, 0, 0, 0, 0)
    for bend in BENDS:
        a, b, s, r = (each[:, None] for each in (shift.real, shift.imag, spin.real, spin.imag))
        across = a * (1 + bend * field.x**2) + bend * b * field.x * field.y + s * field.x - r * field.y
        down = b * (1 + bend * field.y**2) + bend * a * field.x * field.y + s * field.y + r * field.x
        miss = np.hypot(across - field.across, down - field.down)
        agreed = within(miss, np.hypot(across, down)) @ field.weight / field.weight.sum()
        # Among equals the closer one, and the simpler one, which comes first.
        score = agreed - 1e-3 * np.minimum(1, miss / SLACK).mean(axis=1)
        top = int(score.argmax())
        if score[top] > best.share:
            best = Rigid(
                *(float(each) for each in (agreed[top], shift[top].real, shift[top].imag)),
                *(float(each) for each in (spin[top].real, spin[top].imag)),
            )
    return best


def one_way(field: Field, along: Floats, aside: Floats, sign: int) -> float:
    """Everything moves along one direction, or rests."""
    miss = np.hypot(np.where(along * sign > 0, 0, along), aside)
    return field.share(within(miss, np.abs(along)))


def outward(field: Field, sign: int) -> float:
    """Away from a middle (+1) or towards it (-1)."""
    best = 0.0
    for middle in MIDDLES:
        y = field.y - middle
        radius = np.hypot(field.x, y)
        grow = (field.across * field.x + field.down * y) / radius
        turn = (field.down * field.x - field.across * y) / radius
        miss = np.hypot(np.where(grow * sign > 0, 0, grow), turn)
        best = max(best, field.share(within(miss, 2 * np.abs(grow))))
    return best


def orbiting(field: Field, sign: int) -> float:
    """Nothing is faster than the far sides, and all is bent no more than they are."""
    far = float(np.quantile(field.across * sign, 0.9))
    best = 0.0
    for bend in BENDS[1:]:
        most = far * (1 + bend * field.x**2) * 1.25
        fast = np.maximum(field.across * sign - most, 0)
        bent = np.maximum(np.abs(field.down) - np.abs(far * bend * field.x * field.y) * 1.3, 0)
        best = max(best, field.share(within(np.hypot(fast, bent), np.abs(field.across))))
    return best


def swelling(field: Field) -> tuple[float, float, float]:
    """growth, swelling and purity; slopes are cut at 2 % a second, so that a few fast cells do not outvote the rest."""
    i, j = np.triu_indices(len(field), 1)
    pair = (field.row[i] == field.row[j]) & (np.abs(field.x[i] - field.x[j]) >= REACH)
    i, j = i[pair], j[pair]
    weight = field.weight[i] * field.weight[j]
    if weight.sum() == 0:
        return 0.0, 0.0, 0.0
    growth = (field.across[j] - field.across[i]) / (field.x[j] - field.x[i])
    slope = np.clip(growth / 0.02, -1, 1)
    clear = np.where(np.abs(slope) < 0.25, 0, slope)
    return float(np.median(growth)), float((slope * weight).sum() / weight.sum()), ratio(clear, weight)


def lesser_side(field: Field, motion: Floats) -> float:
    """The smaller of two sums of weight times motion: of the cells at the left and of those at the right."""
    total = motion * field.weight
    return float(min(total[field.x < -0.1].sum(), total[field.x > 0.1].sum()))


def bow(field: Field, rate: Floats) -> tuple[float, float]:
    """Of rate = bow x y + a plane, by reweighted least squares; the bow and its size in standard errors."""
    basis = np.stack([field.x * field.y, np.ones(len(field)), field.x, field.y], axis=1)
    weight = field.weight
    for _ in range(8):
        root = np.sqrt(weight)
        found = np.linalg.lstsq(basis * root[:, None], rate * root, rcond=None)[0]
        miss = rate - basis @ found
        scale = 1.48 * float(np.median(np.abs(miss))) + 1e-4
        weight = field.weight / (1 + (miss / (2 * scale)) ** 2)
    spread = np.linalg.pinv((basis * weight[:, None]).T @ basis)[0, 0]
    error = np.sqrt(max(spread, 0) * (weight * miss**2).sum() / weight.sum())
    return float(found[0]), float(abs(found[0]) / max(error, 1e-4))


def held(chains: Sequence[Chain], fps: float, pan: float) -> float:
    """The share of chains in which two tracks at the middle stay, or go against the sides."""
    seen = []
    for chain in chains:
        across, x = chain.rate(fps)[:, 0], np.abs(chain.at[:, 0])
        sides = across[x > SIDE]
        if len(sides) >= 5:
            far = pan if abs(pan) > 5 * SLACK else float(np.median(sides))
            seen.append((across[x < MIDDLE] * np.sign(far) < STAYS * abs(far)).sum() >= 2)
    return float(np.mean(seen)) if seen else 0.0


def still_middle(field: Field) -> float:
    """The weight of cells at the middle that stay while the sides of their row move, with the sign of the sides."""
    rows = []
    for row in range(1, 6):
        here, side = field.row == row, np.abs(field.x) > SIDE
        left, right = (field.across[here & side & each] for each in (field.x < 0, field.x > 0))
        middle = here & (np.abs(field.x) < MIDDLE)
        if len(left) + len(right) >= 3 and len(left) and len(right) and middle.any():
            ends = float(np.median(left)), float(np.median(right))
            if ends[0] * ends[1] > 0:
                rows.append((min(ends, key=abs), field.across[middle], field.weight[middle]))
    largest = max((abs(side) for side, *_ in rows), default=0.0)
    fast = [row for row in rows if abs(row[0]) > 0.4 * largest]
    stays = [
        float((weight * (across * np.sign(side) < 0.25 * abs(side))).sum())
        for side, across, weight in fast
        if abs(side) > 0.02
    ]
    return sum(stays) * float(np.sign(fast[0][0])) if fast else 0.0


def evidence(field: Field, chains: Sequence[Chain], fps: float) -> Evidence:
    across, down = field.across, field.down
    turned = rigid(field)
    growth, swell, purity = swelling(field)
    moved = np.clip((np.abs(across) - 0.007) / 0.004, 0, 1) * np.sign(across)
    side = ratio(np.where(np.abs(across) < SLACK, 0, across), field.weight)
    plain = np.clip(np.abs(across) / SLACK, 0, 1) * np.sign(across)
    fast = field.weight * (np.abs(across) > 0.008)
    bend, sure = bow(field, down)
    return Evidence(
        cells=len(field),
        weight=float(field.weight.sum()),
        rest=field.share(within(np.hypot(across, down), 0.0)),
        rigid=turned,
        left=one_way(field, across, down, -1),
        right=one_way(field, across, down, 1),
        up=one_way(field, down, across, -1),
        down=one_way(field, down, across, 1),
        bigger=outward(field, 1),
        smaller=outward(field, -1),
        orbit_left=orbiting(field, -1),
        orbit_right=orbiting(field, 1),
        growth=growth,
        swelling=swell,
        purity=purity,
        two_sided=lesser_side(field, moved * np.sign(field.x) * np.sign(swell)),
        sideways=side,
        both_sides=lesser_side(field, plain * np.sign((across * field.weight).sum())),
        pace=float((np.abs(across) * fast).sum() / max(fast.sum(), 1e-9)),
        bow=bend,
        bow_sure=sure,
        bow_across=bow(field, across)[0],
        held=held(chains, fps, turned.across),
        still_middle=still_middle(field),
        steady=field.steady,
    )
