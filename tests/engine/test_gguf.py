"""GGUF files: read as the gguf library reads them, and what it lets pass is refused by name."""

import struct
import sys

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from broll.engine.formats import open_weights
from broll.engine.gguf_file import open_gguf
from broll.engine.stored import Stored
from broll.errors import MissingExtra
from tests import formats


def write(path, *tensors, fields=(), architecture="wan"):
    """tensors: name, array, kind or None; fields: name, list."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, values in fields:
        writer.add_array(name, values)
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=None if kind is None else Kind[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_without_the_gguf_library_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    path = formats.transformer_file(tmp_path, "gguf-F32")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "broll.engine.gguf_file")
    with pytest.raises(MissingExtra, match=r'gguf.*pip install "broll\[engine\]"'):
        open_weights(path)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *formats.LEGACY, *formats.K_KINDS])
def test_a_file_is_read_as_the_gguf_library_reads_it(kind, tmp_path):
    path = formats.transformer_file(tmp_path, f"gguf-{kind}")
    architecture, entries = open_gguf(path)
    theirs = gguf.GGUFReader(path).tensors
    assert architecture == "wan"
    assert set(entries) == {tensor.name for tensor in theirs}
    for tensor in theirs:
        ours = entries[tensor.name]
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert ours.kind == tensor.tensor_type.name
        assert torch.equal(ours.plain().float().flatten(), torch.from_numpy(numbers.copy()).flatten())


def test_a_tensor_of_five_axes_gets_its_shape_back(tmp_path):
    truth = formats.transformer().patch_embedding.weight
    _, entries = open_gguf(formats.transformer_file(tmp_path, "gguf-Q4_K"))
    assert entries["patch_embedding.weight"].shape == tuple(truth.shape) == (256, 16, 1, 2, 2)
    assert torch.equal(entries["patch_embedding.weight"].plain(), truth)


def test_a_file_with_five_axes_of_its_own_is_read_too(tmp_path):
    """As city96's files are, after their 5-D fix."""
    array = np.arange(2 * 3 * 1 * 2 * 2, dtype=np.float32).reshape(2, 3, 1, 2, 2)
    _, entries = open_gguf(write(tmp_path / "a.gguf", ("patch_embedding.weight", array, None)))
    assert torch.equal(entries["patch_embedding.weight"].plain(), torch.from_numpy(array))


def test_quantized_tensors_stay_in_their_blocks(tmp_path):
    _, entries = open_gguf(formats.transformer_file(tmp_path, "gguf-Q6_K"))
    value = entries["blocks.0.ffn.0.weight"].read()
    assert isinstance(value, Stored)
    assert (value.kind, value.shape, value.data.shape) == ("Q6_K", (512, 256), (512, 210))


def test_a_vocabulary_is_stepped_over_and_what_follows_is_read(tmp_path):
    words, scores = [f"word {i}" for i in range(300_000)], [0.5] * 300_000
    fields = (("tokenizer.ggml.tokens", words), ("tokenizer.ggml.scores", scores))
    tensor = ("token_embd.weight", np.ones((4, 8), np.float32), None)
    path = write(tmp_path / "t5.gguf", tensor, fields=fields, architecture="t5encoder")
    architecture, entries = open_gguf(path)
    assert architecture == "t5encoder"
    assert entries["token_embd.weight"].plain().sum() == 32


@pytest.mark.parametrize("shape", [[2, 3, 1, 2, 3], [], [-2, -12], ["two", "twelve"]])
def test_an_original_shape_that_does_not_fit_is_refused(shape, tmp_path):
    array = np.zeros((2, 12), np.float32)
    fields = (("comfy.gguf.orig_shape.a", shape),) if shape else ()
    path = write(tmp_path / "a.gguf", ("a", array, None), fields=fields)
    if not shape or shape[0] == "two":  # nothing that says a shape
        assert open_gguf(path)[1]["a"].shape == (2, 12)
        return
    with pytest.raises(ValueError, match=r"a has the shape \[2, 12\], but its metadata says"):
        open_gguf(path)


def test_a_kind_that_is_not_read_is_named(tmp_path):
    blocks = np.zeros((2, 84), np.uint8)
    path = write(tmp_path / "a.gguf", ("blocks.0.ffn.0.weight", blocks, "Q2_K"))
    with pytest.raises(ValueError, match=r"blocks\.0\.ffn\.0\.weight is of kind Q2_K; possible are F64, F32"):
        open_gguf(path)


def header(tensors=1, fields=0, version=3):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, fields)


def info(name=b"a", dims=(8,), kind=0, offset=0):
    return (
        struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (header(tensors=1 << 40), "tensors"),
        (header(fields=1 << 40), "fields"),
        (header() + info(dims=(1 << 40,)), "a lies beyond the end"),
        (header() + info(dims=(1 << 62, 1 << 62)), "a lies beyond the end"),
        (header() + info(offset=(1 << 64) - 32), "a lies beyond the end"),
        (header() + info(dims=(33,), kind=8), "a has rows of 33, which Q8_0 cannot cut"),
        (header() + info(kind=9999), "a is of kind number 9999"),
        (header() + info(dims=()), "a has 0 axes"),
        (header() + info(dims=(1,) * 9), "a has 9 axes"),
        (header(tensors=2) + info(kind=0) + info(kind=0) + b"\0" * 96, "a is there twice"),
    ],
)
def test_a_hostile_header_is_refused_at_once(data, said, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(data + b"\0" * 32)
    with pytest.raises(ValueError, match=said):
        open_gguf(path)


def test_a_list_that_is_longer_than_the_file_is_refused_at_once(tmp_path):
    name = struct.pack("<Q", 1) + b"k"
    for kind in (8, 4, 9):  # strings, numbers, lists of lists
        field = name + struct.pack("<IIQ", 9, kind, 1 << 50)
        (tmp_path / "a.gguf").write_bytes(header(tensors=0, fields=1) + field + b"\0" * 64)
        with pytest.raises((ValueError, struct.error, KeyError, IndexError)):
            open_gguf(tmp_path / "a.gguf")
