"""Stored weights in place of Linears and Embeddings: the numbers of plain ones, and the memory they take."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from broll.engine import load, quantized
from broll.engine.dequantize import EVERY as ALL
from broll.engine.dequantize import HALVES
from broll.engine.quantized import Desk, QuantizedEmbedding, QuantizedLinear
from broll.engine.shapes import Grid
from broll.engine.stored import Stored
from tests import formats

FLOATS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


def stored(kind, rows=24, columns=512, parts=None):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    if kind in HALVES:
        return Stored(kind, (rows, columns), weight.to(HALVES[kind]).view(torch.uint8))
    if kind in FLOATS:
        return Stored(kind, (rows, columns), weight.to(FLOATS[kind]).view(torch.uint8))
    if kind == "I8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        data = (weight / scale).round().to(torch.int8).view(torch.uint8)
        return Stored(kind, (rows, columns), data, scale[..., None])
    if kind.startswith("scaled"):
        data, scale = formats.to_fp8(weight, {"scaled": None, "scaled-rows": 1, "scaled-parts": 4}[kind])
        return Stored("F8_E4M3", (rows, columns), data.view(torch.uint8), scale)
    return Stored(kind, (rows, columns), torch.from_numpy(formats.to_blocks(weight, kind)))


EVERY = [*ALL, "scaled", "scaled-rows", "scaled-parts"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", EVERY)
def test_a_call_is_that_of_a_plain_linear_with_the_dequantized_weight(kind, dtype):
    held = stored(kind)
    plain = nn.Linear(512, 24, dtype=dtype)
    plain.weight.data = held.tensor().to(dtype)
    layer = QuantizedLinear(held, plain.bias)
    x = torch.randn(2, 5, 512).to(dtype)
    assert torch.equal(layer(x), plain(x))
    on_a_desk = QuantizedLinear(held, plain.bias, Desk())
    assert torch.equal(on_a_desk(x), plain(x))


def test_a_desk_takes_one_matrix_after_the_other():
    desk = Desk()
    held = [stored("BF16", rows=24), stored("Q8_0", rows=8), stored("F16", rows=48)]
    layers = [QuantizedLinear(one, None, desk) for one in held]
    x = torch.randn(3, 512)
    for layer, one in [*zip(layers, held, strict=True)] * 2:
        with torch.inference_mode():
            assert torch.equal(layer(x), x @ one.tensor().t())
    layers[0](x)  # memory that was asked for under inference mode can be written to outside of it


@pytest.mark.parametrize("kind", EVERY)
def test_rows_of_an_embedding_are_looked_up_before_they_are_dequantized(kind):
    held = stored(kind)
    ids = torch.tensor([[3, 0, 23], [7, 7, 1]])
    assert torch.equal(QuantizedEmbedding(held, torch.float32)(ids), held.tensor()[ids])
    assert QuantizedEmbedding(held, torch.bfloat16)(ids).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["scaled-parts", "Q4_K"])
def test_a_cast_of_the_module_cannot_spoil_what_is_stored(kind):
    held = stored(kind)
    layer = QuantizedLinear(held, nn.Parameter(torch.zeros(24)))
    x = torch.randn(3, 512)
    before = layer(x)
    layer.to(torch.bfloat16).half().float()
    assert torch.equal(layer(x), before)


def test_a_state_holds_bytes_and_says_how_many():
    held = stored("Q4_K")
    layer = QuantizedLinear(held, None)
    assert layer.nbytes == held.nbytes == 24 * 512 // 256 * 144
    assert {name: t.dtype for name, t in layer.state_dict().items()} == {"data": torch.uint8}
    assert "Q4_K, 6912 bytes" in repr(layer)
    scaled = QuantizedLinear(stored("scaled-rows"), None)
    assert scaled.nbytes == 24 * 512 + 24 * 4
    assert quantized.held(nn.Sequential(layer, scaled)) == {"Q4_K": 6912, "F8_E4M3": 12384}


def test_a_shared_layer_is_replaced_under_each_of_its_names():
    model = nn.Module()
    model.first, model.second = nn.Embedding(24, 512), nn.Embedding(24, 512)
    model.second.weight = model.first.weight
    assert quantized.install(model, "first.weight", stored("Q8_0"))
    assert model.first is model.second
    assert isinstance(model.first, QuantizedEmbedding)


def test_what_is_no_matrix_of_a_layer_is_left_alone():
    model = nn.ModuleDict({"conv": nn.Conv1d(512, 24, 1), "linear": nn.Linear(512, 24)})
    assert not quantized.install(model, "conv.weight", stored("Q8_0"))
    assert not quantized.install(model, "linear.bias", stored("Q8_0"))
    flat = Stored("Q8_0", (24, 512), stored("Q8_0").data.reshape(12, -1))
    assert not quantized.install(model, "linear.weight", flat)


@pytest.mark.parametrize(
    ("form", "text", "kinds"),
    [
        ("bf16", "fp16", ("BF16", "F16")),
        ("gguf-F16", "llama-F16", ("F16", "F16")),
        ("prefixed", "official-pth", (None, None)),
    ],
)
def test_a_model_whose_halves_stay_is_the_one_that_was_cast(form, text, kinds, tmp_path):
    folder = formats.comfy_folder(tmp_path, form, text=text)
    cast = load.load(folder, "mine")
    kept = load.load(folder, "mine", precision=load.Precision(halves=True))
    held = [quantized.held(kept.transformer), quantized.held(kept.text.model)]
    for kind, sizes in zip(kinds, held, strict=True):
        assert sizes.keys() == ({"float32"} if kind is None else {kind, "float32"})
    x, t = torch.randn(1, kept.config.transformer.in_dim, 3, 4, 8), torch.tensor([500.0])
    velocities = []
    with torch.inference_mode():
        assert torch.equal(kept.text("aerial view"), cast.text("aerial view"))
        for model in (cast.transformer, kept.transformer):
            context = model.context(
                Grid(3, 4, 8), torch.linspace(-1, 1, 5 * model.config.text_dim).view(1, 5, -1)
            )
            velocities.append(model(x, t, context))
    assert torch.equal(*velocities)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", EVERY)
def test_a_gpu_makes_the_same_numbers_of_the_bytes(kind):
    layer = QuantizedLinear(stored(kind), None)
    wanted = layer.dequantized(torch.bfloat16)
    assert torch.equal(layer.to("cuda").dequantized(torch.bfloat16).cpu(), wanted)


MEASURE = """
import re, sys
from pathlib import Path
import torch
from broll.engine import detect, formats, load
from broll.engine.transformer import Transformer, parameter_dtype

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

