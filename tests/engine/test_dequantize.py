"""Stored kinds against the gguf library's own dequantizers and torch's own fp8, exactly; and how far from fp32."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from broll.engine import dequantize as module
from broll.engine.dequantize import KINDS, dequantize
from tests import formats

BLOCKS = (*formats.LEGACY, *formats.K_KINDS)
HALVES = {"Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q6_K": (208,)}
# Relative error of normal random weights, root mean square: twice what is measured here.
BOUNDS = {
    "Q8_0": 0.012, "Q6_K": 0.04, "Q5_K": 0.07, "Q5_1": 0.08, "Q5_0": 0.09, "Q4_K": 0.15, "Q4_1": 0.16,
    "Q4_0": 0.19, "F8_E4M3": 0.06, "F8_E5M2": 0.12,
}  # fmt: skip


def random_blocks(kind, rows=7, columns=1024, seed=0):
    """Any bytes, but scales that are numbers."""
    values, size, _ = KINDS[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * columns // values, size), dtype=np.uint8)
    for start in HALVES.get(kind, (0, 2)):
        scales = random.normal(0, 0.1, len(blocks)).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", BLOCKS)
def test_any_block_is_what_the_gguf_library_makes_of_it(kind):
    for seed in range(3):
        blocks = random_blocks(kind, seed=seed)
        theirs = torch.from_numpy(gguf.quants.dequantize(blocks, Kind[kind]))
        assert torch.equal(dequantize(torch.from_numpy(blocks), kind, torch.float32), theirs)


@pytest.mark.parametrize("kind", BLOCKS)
def test_one_block_alone_is_read(kind):
    blocks = random_blocks(kind, rows=1, columns=KINDS[kind].values)
    theirs = torch.from_numpy(gguf.quants.dequantize(blocks, Kind[kind]))
    assert torch.equal(dequantize(torch.from_numpy(blocks), kind, torch.float32), theirs)


@pytest.mark.parametrize("kind", BLOCKS)
def test_block_sizes_are_those_of_the_gguf_library(kind):
    assert gguf.constants.GGML_QUANT_SIZES[Kind[kind]] == KINDS[kind][:2]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_every_value_of_a_byte(dtype):
    data = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
    kind = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}[dtype]
    ours, theirs = dequantize(data, kind, torch.float32), data.view(dtype).float()
    assert torch.equal(ours.nan_to_num(-1, 9, -9), theirs.nan_to_num(-1, 9, -9))


@pytest.mark.parametrize("parts", [None, 1, 4])
def test_a_scale_multiplies_the_matrix_its_rows_or_parts_of_them(parts):
    weight = torch.randn(6, 32)
    data, scale = formats.to_fp8(weight, parts)
    ours = dequantize(data.view(torch.uint8), "F8_E4M3", torch.float32, scale)
    by_hand = (data.float().reshape(*scale.shape[:2], -1) * scale).reshape(6, 32)
    assert torch.equal(ours, by_hand)
    assert (ours - weight).norm() / weight.norm() < BOUNDS["F8_E4M3"]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_a_matrix_done_in_pieces_is_the_same(kind, monkeypatch):
    blocks = torch.from_numpy(random_blocks(kind, rows=9))
    whole = dequantize(blocks, kind, torch.float32)
    monkeypatch.setitem(module.CHUNK, "cpu", 2048)
    assert torch.equal(dequantize(blocks, kind, torch.float32), whole)
    assert torch.equal(dequantize(blocks, kind, torch.bfloat16), whole.bfloat16())


def test_scales_of_rows_follow_the_pieces(monkeypatch):
    data, scale = formats.to_fp8(torch.randn(9, 64), 4)
    whole = dequantize(data.view(torch.uint8), "F8_E4M3", torch.float32, scale)
    monkeypatch.setitem(module.CHUNK, "cpu", 128)
    assert torch.equal(dequantize(data.view(torch.uint8), "F8_E4M3", torch.float32, scale), whole)


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_kind_is_as_near_to_fp32_as_its_bits_allow(kind):
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    if kind in BLOCKS:
        got = dequantize(torch.from_numpy(formats.to_blocks(weight, kind)), kind, torch.float32)
    else:
        dtype = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[kind]
        got = dequantize(weight.to(dtype).view(torch.uint8), kind, torch.float32)
    error = float((got - weight).norm() / weight.norm())
    assert BOUNDS[kind] / 5 < error < BOUNDS[kind]
