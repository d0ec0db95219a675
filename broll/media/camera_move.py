"""The camera's move, named from what the kinds of camera explain.

One name a clip, by a few questions in order:

    grows     rows swell, at both sides, and a dolly explains the field: zoom if one growth fits all, else dolly
    rises     a tilt fits all; if not, but everything goes up or down: pedestal
    rolls     the picture leans
    sideways  the bow tells a camera that turns from one that slides: pan or truck; what turns, but holds something at
              the middle or goes both ways: orbit
    none      static

Named is the camera's direction: in a pan to the right the picture moves left. A camera that turns with its subject, so
that the subject stays at the middle, looks like an orbit from the tracks alone, and is called one.

Left out: moves one after another; crane, dolly zoom and other mixtures, of which the largest part is named.
"""

from typing import Literal, cast, get_args

import numpy as np

from broll.media.camera_models import Evidence

Move = Literal[
    "static", "pan left", "pan right", "tilt up", "tilt down", "roll left", "roll right", "zoom in", "zoom out",
    "dolly in", "dolly out", "truck left", "truck right", "pedestal up", "pedestal down", "orbit left", "orbit right",
    "handheld",
]  # fmt: skip
MOVES: tuple[str, ...] = get_args(Move)

MOVES_AT = 0.012  # frame widths a second: below it a turn is none
EXPLAINED = 0.4  # share of the picture: less is nobody's motion
RADIUS = 0.25  # frame widths from the middle at which growing and leaning are compared with moving


def growing(e: Evidence) -> str | None:
    bigger = e.bigger >= e.smaller
    explained, sign = (e.bigger, 1) if bigger else (e.smaller, -1)
    swells = e.swelling * sign > 0.1 and e.purity * sign > 0.45
    others = max(e.rest, e.left, e.right, e.up, e.down, e.orbit_left, e.orbit_right)
    alone = abs(e.purity) > 0.7 and explained > others + 0.1
    sided = e.two_sided > 0.3 or (abs(e.swelling) > 0.75 and abs(e.purity) > 0.8) or alone
    # No other camera may explain as much: water and clouds swell a little too.
    best = explained > 0.75 and explained > e.rest + 0.1
    best &= explained >= max(e.orbit_left, e.orbit_right) - 0.005 and explained > max(e.up, e.down)
    if not (swells and sided and best):
        return None
    lens = e.rigid.share > 0.92 and abs(e.rigid.grow) > 0.03 and e.rest < 0.3
    return f"{'zoom' if lens else 'dolly'} {'in' if bigger else 'out'}"


def rising(e: Evidence) -> str | None:
    rigid, way = e.rigid, "up" if e.down >= e.up else "down"
    one_way = max(e.up, e.down)
    turns = rigid.share >= 0.5 and e.rest < 0.5
    if turns and abs(rigid.down) > max(MOVES_AT, 1.5 * abs(rigid.across)):
        # A tilt bends the picture; the same rate up or down everywhere without that is a far pedestal, or a long lens.
        bends = e.bow_across / rigid.down > 0.3 or one_way < rigid.share + 0.015
        kind = "tilt" if bends and rigid.share > one_way - 0.15 else "pedestal"
        return f"{kind} {'up' if rigid.down > 0 else 'down'}"
    if one_way > max(e.rest + 0.3, e.left, e.right, rigid.share):
        return f"pedestal {way}"
    return None


def leaning(e: Evidence) -> str | None:
    rigid = e.rigid
    others = max(0.01, abs(rigid.across), abs(rigid.down), RADIUS * abs(rigid.grow))
    if rigid.share >= 0.8 and e.rest < 0.5 and RADIUS * abs(rigid.lean) > others:
        return f"roll {'left' if rigid.lean > 0 else 'right'}"
    return None


def goes_sideways(e: Evidence) -> bool:
    slid = max(e.left, e.right) > e.rest + 0.15
    turned = e.rigid.share > e.rest + 0.15 and abs(e.rigid.across) > MOVES_AT
    either = max(e.orbit_left, e.orbit_right) > e.rest + 0.25
    wide = e.both_sides > 1 or e.rest < 0.5
    wide |= abs(e.sideways) > 0.95 and e.pace > 0.03 and e.both_sides > 0.3
    return (slid or turned or either) and wide


def orbits(e: Evidence, way: float, *, turns: bool) -> bool:
    explained = max(e.orbit_left, e.orbit_right)
    share, still = e.rigid.share, e.still_middle * way
    both_ways = abs(e.sideways) < 0.9 and turns and share < 0.7
    stays = still > 1.5 and e.held >= 0.9 and share < 0.95 and (turns or share < 0.75)
    holds = turns and e.held >= 0.8 and share < 0.93
    return both_ways or stays or holds or (turns and share < 0.85 and explained > share + 0.12)


def sideways(e: Evidence) -> str | None:
    if not goes_sideways(e):
        return None
    way = float(np.sign(e.sideways if abs(e.sideways) > 0.9 else e.bow))
    turns = e.bow * way > 0.5 * e.pace and e.bow_sure > 2
    if orbits(e, way, turns=turns):
        return f"orbit {'right' if way > 0 else 'left'}"
    slid = max(e.left, e.right)
    if turns or (e.rigid.share > 0.85 and slid < e.rigid.share + 0.03):
        return f"pan {'left' if e.sideways > 0 else 'right'}"
    return f"truck {'left' if e.right >= e.left else 'right'}"


def name(e: Evidence) -> Move:
    if max(e.plain, e.orbit_left, e.orbit_right) < EXPLAINED:
        return "static"
    found = growing(e) or rising(e) or leaning(e) or sideways(e) or "static"
    assert found in MOVES, found
    return cast("Move", found)
