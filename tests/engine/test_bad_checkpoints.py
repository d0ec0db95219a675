"""Damaged and hostile checkpoints: one clear line that names the file, never a crash, no file of elsewhere."""

import json
import random
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from broll.engine import describe, detect, formats, load
from broll.engine.transformer import Transformer
from broll.errors import BadCheckpoint
from tests import formats as files


def read(path):
    """All the way to a filled module."""
    opened = formats.open_weights(path, "transformer")
    model = load.on_meta(lambda: Transformer(detect.transformer(opened)))
    load.fill(opened, model, lambda name: torch.float32)
    return model


def refused(path, said=None):
    with pytest.raises(BadCheckpoint, match=said) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    paths = {form: files.transformer_file(folder, form) for form in ("single", "fp8-rows", "gguf-Q4_K")}
    torch.save(files.state(files.transformer()), folder / "wan.pth")
    return {form: path.read_bytes() for form, path in paths.items()} | {
        "pth": (folder / "wan.pth").read_bytes()
    }


SUFFIX = {"single": ".safetensors", "fp8-rows": ".safetensors", "gguf-Q4_K": ".gguf", "pth": ".pth"}


@pytest.mark.parametrize("form", SUFFIX)
def test_a_file_cut_anywhere_is_refused(form, whole, tmp_path):
    path, data = tmp_path / f"wan{SUFFIX[form]}", whole[form]
    cuts = [0, 1, 7, 8, 9, 100, len(data) // 3, len(data) // 2, len(data) - 1000]
    for cut in cuts:
        path.write_bytes(data[:cut])
        assert path.name in refused(path)


@pytest.mark.parametrize("form", ["single", "gguf-Q4_K"])
def test_the_first_tensor_that_is_cut_is_named(form, whole, tmp_path):
    path = tmp_path / f"wan{SUFFIX[form]}"
    path.write_bytes(whole[form][: len(whole[form]) * 2 // 3])
    refused(path, r"(blocks\.\d|head|time|text|patch)\S* lies beyond (its|the) end")


@pytest.mark.parametrize("form", SUFFIX)
def test_a_file_with_changed_bytes_is_read_or_refused_and_never_crashes(form, whole, tmp_path):
    path, data = tmp_path / f"wan{SUFFIX[form]}", bytearray(whole[form])
    chance = random.Random(form)
    head = 8 + struct.unpack("<Q", data[:8])[0] if path.suffix == ".safetensors" else 9000
    for _ in range(25):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 2, 8))):
            place = chance.randrange(min(head, len(data)))
            changed[place] = chance.choice((0, 255, changed[place] ^ (1 << chance.randrange(8))))
        path.write_bytes(changed)
        said = f"{path.name}: fine"
        try:
            read(path)
        except BadCheckpoint as error:
            said = str(error)
        assert path.name in said
        assert "\n" not in said


@pytest.mark.parametrize("length", [0, 1, 99_999_999, 1 << 32, 1 << 62, (1 << 64) - 1])
def test_a_header_that_says_it_is_huge_is_refused(length, tmp_path):
    path = tmp_path / "wan.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" * 64)
    refused(path, "wan.safetensors cannot be read")


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{}", b"{" * 4000, b"[" * 4000, b'{"a": 3}', b"\xff\xfe",
        b'{"head.modulation": {"dtype": "F32", "shape": [1, 2, 256], "data_offsets": [0, 99999999999]}}',
        b'{"head.modulation": {"dtype": "F32", "shape": [4611686018427387904, 16], "data_offsets": [0, 0]}}',
        b'{"head.modulation": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"head.modulation": {"dtype": "F999", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)  # fmt: skip
def test_a_header_of_nonsense_is_refused(header, tmp_path):
    path = tmp_path / "wan.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    assert path.name in refused(path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.uint8, torch.complex64])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_tensor_of_the_wrong_kind_is_named(dtype, suffix, tmp_path):
    tensors = files.state(files.transformer())
    tensors["blocks.1.cross_attn.k.weight"] = torch.zeros(256, 256, dtype=dtype)
    path = tmp_path / f"wan{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    refused(path, r"blocks\.1\.cross_attn\.k\.weight is of kind \S+; possible are F64, F32")


@pytest.mark.parametrize("form", ["single", "fp8-rows", "gguf-Q4_K", "diffusers"])
def test_a_tensor_of_the_wrong_shape_is_named(form, tmp_path, monkeypatch):
    tensors = files.state(files.transformer())
    tensors["blocks.1.cross_attn.k.weight"] = torch.randn(512, 256)
    monkeypatch.setattr(files, "state", lambda module: tensors)
    said = r"cross_attn\.k\.weight|attn2\.to_k\.weight"
    refused(files.transformer_file(tmp_path, form), rf"blocks\.1\.({said}) has shape \[512, 256\]")


@pytest.mark.parametrize("value", [3, [1, 2], {"weight": torch.zeros(3)}, None, torch.zeros(3).to_sparse()])
def test_a_pickle_that_holds_other_things_is_named(value, tmp_path):
    torch.save({"blocks.0.self_attn.q.weight": value}, tmp_path / "wan.pth")
    refused(tmp_path / "wan.pth", r"blocks\.0\.self_attn\.q\.weight is no plain tensor")
    torch.save([value], tmp_path / "wan.pth")
    refused(tmp_path / "wan.pth", "holds no names")


def test_a_file_that_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", r"notes\.txt is no file of weights; possible are \.safetensors")
    refused(tmp_path / "none.gguf", "is missing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no file of weights")


# --- indices ----------------------------------------------------------------------------------------------

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def shards(tmp_path):
    return files.transformer_file(tmp_path, "shards")


def change_index(folder, change):
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd.safetensors", "../single.safetensors", "sub/../../single.safetensors", "./x.safetensors",
     "..\\single.safetensors", "x\0.safetensors", "../shards/a-00001-of-00002.safetensors"],
)  # fmt: skip
def test_an_index_that_names_a_path_is_refused(name, shards):
    files.transformer_file(shards.parent, "single").rename(shards.parent / "single.safetensors")
    change_index(shards, lambda names: names.update({"head.modulation": name}))
    refused(shards, "which is not beside it")


