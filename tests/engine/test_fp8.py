"""Products in fp8 itself beside their slow twin, which dequantizes; and where they are not possible."""

import pytest
import torch
from torch import nn

from broll.engine import fp8, quantized
from broll.engine.fp8 import Fp8Linear
from broll.engine.quantized import QuantizedLinear
from broll.engine.stored import Stored
from tests import formats

ROUNDING = 0.04  # of x to e4m3: 0.027 of its size, root mean square
DEVICES = [
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(
            not fp8.available(torch.device("cpu")), reason="this torch multiplies no fp8 on a CPU"
        ),
    ),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                torch.cuda.is_available() and not fp8.available(torch.device("cuda")),
                reason="this CUDA device multiplies no fp8",
            ),
        ],
    ),
]


def linear(scales, rows=96, columns=512, *, bias=True):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05
    if scales == "plain":
        held = Stored("F8_E4M3", (rows, columns), weight.to(torch.float8_e4m3fn).view(torch.uint8))
    else:
        data, scale = formats.to_fp8(weight, {"one": None, "rows": 1, "parts": 4}[scales])
        held = Stored("F8_E4M3", (rows, columns), data.view(torch.uint8), scale)
    return QuantizedLinear(held, nn.Parameter(torch.linspace(-1, 1, rows)) if bias else None)


def relative(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scales", ["plain", "one", "rows"])
def test_it_is_the_dequantized_product_but_for_the_rounding_of_x(scales, dtype, device):
    slow = linear(scales).to(device)
    fast = Fp8Linear(slow)
    noise = torch.randn(2, 60, 512, generator=torch.Generator().manual_seed(1))
    x = (noise * torch.logspace(-3, 3, 60)[:, None]).to(device, dtype)
    with torch.no_grad():
        y = fast(x)
        assert (y.dtype, y.shape) == (dtype, (2, 60, 96))
        q, size = fp8.rounded(x.flatten(0, -2))
        exact = slow(q.float() * size)
        assert relative(y.flatten(0, -2), exact) < 2**-8
        no_bias = linear(scales, bias=False).to(device)
        for row, wanted in zip(Fp8Linear(no_bias)(x).flatten(0, 1), no_bias(x).flatten(0, 1), strict=True):
            assert relative(row, wanted) < ROUNDING


@pytest.mark.parametrize("device", DEVICES)
def test_a_token_of_zeros_gives_the_bias(device):
    layer = Fp8Linear(linear("rows").to(device))
    with torch.no_grad():
        y = layer(torch.zeros(3, 512, device=device, dtype=torch.bfloat16))
    assert torch.equal(y, layer.bias.bfloat16().expand(3, -1))


@pytest.mark.parametrize("device", DEVICES)
def test_only_what_can_be_multiplied_so_is_replaced_and_its_bytes_stay(device):
    odd = linear("one", rows=24)
    model = nn.ModuleDict(
        {"a": linear("rows"), "b": nn.ModuleList([linear("plain")]), "c": linear("parts"), "d": odd}
    ).to(device)
    held, data = quantized.held(model), model["a"].data.data_ptr()
    assert fp8.use(model) == 2
    assert [type(m) for m in (model["a"], model["b"][0])] == [Fp8Linear, Fp8Linear]
    assert [type(m) for m in (model["c"], model["d"])] == [QuantizedLinear, QuantizedLinear]
    assert quantized.held(model) == held
    assert model["a"].data.data_ptr() == data


def test_a_device_that_cannot_leaves_the_model_as_it_is():
    assert not fp8.available(torch.device("meta"))
    with torch.device("meta"):
        model = nn.ModuleDict({"a": linear("rows")}).to("meta")
    assert fp8.use(model) == 0
    assert type(model["a"]) is QuantizedLinear