small, path, low = sys.argv[1:]

def fill(path):
    opened = formats.open_weights(Path(path))
    model = load.on_meta(lambda: Transformer(detect.transformer(opened)))
    load.fill(opened, model, lambda name: parameter_dtype(name, getattr(torch, low)))
    return model

fill(small)  # whatever is imported or set up once
Path("/proc/self/clear_refs").write_text("5")  # the peak so far does not count
before = status("VmRSS")
model = fill(path)
held = [*model.parameters(), *model.buffers()]
for tensor in held:
    tensor.view(torch.uint8).max()  # every page is wanted
print(status("VmHWM") - before, sum(tensor.nbytes for tensor in held))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    ("form", "low"),
    [
        ("bf16", "bfloat16"),
        ("bf16", "float32"),
        pytest.param("gguf-Q8_0", "bfloat16", marks=pytest.mark.slow),
        pytest.param("official", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_loading_takes_little_more_memory_than_what_is_kept(form, low, tmp_path, monkeypatch):
    """All pages of the process count, those of the mapped file too: kept as it is, cast down, cast up."""
    small = formats.transformer_file(tmp_path / "small", form)
    big = replace(formats.NUMBERS, dim=768, ffn_dim=4096, num_heads=6, num_layers=6)
    monkeypatch.setattr(formats, "NUMBERS", big)
    formats.transformer.cache_clear()
    path = formats.transformer_file(tmp_path / "big", form)
    formats.transformer.cache_clear()
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, small, path, low], capture_output=True, text=True, check=True
    )
    peak, kept = map(int, run.stdout.split())
    assert kept > (70_000_000 if "gguf" in form else 130_000_000)
    assert peak < 1.1 * kept, f"{peak / kept:.2f} of {kept}"