def test_an_index_that_names_a_link_out_of_its_folder_is_refused(shards):
    shard = shards / "a-00001-of-00002.safetensors"
    shard.rename(shards.parent / "elsewhere.safetensors")
    shard.symlink_to(shards.parent / "elsewhere.safetensors")
    refused(shards, "'a-00001-of-00002.safetensors', a link that leads out of its folder")


def test_the_links_of_the_hubs_own_cache_are_followed(shards):
    """models--X/snapshots/REVISION/transformer/file -> models--X/blobs/HASH"""
    model = shards.parent / "models--Wan"
    (model / "blobs").mkdir(parents=True)
    folder = model / "snapshots" / "abc" / "transformer"
    folder.parent.mkdir(parents=True)
    shards.rename(folder)
    for path in folder.iterdir():
        blob = path.rename(model / "blobs" / f"blob-{path.name}")
        path.symlink_to(blob)
    assert read(folder) is not None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (INDEX, "which is no shard"),
        ("model.pth", "which is no shard"),
        ("missing.safetensors", "lacks missing.safetensors"),
        (7, "which is no shard"),
        ({"a": "b"}, "which is no shard"),
        ("", "which is no shard"),
        ("folder.safetensors", "folder.safetensors is missing"),
    ],
)
def test_an_index_that_names_no_shard_is_refused(value, said, shards):
    (shards / "folder.safetensors").mkdir()
    change_index(shards, lambda names: names.update({"head.modulation": value}))
    refused(shards, said)


def test_an_index_that_is_a_link_to_itself_is_refused(shards):
    (shards / INDEX).unlink()
    (shards / INDEX).symlink_to(shards / INDEX)
    assert INDEX in refused(shards)


def test_shards_that_are_links_to_each_other_are_refused(shards):
    first, second = shards / "a-00001-of-00002.safetensors", shards / "a-00002-of-00002.safetensors"
    first.unlink()
    first.symlink_to(second)
    second.unlink()
    second.symlink_to(first)
    refused(shards, "a-0000")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 3}', "\xff", "[" * 100_000,
     '{"weight_map": "a.safetensors"}', "null"],
)  # fmt: skip
def test_an_index_of_nonsense_is_refused(text, shards):
    (shards / INDEX).write_text(text)
    assert INDEX in refused(shards)


def test_an_index_that_promises_what_its_shards_lack_is_refused(shards):
    change_index(shards, lambda names: names.update({"blocks.9.norm3.bias": "a-00001-of-00002.safetensors"}))
    refused(shards, r"lacks blocks\.9\.norm3\.bias, which .*index\.json says it has")


def test_two_shards_with_the_same_tensor_are_refused(shards):
    first = load_file(shards / "a-00001-of-00002.safetensors")
    second = load_file(shards / "a-00002-of-00002.safetensors")
    name = min(first)
    save_file(second | {name: first[name]}, shards / "a-00002-of-00002.safetensors")
    refused(shards, f"has {name}, which another of its shards has too")


def test_the_shard_that_is_wrong_is_the_one_that_is_named(shards):
    path = shards / "a-00002-of-00002.safetensors"
    tensors = load_file(path)
    name = min(n for n in tensors if n.startswith("blocks.1"))
    save_file(tensors | {name: torch.zeros(7, 7, 7)}, path)
    refused(shards, rf"a-00002-of-00002\.safetensors: {name} has shape \[7, 7, 7\]")


@pytest.mark.parametrize(
    "numbers", [{"dim_mult": [1]}, {"dim_mult": [1, 2]}, {"temperal_downsample": [False, False, True]}]
)
def test_an_autoencoder_of_another_pace_is_refused(numbers, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]} | numbers)
    )
    with pytest.raises(BadCheckpoint, match=r"config\.json: dim_mult .* does not make 4 frames of a latent"):
        describe.vae_config(path)
