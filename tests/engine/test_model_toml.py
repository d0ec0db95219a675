"""model.toml: parts from different places make one model; what it does not know it refuses by name."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from broll.engine import describe, load, model_toml, quantized, sources
from broll.engine.config import PUBLISHED
from broll.engine.pipeline import Frames, generate, resolve
from broll.errors import BadCheckpoint
from broll.spec import parse
from tests import checkpoints, formats


def clip(parts):
    spec = parse(model="mix", prompt="a lake", seed=4, frames=5, steps=2, width=64, height=32)
    events = generate(resolve(spec, parts.config), parts)
    return torch.cat([event.frames for event in events if isinstance(event, Frames)], dim=1)


@pytest.fixture
def folder(tmp_path):
    return formats.comfy_folder(tmp_path / "mix")


def change(folder, old, new):
    path = folder / "model.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_single_files_side_by_side_make_a_model(folder):
    parts = load.load(folder, "mix")
    assert parts.config.task == "t2v"
    assert (parts.config.transformer, parts.config.text) == (formats.NUMBERS, formats.TEXT)
    frames = clip(parts)
    assert frames.shape == (3, 5, 32, 64)
    assert frames.std() > 0


def test_a_distilled_checkpoint_is_known_by_its_name_and_model_toml_wins(folder, tmp_path):
    assert describe.describe(folder, "mix").defaults.grid == "official"
    named = tmp_path / "Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v"
    folder.rename(named)
    defaults = describe.describe(named, "mix").defaults
    assert (defaults.steps, defaults.guidance, defaults.shift) == (4, 1, 5)
    assert (defaults.sampler, defaults.grid) == ("euler", "distilled")
    with (named / "model.toml").open("a") as file:
        file.write("\n[defaults]\nsteps = 8\n")
    defaults = describe.describe(named, "mix").defaults
    assert (defaults.steps, defaults.grid) == (8, "distilled")
    plain = checkpoints.diffusers_folder(tmp_path / "Wan2.1_T2V_14B_FusionX")
    assert describe.describe(plain, "plain").defaults.steps == 8


def test_a_mix_of_quantized_files_makes_nearly_the_same_clip(folder, tmp_path):
    wanted = clip(load.load(folder, "mix"))
    for form, text, bound in (("gguf-Q8_0", "llama-Q8_0", 0.02), ("fp8-rows", "fp8-scaled", 0.05)):
        mixed = formats.comfy_folder(tmp_path / form, form, text=text)
        parts = load.load(mixed, "mix")
        assert any(isinstance(m, quantized.QuantizedLinear) for m in parts.transformer.modules())
        assert any(isinstance(m, quantized.QuantizedLinear) for m in parts.text.model.modules())
        error = float((clip(parts) - wanted).norm() / wanted.norm())
        assert 0 < error < bound


@pytest.mark.parametrize("task", ["i2v", "flf2v"])
def test_an_image_model_has_its_image_encoder(task, tmp_path):
    folder = formats.comfy_folder(tmp_path / "mix", "gguf-Q4_K", task)
    parts = load.load(folder, "mix")
    assert (parts.config.task, parts.config.image) == (task, formats.IMAGE)
    assert parts.image is not None
    change(folder, "[image_encoder]\n", "")
    change(folder, 'file = "clip_vision/clip_vision_h.safetensors"\n', "")
    with pytest.raises(BadCheckpoint, match=r"lacks \[image_encoder\]"):
        load.load(folder, "mix")


def test_quantized_weights_run_in_bf16_too(tmp_path):
    folder = formats.comfy_folder(tmp_path / "mix", "gguf-Q5_K", text="llama-Q8_0")
    low = load.Precision(linears=torch.bfloat16, text=torch.bfloat16)
    parts = load.load(folder, "mix", precision=low)
    assert parts.transformer.attend_name == "blocked"
    assert parts.transformer.blocks[0].ffn[0].bias.dtype == torch.bfloat16
    assert parts.transformer.blocks[0].modulation.dtype == torch.float32
    assert clip(parts).std() > 0


def test_a_part_may_come_from_a_whole_checkpoint(folder, tiny_models):
    """The transformer of a diffusers repository, with the encoders of single files."""
    source = checkpoints.transformer_numbers()
    change(folder, 'file = "diffusion_models/', f'folder = "{tiny_models / "tiny"}"\n# "')
    assert describe.describe(folder, "mix").transformer == source
    place = tiny_models / "tiny" / "transformer"
    change(folder, f'"{tiny_models / "tiny"}"', f'"{place}"')
    assert describe.describe(folder, "mix").transformer == source


def test_shards_are_a_folder(tmp_path):
    folder = formats.comfy_folder(tmp_path / "mix", "shards")
    assert load.describe(folder, "mix").transformer == formats.NUMBERS
    assert len(load.weight_files(folder)["transformer"]) == 2


def test_a_model_toml_beside_another_layout_replaces_what_it_names(tmp_path):
    folder = checkpoints.diffusers_folder(tmp_path / "tiny")
    file = formats.transformer_file(tmp_path, "gguf-Q8_0")
    (folder / "model.toml").write_text(f'[transformer]\nfile = "{file}"\n')
    found = sources.sources(folder)
    assert found["transformer"].place == file
    assert found["vae"].place == folder / "vae"
    config = describe.describe(folder, "tiny")
    assert (config.transformer, config.vae) == (formats.NUMBERS, checkpoints.VAE_NUMBERS)
    assert load.layout(folder) == "diffusers"


def test_paths_are_absolute_or_start_beside_the_file(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae = (folder / "vae" / "wan_2.1_vae.safetensors").rename(tmp_path / "vae.safetensors")
    with pytest.raises(BadCheckpoint, match=r"\[vae\] file vae/wan_2.1_vae.safetensors is missing"):
        load.load(folder, "mix")
    for path in (str(vae), "../vae.safetensors"):
        text = (folder / "model.toml").read_text()
        change(folder, 'file = "vae/wan_2.1_vae.safetensors"', f'file = "{path}"')
        assert sources.sources(folder)["vae"].place.samefile(vae)
        (folder / "model.toml").write_text(text)


def test_every_file_that_is_read_is_listed(folder):
    listed = load.weight_files(folder)
    assert {name: [path.name for path in paths] for name, paths in listed.items()} == {
        "transformer": ["wan2.1_t2v_single.safetensors"],
        "vae": ["wan_2.1_vae.safetensors"],
        "text_encoder": ["umt5_xxl_fp16.safetensors"],
    }


def test_defaults_are_those_of_the_file(folder):
    path = folder / "model.toml"
    path.write_text(
        path.read_text() + '[defaults]\nsteps = 4\nguidance = 1\nsize = [64, 32]\nsampler = "euler"\n'
    )
    defaults = describe.describe(folder, "mix").defaults
    assert (defaults.steps, defaults.guidance, defaults.size, defaults.sampler) == (4, 1.0, (64, 32), "euler")
    assert defaults.shift == 5.0


def test_a_file_of_another_width_or_task_than_the_named_model_is_refused(folder):
    path = folder / "model.toml"
    path.write_text('model = "wan2.1-i2v-14b-480p"\n' + path.read_text())
    said = (
        r"holds a text-to-video transformer of width 256 with 2 layers; wan2.1-i2v-14b-480p has an "
        r"image-to-video transformer of width 5120 with 40 layers: it is a checkpoint of another model"
    )
    with pytest.raises(BadCheckpoint, match=said):
        load.load(folder, "mix")
    with pytest.raises(BadCheckpoint, match=r"wan2\.1-t2v-14b has"):
        load.load(folder, "wan2.1-t2v-14b")


def test_a_file_that_is_another_component_is_refused(folder):
    change(folder, 'file = "vae/wan_2.1_vae.safetensors"', 'file = "text_encoders/umt5_xxl_fp16.safetensors"')
    with pytest.raises(BadCheckpoint, match=r"holds a text encoder .* not an autoencoder"):
        load.load(folder, "mix")


def test_a_published_model_keeps_its_defaults_under_another_name(folder, monkeypatch):
    numbers = dataclasses.replace(PUBLISHED["wan2.1-t2v-14b"], transformer=formats.NUMBERS)
    monkeypatch.setitem(PUBLISHED, "wan2.1-t2v-14b", numbers)
    found = describe.describe(folder, "mix")
    assert (found.name, found.defaults) == ("mix", numbers.defaults)
    assert (found.text, found.vae) == (formats.TEXT, formats.VAE_NUMBERS)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_part_that_is_not_named_is_asked_for(part, folder):
    text = (folder / "model.toml").read_text()
    blocks = [block for block in text.split("[") if block and not block.startswith(part)]
    (folder / "model.toml").write_text("".join(f"[{block}" for block in blocks))
    if part == "tokenizer":
        (folder / "tokenizer").rename(folder / "words")
    with pytest.raises(BadCheckpoint, match=rf"model\.toml lacks \[{part}\]"):
        load.load(folder, "mix")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[transformer", "cannot be read"),
        ("\0", "cannot be read"),
        ("[unet]\nfile = 'a'", "has 'unet'; possible are model, transformer"),
        ("transformer = 'a.gguf'", r"transformer must be a table, \[transformer\]"),
        ("[transformer]\npath = 'a'", r"\[transformer\] has 'path'; possible are file, folder, num_heads"),
        ("[transformer]", "must have either file or folder"),
        ("[transformer]\nfile = 'a'\nfolder = 'b'", "must have either file or folder"),
        ("[transformer]\nfile = 3", "file is 3; it must be a path"),
        ("[transformer]\nfile = ''", "file is ''; it must be a path"),
        ('[transformer]\nfile = "a\\u0000b"', "it must be a path"),
        ("[transformer]\nfile = 'none.gguf'", "file none.gguf is missing"),
        ("[transformer]\nfile = '.'", "file . is missing: .* is no file"),
        ("[transformer]\nfolder = '.'\nnum_heads = true", "num_heads is True"),
        ("[vae]\nfolder = '.'\nnum_heads = 2", r"\[vae\] has 'num_heads'"),
        ("[tokenizer]\nfile = 'a'", r"\[tokenizer\] has 'file'; possible are folder"),
        ("[tokenizer]", r"\[tokenizer\] must have folder"),
        ("[preview]", r"\[preview\] must have file"),
        ("[preview]\nfolder = 'a'", r"\[preview\] has 'folder'; possible are file"),
        ("[preview]\nfile = 'nowhere.pth'", r"\[preview\] file nowhere.pth is missing"),
        ("model = 'sora'", "model is 'sora'; possible are wan2.1-t2v-1.3b"),
        ("[defaults]\nstep = 3", r"\[defaults\] has 'step'; possible are size"),
        ("[defaults]\nsteps = 0", "steps is 0; it must be a whole number from 1"),
        ("[defaults]\nsteps = true", "steps is True"),
        ("[defaults]\nguidance = nan", "guidance is nan; it must be a number"),
        ("[defaults]\nsize = [3]", r"size is \[3\]; it must be \[width, height\]"),
        ("[defaults]\nsampler = 'ddim'", "sampler is 'ddim'; it must be one of unipc, dpm"),
        ("[defaults]\nnegative_prompt = 3", "negative_prompt is 3; it must be a text"),
    ],
)
def test_a_toml_that_says_something_else_is_refused(text, said, tmp_path):
    (tmp_path / "model.toml").write_text(text)
    with pytest.raises(BadCheckpoint, match=said) as caught:
        model_toml.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_heads_that_are_not_as_wide_as_the_published_ones_can_be_said(tmp_path):
    save_file(checkpoints.official_names(), tmp_path / "wan.safetensors")
    (tmp_path / "model.toml").write_text('[transformer]\nfile = "wan.safetensors"\n')
    with pytest.raises(BadCheckpoint, match=r"width 24 .* multiple of 128"):
        describe.describe(tmp_path, "small")
    (tmp_path / "model.toml").write_text('[transformer]\nfile = "wan.safetensors"\nnum_heads = 2\n')
    with pytest.raises(BadCheckpoint, match=r"lacks \[vae\]"):  # the transformer was understood
        describe.describe(tmp_path, "small")
