"""Every way to compute attention is held to its definition."""

import pytest
import torch

from broll.engine import attention, kernels
from broll.engine.attention import AttendCall
from broll.engine.shapes import Grid

GRID = Grid(2, 4, 5)
CPU = kernels.Here.of(torch.device("cpu"), torch.bfloat16)
HERE = [name for name in attention.BACKENDS if not kernels.refusal(name, CPU)]


def heads(n, dtype, seed):
    return torch.randn(2, 3, n, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("elements", [200, 25_000])
def test_backend_agrees_with_reference(name, dtype, limit, biased, elements, monkeypatch):
    """`blocked` in several blocks: of queries, and of heads."""
    monkeypatch.setattr(attention, "BLOCK_ELEMENTS", elements)
    q, k, v = (heads(n, dtype, i) for i, n in enumerate((150, 70, 70)))
    bias = torch.linspace(-2, 3, 70) if biased else None
    call = AttendCall("text", 0, GRID, key_bias=bias)
    truth = attention.reference(q.double(), k.double(), v.double(), call)
    out = attention.BACKENDS[name].attend(q, k, v, call)
    assert out.dtype == dtype
    assert (out.double() - truth).norm() / truth.norm() < limit


def test_a_key_with_the_weight_of_many_equals_many_keys():
    q, k, v = (heads(n, torch.float32, i) for i, n in enumerate((20, 5, 5)))
    many = AttendCall("text", 0, GRID)
    repeated = [torch.cat([x, x[:, :, -1:].expand(-1, -1, 99, -1)], dim=2) for x in (k, v)]
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0]).clamp(min=1).log()
    one = AttendCall("text", 0, GRID, key_bias=bias)
    expected = attention.sdpa(q, *repeated, many)
    torch.testing.assert_close(attention.sdpa(q, k, v, one), expected, atol=1e-6, rtol=1e-5)
