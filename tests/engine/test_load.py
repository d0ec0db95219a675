"""Checkpoints on disk: both layouts, strictly, and everything that can be wrong with them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from broll.engine import load, vace, weights
from broll.engine.config import VAEConfig
from broll.engine.image_encoder import clip_vision
from broll.engine.text_encoder import umt5
from broll.engine.vae import VAE
from broll.errors import BadCheckpoint
from tests import checkpoints
from tests.parity.official_names import vae_names

OFFICIAL_VAE = VAEConfig(base_dim=4)  # two residual blocks a level, as the official names count them


def same(module, other):
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def fill(folder, component, build):
    module = load.on_meta(build)
    load.assign(folder, component, module, lambda name: torch.float32)
    return module


@pytest.fixture
def broken(tiny_models, tmp_path):
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")


@pytest.mark.parametrize("task", ["t2v", "i2v", "flf2v", "vace"])
def test_both_layouts_give_the_same_transformer(task, tmp_path):
    numbers = checkpoints.transformer_numbers(task)
    truth = checkpoints.built(lambda: vace.transformer(numbers))
    for make in (checkpoints.diffusers_folder, checkpoints.original_folder):
        folder = make(tmp_path / make.__name__, task)
        assert same(fill(folder, "transformer", lambda: vace.transformer(numbers)), truth)


def test_the_task_is_read_from_the_files(tiny_models):
    for name, task in (("tiny", "t2v"), ("tiny-i2v", "i2v"), ("tiny-flf2v", "flf2v")):
        assert load.describe(tiny_models / name, name).task == task


def test_the_original_vae_is_read_from_its_pickle(tmp_path):
    checkpoints.write_json(tmp_path / "config.json", {"model_type": "t2v"})
    truth = checkpoints.built(lambda: VAE(OFFICIAL_VAE))
    state = checkpoints.state(truth)
    named = {name: state[weights.vae_from_official(name)] for name in vae_names()}
    torch.save(named, tmp_path / load.VAE_FILE)
    assert same(fill(tmp_path, "vae", lambda: VAE(OFFICIAL_VAE)), truth)


def test_the_original_umt5_is_read_from_its_pickle(tmp_path):
    checkpoints.write_json(tmp_path / "config.json", {"model_type": "t2v"})
    truth = checkpoints.built(lambda: umt5(checkpoints.TEXT_NUMBERS))
    state = checkpoints.state(truth)
    official = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for i in range(2):
        layer = f"encoder.block.{i}.layer"
        pairs = {
            "norm1": "0.layer_norm", "norm2": "1.layer_norm", "attn.q": "0.SelfAttention.q",
            "attn.k": "0.SelfAttention.k", "attn.v": "0.SelfAttention.v", "attn.o": "0.SelfAttention.o",
            "pos_embedding.embedding": "0.SelfAttention.relative_attention_bias",
            "ffn.gate.0": "1.DenseReluDense.wi_0", "ffn.fc1": "1.DenseReluDense.wi_1",
            "ffn.fc2": "1.DenseReluDense.wo",
        }  # fmt: skip
        official |= {f"blocks.{i}.{a}.weight": f"{layer}.{b}.weight" for a, b in pairs.items()}
    torch.save({a: state[b] for a, b in official.items()}, tmp_path / load.T5_FILE)
    assert same(fill(tmp_path, "text_encoder", lambda: umt5(checkpoints.TEXT_NUMBERS)), truth)


def test_the_original_clip_is_read_without_its_text_tower(tmp_path):
    checkpoints.write_json(tmp_path / "config.json", {"model_type": "i2v"})
    truth = checkpoints.built(lambda: clip_vision(checkpoints.IMAGE_NUMBERS))
    s = checkpoints.state(truth)
    named = {
        "visual.cls_embedding": s["embeddings.class_embedding"][None, None],
        "visual.pos_embedding": s["embeddings.position_embedding.weight"][None],
        "visual.patch_embedding.weight": s["embeddings.patch_embedding.weight"],
        "visual.head": torch.zeros(16, 8),
        "textual.layer.weight": torch.zeros(3),
        "log_scale": torch.zeros(()),
    }
    for norm, ours in (("pre_norm", "pre_layrnorm"), ("post_norm", "post_layernorm")):
        named |= {f"visual.{norm}.{p}": s[f"{ours}.{p}"] for p in ("weight", "bias")}
    for i in range(2):
        for p in ("weight", "bias"):
            ours, theirs = f"encoder.layers.{i}", f"visual.transformer.{i}"
            qkv = [s[f"{ours}.self_attn.{c}_proj.{p}"] for c in "qkv"]
            named[f"{theirs}.attn.to_qkv.{p}"] = torch.cat(qkv)
            for a, b in (
                ("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.out_proj"),
                ("mlp.0", "mlp.fc1"), ("mlp.2", "mlp.fc2"),
            ):  # fmt: skip
                named[f"{theirs}.{a}.{p}"] = s[f"{ours}.{b}.{p}"]
    torch.save(named, tmp_path / load.CLIP_FILE)
    model = fill(tmp_path, "image_encoder", lambda: clip_vision(checkpoints.IMAGE_NUMBERS))
    assert same(model, truth)


def test_shards_are_read_through_their_index(broken):
    file = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({n: tensors[n] for n in own}, file.with_name(part))
    index = {"weight_map": {n: part for part, own in parts.items() for n in own}}
    file.unlink()
    file.with_name(file.name + ".index.json").write_text(json.dumps(index))
    numbers = checkpoints.transformer_numbers()
    truth = checkpoints.built(lambda: vace.transformer(numbers))
    assert same(fill(broken, "transformer", lambda: vace.transformer(numbers)), truth)
    (broken / "transformer" / "b.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"b\.safetensors"):
        load.load(broken, "tiny")


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_a_truncated_file_is_named(broken, component):
    file = next((broken / component).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match=file.name):
        load.load(broken, "tiny")


def test_a_truncated_pickle_is_named(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(BadCheckpoint, match=r"weights\.pth"):
        weights.open_tensors([file])


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"a": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(BadCheckpoint):
        weights.open_tensors([tmp_path / "weights.pth"])
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_one_wrong_tensor_is_named(broken, change):
    file = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = "blocks.1.ffn.net.2.weight"
    if change == "missing":
        del tensors[name]
        name = "blocks.1.ffn.2.weight"  # what the model calls it
    elif change == "unexpected":
        name = "blocks.0.mystery"
        tensors[name] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, file)
    with pytest.raises(BadCheckpoint, match=name.replace(".", r"\.")):
        load.load(broken, "tiny")


def test_a_checkpoint_of_another_model_is_refused_before_its_weights_are_read(broken):
    next((broken / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(BadCheckpoint, match="another model"):
        load.load(broken, "wan2.1-t2v-14b")


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match="no checkpoint"):
        load.load(tmp_path, "tiny")


def test_weights_of_a_bf16_model_keep_their_islands_in_fp32(tiny_models):
    parts = load.load(tiny_models / "tiny", "tiny", precision=load.Precision(linears=torch.bfloat16))
    model = parts.transformer
    assert model.attend_name == "blocked"
    assert model.blocks[0].self_attn.q.bias.dtype == torch.bfloat16
    assert model.blocks[0].modulation.dtype == torch.float32
    assert model.patch_embedding.weight.dtype == torch.float32
    assert parts.vae.dtype == torch.float32
