"""Every form of file gives the model that it was made from: exactly where nothing is lost, else within a bound."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from broll.engine import detect, formats, load, quantized
from broll.engine.image_encoder import clip_vision
from broll.engine.shapes import Grid
from broll.engine.text_encoder import umt5
from broll.engine.transformer import Transformer
from broll.engine.vae import VAE
from broll.errors import BadCheckpoint
from tests import formats as files
from tests.engine.test_load import same

# Relative error of the transformer's output, root mean square: about twice what is measured with these weights.
BOUNDS = {
    "f16": 6e-4, "bf16": 5e-3, "gguf-F16": 1e-4, "gguf-BF16": 6e-4, "fp8": 0.01,
    **dict.fromkeys(files.FP8_FORMS, 0.01),
    "gguf-Q8_0": 0.0015, "gguf-Q6_K": 0.006, "gguf-Q5_K": 0.012, "gguf-Q5_1": 0.011, "gguf-Q5_0": 0.011,
    "gguf-Q4_K": 0.022, "gguf-Q4_1": 0.023, "gguf-Q4_0": 0.022,
}  # fmt: skip


def fp32(name):
    return torch.float32


def read_transformer(path, dtype=fp32):
    opened = formats.open_weights(path, "transformer")
    model = load.on_meta(lambda: Transformer(detect.transformer(opened)))
    load.fill(opened, model, dtype)
    return model.eval()


@torch.no_grad()
def output(model):
    random = torch.Generator().manual_seed(4)
    x = torch.randn(1, model.config.in_dim, 2, 4, 4, generator=random)
    text = torch.randn(1, 7, 256, generator=random)
    image = None
    if model.config.image_dim is not None:
        count = model.config.image_positions or 5
        image = torch.randn(1, count, model.config.image_dim, generator=random)
    return model(x, torch.tensor([500.0]), model.context(Grid(2, 4, 4), text, image))


@pytest.mark.parametrize("form", files.TRANSFORMER_FORMS)
def test_every_form_gives_the_transformer_it_was_made_from(form, tmp_path):
    truth = files.transformer()
    model = read_transformer(files.transformer_file(tmp_path, form))
    if form in files.LOSSLESS:
        assert same(model, truth)
        return
    wanted = output(truth)
    error = float((output(model) - wanted).norm() / wanted.norm())
    assert 0 < error < BOUNDS[form]


@pytest.mark.parametrize("task", ["t2v", "i2v", "flf2v", "vace"])
@pytest.mark.parametrize("form", ["official", "diffusers", "fp8-rows", "gguf-Q8_0"])
def test_the_task_and_the_numbers_are_told_by_the_tensors(form, task, tmp_path):
    opened = formats.open_weights(files.transformer_file(tmp_path, form, task))
    assert (opened.component, detect.transformer(opened)) == ("transformer", files.numbers(task))
    assert detect.task_of(detect.transformer(opened)) == task


@pytest.mark.parametrize("form", files.TEXT_FORMS)
def test_every_form_gives_the_text_encoder_it_was_made_from(form, tmp_path):
    truth = files.text_encoder()
    opened = formats.open_weights(files.text_file(tmp_path, form))
    assert (opened.component, detect.text(opened)) == ("text_encoder", files.TEXT)
    model = load.on_meta(lambda: umt5(files.TEXT))
    load.fill(opened, model, fp32)
    ids = torch.tensor([[5, 17, 60, 1]])
    with torch.no_grad():
        ours, wanted = model(input_ids=ids).last_hidden_state, truth(input_ids=ids).last_hidden_state
    error = float((ours - wanted).norm() / wanted.norm())
    bound = {"fp16": 1e-3, "llama-F16": 1e-3, "fp8-scaled": 0.1, "llama-Q8_0": 0.02}.get(form, 0)
    assert error <= bound


def test_the_autoencoder_is_read_under_both_names(tmp_path):
    truth = files.vae()
    save_file(files.official_vae(), tmp_path / "wan_2.1_vae.safetensors")
    save_file(files.state(truth), tmp_path / "diffusers.safetensors")
    for name, names in (("wan_2.1_vae", "official"), ("diffusers", "diffusers")):
        opened = formats.open_weights(tmp_path / f"{name}.safetensors")
        assert (opened.component, opened.names) == ("vae", names)
        assert detect.vae(opened) == files.VAE_NUMBERS
        model = load.on_meta(lambda: VAE(files.VAE_NUMBERS))
        load.fill(opened, model, fp32)
        assert same(model, truth)


def test_a_single_clip_file_is_read_without_what_wan_does_not_use(tmp_path):
    files.comfy_folder(tmp_path, task="i2v")
    opened = formats.open_weights(tmp_path / "clip_vision" / "clip_vision_h.safetensors")
    assert (opened.component, detect.image(opened)) == ("image_encoder", files.IMAGE)
    model = load.on_meta(lambda: clip_vision(files.IMAGE))
    load.fill(opened, model, fp32)
    truth = files.image_encoder()
    assert all(torch.equal(p, dict(truth.named_parameters())[n]) for n, p in model.named_parameters())


def test_quantized_weights_stay_quantized_and_islands_are_fp32(tmp_path):
    for form, kind in (("fp8-rows", "F8_E4M3"), ("gguf-Q4_K", "Q4_K"), ("fp8", "F8_E4M3")):
        model = read_transformer(files.transformer_file(tmp_path, form))
        low = [m for n, m in model.named_modules() if isinstance(m, quantized.QuantizedLinear)]
        assert len(low) == 2 * 10
        assert {m.kind for m in low} == {kind}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not any("head" in n or "embedding" in n for n, m in model.named_modules() if m in low)


def test_fp8_outside_the_blocks_becomes_plain(tmp_path):
    """Some converters cast everything; the islands are fp32 all the same."""
    tensors = {name: tensor.to(files.FP8) for name, tensor in files.state(files.transformer()).items()}
    save_file(tensors, tmp_path / "all.safetensors")
    model = read_transformer(tmp_path / "all.safetensors")
    assert torch.equal(model.patch_embedding.weight, tensors["patch_embedding.weight"].float())
    assert torch.equal(model.blocks[0].modulation, tensors["blocks.0.modulation"].float())


def test_a_header_may_say_for_all_layers_what_they_are(tmp_path):
    tensors = files.fp8_scaled(files.state(files.transformer()), "lightx2v")
    layers = {"blocks.0.self_attn.q": {"format": "float8_e4m3fn"}}
    path = tmp_path / "wan.safetensors"
    save_file(tensors, path, metadata={"_quantization_metadata": json.dumps({"layers": layers})})
    read_transformer(path)
    layers["blocks.0.self_attn.k"] = {"format": "nvfp4"}
    save_file(tensors, path, metadata={"_quantization_metadata": json.dumps({"layers": layers})})
    with pytest.raises(BadCheckpoint, match=r"blocks\.0\.self_attn\.k says .*nvfp4"):
        read_transformer(path)


def comfy_quant(value):
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        ("comfy_quant", comfy_quant({"format": "nvfp4"}), "possible formats are float8_e4m3fn"),
        (
            "comfy_quant",
            comfy_quant({"format": "float8_e5m2"}),
            "says float8_e5m2, but the weight is F8_E4M3",
        ),
        ("comfy_quant", comfy_quant({"format": "float8_e4m3fn", "convrot": True}), "asks for convrot"),
        ("comfy_quant", comfy_quant(["float8_e4m3fn"]), "possible formats are"),
        ("comfy_quant", torch.tensor([123, 34], dtype=torch.uint8), "is not JSON"),
        ("weight_scale", torch.ones(3), r"shape \[3\] .* is no scale of blocks.0.ffn.0.weight"),
        ("weight_scale", torch.ones(512, 3, 1), "is no scale of"),
        ("weight_scale", torch.ones((), dtype=torch.int64), "kind I64, which is no scale"),
        ("weight_scale_2", torch.ones(()), "fp4 and fp8 with scales of their own"),
        ("weight_global_scale", torch.ones(()), "fp4 and fp8 with scales of their own"),
    ],
)
def test_a_scale_that_does_not_fit_is_named(key, tensor, said, tmp_path):
    tensors = files.fp8_scaled(files.state(files.transformer()), "comfy_quant")
    tensors[f"blocks.0.ffn.0.{key}"] = tensor
    save_file(tensors, tmp_path / "wan.safetensors")
    with pytest.raises(BadCheckpoint, match=rf"blocks\.0\.ffn\.0\.{key}.*{said}|{said}"):
        formats.open_weights(tmp_path / "wan.safetensors")


def test_a_scale_without_its_weight_and_integers_without_a_scale_are_named(tmp_path):
    tensors = files.fp8_scaled(files.state(files.transformer()), "scalar")
    alone = {name: t for name, t in tensors.items() if name != "blocks.0.ffn.2.weight"}
    save_file(alone, tmp_path / "alone.safetensors")
    with pytest.raises(BadCheckpoint, match=r"has blocks\.0\.ffn\.2\.scale_\w+, but not the weight"):
        formats.open_weights(tmp_path / "alone.safetensors")
    tensors = files.state(files.transformer())
    tensors["blocks.1.ffn.0.weight"] = tensors["blocks.1.ffn.0.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "integers.safetensors")
    with pytest.raises(BadCheckpoint, match=r"blocks\.1\.ffn\.0\.weight as integers"):
        formats.open_weights(tmp_path / "integers.safetensors")


def test_one_scale_that_is_lost_or_there_twice_is_named(tmp_path):
    tensors = files.fp8_scaled(files.state(files.transformer()), "rows")
    scale = tensors.pop("blocks.1.ffn.0.scale_weight")
    save_file(tensors, tmp_path / "lost.safetensors")
    with pytest.raises(BadCheckpoint, match=r"blocks\.1\.ffn\.0\.weight as F8_E4M3, but not its scale"):
        formats.open_weights(tmp_path / "lost.safetensors")
    tensors |= {f"blocks.1.ffn.0.{name}": scale.clone() for name in ("scale_weight", "weight_scale")}
    save_file(tensors, tmp_path / "twice.safetensors")
    with pytest.raises(BadCheckpoint, match="a second scale of its weight"):
        formats.open_weights(tmp_path / "twice.safetensors")


def test_integers_with_a_scale_are_read(tmp_path):
    tensors = files.state(files.transformer())
    weight = tensors["blocks.1.ffn.0.weight"]
    scale = weight.abs().amax(1, keepdim=True) / 127
    tensors["blocks.1.ffn.0.weight"] = (weight / scale).round().to(torch.int8)
    tensors["blocks.1.ffn.0.weight_scale"] = scale
    save_file(tensors, tmp_path / "wan.safetensors")
    layer = read_transformer(tmp_path / "wan.safetensors").blocks[1].ffn[0]
    assert layer.kind == "I8"
    assert (layer.dequantized(torch.float32) - weight).abs().max() <= scale.max() / 2 * 1.001


@pytest.mark.parametrize("component", ["vae", "text_encoder", "image_encoder"])
def test_a_file_of_another_component_says_which_it_is(component, tmp_path):
    path = files.transformer_file(tmp_path, "single")
    with pytest.raises(BadCheckpoint, match=r"holds a transformer \(under official names\), not an? "):
        formats.open_weights(path, component)


def test_a_file_of_another_kind_of_model_is_named(tmp_path):
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2)}, tmp_path / "flux.safetensors")
    with pytest.raises(BadCheckpoint, match=r"nothing that WAN 2.1 has: its first tensor is double_blocks"):
        formats.open_weights(tmp_path / "flux.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"control_adapter.conv.weight": (4,)}, r"is a camera-controlled model \(it has control_adapter"),
        ({"patch_embedding.weight": (256, 36, 1, 2, 2)}, "36 channels and no image branch"),
        ({"patch_embedding.weight": (256, 32, 1, 2, 2)}, "32 channels and no image branch"),
        ({"patch_embedding.weight": (250, 16, 1, 2, 2)}, "has the width 250"),
        ({"patch_embedding.weight": (256, 16)}, "needs 5 axes"),
        ({"blocks.3.norm3.bias": (256,)}, r"lacks blocks\.2\.\*"),
        ({"text_embedding.0.weight": None}, r"lacks text_embedding\.0\.weight"),
    ],
)
def test_a_transformer_that_this_engine_does_not_run_is_named(change, said, tmp_path):
    tensors = files.state(files.transformer())
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape)
    save_file(tensors, tmp_path / "wan.safetensors")
    with pytest.raises(BadCheckpoint, match=said):
        detect.transformer(formats.open_weights(tmp_path / "wan.safetensors"))


def test_a_folder_with_two_models_is_refused(tmp_path):
    files.transformer_file(tmp_path, "single")
    files.transformer_file(tmp_path, "fp8")
    with pytest.raises(BadCheckpoint, match="name one file"):
        formats.open_weights(tmp_path)


def test_what_a_file_takes_in_memory_is_known_before_it_is_read(tmp_path):
    path = files.transformer_file(tmp_path, "gguf-Q4_K")
    kinds = formats.open_weights(path).kinds
    assert sum(kinds.values()) == pytest.approx(path.stat().st_size, rel=0.02)
    held = quantized.held(read_transformer(path))
    assert held["Q4_K"] == kinds["Q4_K"]


def test_the_same_tensor_under_two_names_is_refused(tmp_path):
    path = files.text_file(tmp_path, "transformers")
    tensors = load_file(path)
    tensors["token_embd.weight"] = tensors["shared.weight"].clone()
    save_file(tensors, path)
    with pytest.raises(BadCheckpoint, match="token_embd"):
        load.fill(formats.open_weights(path), load.on_meta(lambda: umt5(files.TEXT)), fp32)
