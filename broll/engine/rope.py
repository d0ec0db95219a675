"""Rotary positions in three dimensions: a token's frame, row and column each turn part of its query and key.

Of a head's d/2 complex pairs, height and width take d//6 each and time takes the rest. Pair i of an axis
with k pairs turns by position * 10000 ** (-i / k), in double precision, as the official code does.

    RoFormer      https://arxiv.org/abs/2104.09864
    WAN 2.1       wan/modules/model.py, rope_params and rope_apply
"""

import torch
from jaxtyping import Complex
from torch import Tensor

from broll.engine.shapes import Grid, Heads

THETA = 10_000.0
Rotary = Complex[Tensor, "n r"]  # unit numbers, r = d / 2


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many complex pairs of a head belong to time, height and width."""
    side = head_dim // 6
    return head_dim // 2 - 2 * side, side, side


def rotary(grid: Grid, head_dim: int, device: torch.device | str = "cpu") -> Rotary:
    """The turn of every token of the grid, in the order of tokens: frame, row, column. Made on the CPU, whatever the
    default device is: each device has its own last bit of a sine, and on meta a range of numbers imports the compiler.
    """
    axes = []
    for length, pairs, place in zip(
        (grid.frames, grid.height, grid.width), axis_pairs(head_dim), (0, 1, 2), strict=True
    ):
        positions = torch.arange(length, dtype=torch.float64, device="cpu")
        speeds = THETA ** (-torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs)
        shape = [1, 1, 1, pairs]
        shape[place] = length
        axes.append(torch.outer(positions, speeds).reshape(shape))
    angles = torch.cat([a.expand(grid.frames, grid.height, grid.width, -1) for a in axes], dim=-1)
    angles = angles.flatten(0, 2)
    return torch.polar(torch.ones_like(angles), angles).to(device, torch.complex64)


def rotate(x: Heads, turns: Rotary) -> Heads:
    """Turn each pair (x[2i], x[2i+1]); in fp32, whatever the dtype of x."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)
