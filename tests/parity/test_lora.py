"""LoRAs against diffusers, for the forms that it reads: its converters, and its loader where peft is installed."""

import importlib.util
import warnings

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from broll.engine import lora, lora_files
from tests import loras
from tests.cases import long
from tests.parity.judge import LIMIT, TASKS, relative, transformers
from tests.parity.test_transformer import inputs, judged, velocity

WEIGHT = 0.7
BLOCKS = r"^blocks\.\d+\.(self_attn|cross_attn|ffn)"
WITH_PEFT = pytest.param(
    "loader",
    marks=pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed"),
)


def lightx2v(model):
    """As distilled LoRAs are written: pairs without alpha, also outside the blocks, and differences of biases."""
    tensors = {}
    for name, (a, b) in loras.pairs(model, r"^(?!img_emb)").items():
        tensors |= {
            f"diffusion_model.{name}.lora_down.weight": a,
            f"diffusion_model.{name}.lora_up.weight": b,
        }
        tensors[f"diffusion_model.{name}.diff_b"] = 0.1 * torch.randn(len(b))
    return tensors


def written(form, model, path):
    """A file in this form, with what diffusers' converter of that form knows."""
    if form == "lightx2v":
        tensors = lightx2v(model)
    else:
        everywhere = form.startswith("diffusers")
        tensors = loras.FORMS[form](loras.pairs(model, "" if everywhere else BLOCKS))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def added(theirs, tensors):
    """What peft computes with alpha = rank, in the weights: W + weight * B A, b + weight * bias of B."""
    state = theirs.state_dict()
    for key, tensor in tensors.items():
        module, _, part = key.removeprefix("transformer.").rpartition(".lora_")
        if part == "B.weight":
            state[f"{module}.weight"] += WEIGHT * tensor @ tensors[key.replace("lora_B", "lora_A")]
        elif part == "B.bias":
            state[f"{module}.bias"] += WEIGHT * tensor
    theirs.load_state_dict(state)


def loaded(theirs, tensors):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's business
        theirs.load_lora_adapter(tensors, prefix="transformer", adapter_name="style")
        theirs.set_adapters("style", WEIGHT)


@pytest.mark.parametrize("judge", ["converter", WITH_PEFT])
@pytest.mark.parametrize("task", ["i2v", *long("t2v")])
@pytest.mark.parametrize("form", ["kohya", "comfy", "comfy-ab", "lightx2v", "diffusers"])
def test_a_lora_changes_the_velocity_as_in_diffusers(form, task, judge, tmp_path):
    ours, theirs = transformers(TASKS[task])
    x, text, image = inputs(TASKS[task])
    path = written(form, ours, tmp_path / "style.safetensors")
    tensors = WanPipeline.lora_state_dict(load_file(path))
    (added if judge == "converter" else loaded)(theirs, tensors)
    with torch.no_grad():
        plain = velocity(ours, x, text, image)
        wanted = judged(theirs, x, text, image)
        assert lora.attach(ours, [(lora_files.read(path), WEIGHT, None)]).unused == ()
        beside = velocity(ours, x, text, image)
        lora.detach(ours)
        lora.merge(ours, [(lora_files.read(path), WEIGHT, None)])
        merged = velocity(ours, x, text, image)
    assert relative(beside, wanted) < LIMIT
    assert relative(merged, wanted) < LIMIT
    assert relative(plain, wanted) > 0.05


def test_a_text_to_video_lora_on_an_image_model_is_as_in_diffusers(tmp_path):
    text_model, _ = transformers(TASKS["t2v"])
    path = written("comfy", text_model, tmp_path / "style.safetensors")
    ours, theirs = transformers(TASKS["i2v"])
    tensors = WanPipeline._maybe_expand_t2v_lora_for_i2v(theirs, WanPipeline.lora_state_dict(load_file(path)))
    added(theirs, tensors)
    x, text, image = inputs(TASKS["i2v"])
    lora.attach(ours, [(lora_files.read(path), WEIGHT, None)])
    with torch.no_grad():
        assert relative(velocity(ours, x, text, image), judged(theirs, x, text, image)) < LIMIT


def test_differences_of_norms_which_diffusers_drops_are_applied(tmp_path):
    ours, _ = transformers(TASKS["t2v"])
    norms = {
        f"diffusion_model.blocks.0.{name}.diff": 0.3 * torch.randn(96)
        for name in ("norm3", "self_attn.norm_q", "cross_attn.norm_k")
    }
    tensors = lightx2v(ours) | norms
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, tmp_path / "a.safetensors"
    )
    assert not any("norm" in key for key in WanPipeline.lora_state_dict(dict(tensors)))
    attached = lora.attach(ours, [(lora_files.read(tmp_path / "a.safetensors"), 1.0, None)])
    assert len(attached.swapped) == 3
