"""What the transformer holds in memory while it runs; that it computes what it should, tests/parity says."""

import subprocess
import sys

import pytest
import torch

from broll.engine import transformer
from broll.engine.rope import rotary
from broll.engine.shapes import Grid
from broll.engine.transformer import RMSNorm, turned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turn", [True, False])
def test_queries_made_some_at_a_time_have_the_same_bits(dtype, turn, monkeypatch):
    norm, y = RMSNorm(24, 1e-6), torch.randn(2, 30, 24).to(dtype)
    turns = rotary(Grid(2, 3, 5), 12) if turn else None
    with torch.inference_mode():
        at_once = turned(norm, y, 2, turns)
        monkeypatch.setattr(transformer, "CPU_PART", 8)
        in_parts = turned(norm, y, 2, turns)
    assert torch.equal(in_parts, at_once)
    assert (in_parts.dtype, in_parts.stride()) == (dtype, at_once.stride())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_tokens_widened_some_at_a_time_are_those_widened_at_once(dtype, limit, monkeypatch):
    """Up to the order in which a product of another size adds."""
    ffn = torch.nn.Sequential(torch.nn.Linear(24, 60), torch.nn.GELU(), torch.nn.Linear(60, 24)).to(dtype)
    x = torch.randn(2, 30, 24, dtype=dtype)
    with torch.inference_mode():
        monkeypatch.setattr(transformer, "CPU_FFN_PART", 8)
        y = ffn(x)
        assert (transformer.widened(ffn, x) - y).norm() / y.norm() < limit


LET_GO = """
import torch, weakref
from tests import checkpoints
from broll.engine.shapes import Grid
from broll.engine.transformer import Transformer

model = checkpoints.built(lambda: Transformer(checkpoints.transformer_numbers()))
first = []

def watch(block, given):
    print(bool(first) and first[0]() is None)
    first.append(weakref.ref(given[0]))

for block in model.blocks:
    block.register_forward_pre_hook(watch)
with torch.inference_mode():
    model(torch.randn(1, 16, 1, 4, 4), torch.ones(1), model.context(Grid(1, 4, 4), torch.randn(1, 3, 16)))
"""


def test_the_tokens_that_go_in_are_let_go_after_the_first_block():
    """In a process of its own: what checks the shapes in tests holds what it checks."""
    run = subprocess.run([sys.executable, "-c", LET_GO], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]
