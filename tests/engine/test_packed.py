"""Packed Linears against plain ones."""

import pytest
import torch
import torch.nn.functional as F

from broll.engine import packed
from broll.engine.shapes import Grid
from broll.engine.transformer import Transformer, set_precision
from tests.parity.judge import TASKS, relative, shake

pytestmark = pytest.mark.skipif(not packed.available(), reason="this torch or CPU cannot pack bf16")


def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(96, 160).to(torch.bfloat16).requires_grad_(False)


def test_a_packed_linear_equals_a_plain_one():
    plain = linear()
    x = torch.randn(2, 50, 96).bfloat16()
    assert relative(packed.PackedLinear(plain)(x), plain(x)) < 1e-3


def test_gelu_inside_the_product_is_nearer_to_the_truth_than_outside():
    plain = linear()
    x = torch.randn(2, 50, 96).bfloat16()
    exact = F.gelu(F.linear(x.double(), plain.weight.double(), plain.bias.double()), approximate="tanh")
    inside = relative(packed.PackedLinear(plain, gelu=True)(x), exact)
    assert inside < 3e-3
    assert inside <= relative(F.gelu(plain(x), approximate="tanh"), exact)


def test_a_packed_transformer_stays_as_close_to_fp32_as_an_unpacked_one():
    config = TASKS["i2v"]
    models = []
    for _ in range(3):
        model = Transformer(config).eval().requires_grad_(False)
        shake(model)
        models.append(model)
    exact, plain, fast = models
    set_precision(plain, torch.bfloat16)
    packed.pack(set_precision(fast, torch.bfloat16))
    assert isinstance(fast.blocks[0].self_attn.q, packed.PackedLinear)
    x, t = torch.randn(1, 36, 3, 8, 12), torch.tensor([500.0])
    text, image = torch.randn(1, 20, 32), torch.randn(1, 17, 40)
    with torch.inference_mode():
        out = [m(x, t, m.context(Grid(3, 8, 12), text, image)) for m in (exact, plain, fast)]
    assert relative(out[2], out[0]) < 1.2 * relative(out[1], out[0])


def test_an_fp32_model_is_left_as_it_is():
    model = packed.pack(Transformer(TASKS["t2v"]))
    assert isinstance(model.blocks[0].self_attn.q, torch.nn.Linear)
