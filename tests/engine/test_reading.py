"""Tensors that are cast are mapped for a moment only, and the system is told what comes next."""

import pytest
import torch
from safetensors.torch import save_file

from broll.engine import formats, reading, weights
from broll.engine.containers import open_file
from broll.engine.reading import Ahead
from broll.engine.stored import PLAIN, Entry
from broll.errors import BadCheckpoint

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def saved(path, **tensors):
    save_file(tensors, path)
    return open_file(path)[0]


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (1000, 2, 3), (531, 2741), (2, 0)])
@pytest.mark.parametrize("kind", PLAIN)
def test_every_dtype_is_cast_as_a_whole_tensor_would_be(kind, shape, tmp_path):
    tensor = torch.randn(shape).to(PLAIN[kind])
    entries = saved(tmp_path / "a.safetensors", first=torch.ones(3), a=tensor, z=torch.ones(5))
    for dtype in DTYPES:
        assert reading.can_cast(entries["a"], dtype) == (dtype != tensor.dtype and tensor.numel() > 0)
        if tensor.numel():
            assert torch.equal(reading.cast(entries["a"], dtype), tensor.to(dtype))


def test_quantized_and_unplaced_tensors_are_not_cast(tmp_path):
    entries = saved(tmp_path / "a.safetensors", a=torch.ones(2, 2).to(torch.float8_e4m3fn), b=torch.ones(6))
    assert not reading.can_cast(entries["a"], torch.float32)
    assert not reading.can_cast(entries["b"].third(0), torch.bfloat16)
    assert not reading.can_cast(Entry("x", (2,), "F32", lambda: torch.ones(2)), torch.bfloat16)


def test_a_file_that_becomes_shorter_is_one_line(tmp_path):
    path = tmp_path / "wan.safetensors"
    save_file({"blocks.0.self_attn.q.weight": torch.ones(1024, 1024)}, path)
    entry = formats.open_weights(path).entries["blocks.0.self_attn.q.weight"]
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(
        BadCheckpoint, match=r"q\.weight cannot be read: mmap length is greater than file size"
    ):
        weights.read(entry, path, torch.bfloat16)


def test_the_system_is_told_of_each_byte_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW", 1000)
    entries = saved(tmp_path / "a.safetensors", **{name: torch.ones(100) for name in "abcdefgh"})
    ahead, told = Ahead(), []
    for entry in sorted(entries.values(), key=reading.order):
        told.append(ahead.news(entry))
        ahead(entry)
        assert ahead.news(entry) is None
    first = min(entry.span[1] for entry in entries.values())
    assert told[0] == (tmp_path / "a.safetensors", first, 1400)
    assert all(a + size == b for (_, a, size), (_, b, _) in zip(told, told[1:], strict=False))
    assert told[-1][1] + told[-1][2] == first + 8 * 400 + 1000
    assert ahead.news(Entry("x", (2,), "F32", lambda: torch.ones(2))) is None
