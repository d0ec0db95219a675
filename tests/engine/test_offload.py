"""Streamed blocks beside a model that is whole in memory: the same bits, in a fraction of it."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from broll.engine import footprint, formats, load, lora, lora_files, offload, packed, pipeline, vace
from broll.engine.interrupt import Interruptible
from broll.engine.shapes import Grid
from broll.engine.transformer import parameter_dtype
from broll.errors import BadCheckpoint, BadOption
from broll.spec import VideoSpec
from tests import checkpoints, loras
from tests import formats as files
from tests.cases import long

BF16 = load.Precision(linears=torch.bfloat16)
GRID = Grid(2, 4, 4)


def inputs(model):
    c, generator = model.config, torch.Generator().manual_seed(1)
    x = torch.randn(1, c.in_dim, 2, 4, 4, generator=generator)
    text = torch.randn(1, 7, c.text_dim, generator=generator)
    image = (
        None
        if c.image_dim is None
        else torch.randn(1, c.image_positions or 5, c.image_dim, generator=generator)
    )
    control = torch.randn(1, c.vace_in_dim or 1, 2, 4, 4, generator=generator)
    device = model.head.modulation.device
    return [None if tensor is None else tensor.to(device) for tensor in (x, text, image, control)]


@torch.inference_mode()
def velocities(model, steps=2):
    """Of both branches in some steps, one after the other, as guidance asks for them."""
    x, text, image, control = inputs(model)
    contexts = [model.context(GRID, sign * text, image) for sign in (1, -1)]
    if isinstance(model, vace.VACE):
        contexts = [model.follow(context, control) for context in contexts]
    out = []
    for step in range(steps):
        t = torch.tensor([900.0 - 300 * step], device=x.device)
        out += [model(x, t, context, step) for context in contexts]
    return torch.stack(out)


def both(folder, precision=None, **options):
    parts = [
        load.load(folder, "tiny", precision=precision, streamed=streamed, **options)
        for streamed in (False, True)
    ]
    assert [one.levers for one in parts] == [(), ("block_streaming",)]
    return [one.transformer for one in parts]


def sizes(model):
    """Bytes that the matrices of the blocks take now: each storage once."""
    storages = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.split(".")[0] in ("blocks", "vace_blocks") and (tensor.dim() == 2 or name.endswith(".data")):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


# --- the same bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [load.Precision(), BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("task", ["t2v", "vace", *long("i2v", "flf2v")])
def test_the_velocities_are_the_same_bit_for_bit(task, precision, tmp_path, monkeypatch):
    small = checkpoints.transformer_numbers(task)
    hinted = {"vace_layers": (0, 2)} if task == "vace" else {}
    monkeypatch.setattr(
        checkpoints, "transformer_numbers", lambda task: replace(small, num_layers=5, **hinted)
    )
    whole, streamed = both(checkpoints.diffusers_folder(tmp_path, task), precision)
    assert torch.equal(velocities(streamed), velocities(whole))
    assert type(whole.blocks[3].ffn[0]) is type(streamed.blocks[3].ffn[0])


@pytest.mark.parametrize(
    "form", ["official", "bf16", "shards", "fp8-rows", "fp8-one", "gguf-Q4_K", "gguf-F16"]
)
@pytest.mark.parametrize("precision", [load.Precision(), *long(BF16)], ids=["fp32", "bf16"])
def test_every_form_of_weights_is_streamed_as_it_is_kept(form, precision, tmp_path):
    whole, streamed = both(files.comfy_folder(tmp_path, form), precision)
    layers = [model.blocks[1].self_attn.q for model in (whole, streamed)]
    assert type(layers[0]) is type(layers[1])
    assert torch.equal(velocities(streamed), velocities(whole))


def test_weights_of_a_pickle_are_streamed_too(tmp_path):
    tensors = checkpoints.state(files.transformer())
    torch.save(tensors, tmp_path / "wan.pth")
    opened = formats.open_weights(tmp_path / "wan.pth")
    away, model = offload.Away(), load.on_meta(lambda: vace.transformer(files.NUMBERS))
    load.fill(opened, model, lambda name: torch.float32, away)
    assert away.entries
    assert all(entry.span is None for entry in away.entries.values())
    offload.stream(model, away, torch.device("cpu"))
    assert torch.equal(velocities(model), velocities(files.transformer()))


@pytest.mark.parametrize("weights", ["single", "gguf-Q8_0"])
def test_loras_beside_streamed_blocks_are_put_on_and_taken_off(weights, tmp_path):
    whole, streamed = both(files.comfy_folder(tmp_path, weights))
    file = loras.save(loras.pairs(files.transformer()), "comfy", tmp_path / "film.safetensors")
    plain = velocities(whole)
    for stack in ([(0.7, None)], [(1.0, (1, None))], []):
        entries = [(lora_files.read(file), weight, steps) for weight, steps in stack]
        for model in (whole, streamed):
            lora.attach(model, entries)
        assert torch.equal(velocities(streamed), velocities(whole))
        assert torch.equal(velocities(whole), plain) == (not stack)


def test_differences_of_norms_and_modulation_stay_in_force(tmp_path):
    """Such parameters are exchanged for others (lora_layers.Swapped), so they must not be streamed."""
    from safetensors.torch import save_file

    whole, streamed = both(files.comfy_folder(tmp_path))
    changed = {
        "diffusion_model.blocks.1.norm3.diff": torch.full((256,), 0.3),
        "diffusion_model.blocks.1.diff_m": torch.full((1, 6, 256), 0.2),
        "diffusion_model.blocks.0.ffn.0.diff_b": torch.full((512,), 0.1),
    }
    save_file(changed, tmp_path / "norms.safetensors")
    before = velocities(whole)
    for model in (whole, streamed):
        lora.attach(model, [(lora_files.read(tmp_path / "norms.safetensors"), 1.0, None)])
    assert torch.equal(velocities(streamed), velocities(whole))
    assert not torch.equal(velocities(whole), before)


def test_packed_linears_are_packed_when_they_come(tmp_path):
    """As `pack` does it, but in fp32, which any CPU can do."""
    from tests.engine.test_lora import packed_in_fp32

    path = files.transformer_file(tmp_path, "single")
    models = []
    for away in (None, offload.Away()):
        model = load.on_meta(lambda: vace.transformer(files.NUMBERS))
        load.fill(formats.open_weights(path), model, lambda name: torch.float32, away)
        models.append(packed_in_fp32(model))
        if away is not None:
            offload.stream(model, away, torch.device("cpu"))
    whole, streamed = models
    assert isinstance(streamed.blocks[0].ffn[1], packed.PackedLinear)
    assert torch.equal(velocities(streamed), velocities(whole))


def test_a_clip_is_the_same(tiny_models):
    spec = {"model": "tiny", "prompt": "a lake", "seed": 3}
    clips = []
    for streamed in (False, True):
        parts = load.load(tiny_models / "tiny", "tiny", streamed=streamed)
        whole = pipeline.resolve(VideoSpec(**spec), parts.config)
        events = pipeline.generate(whole, parts)
        clips.append(torch.cat([e.frames for e in events if isinstance(e, pipeline.Frames)], dim=1))
    assert torch.equal(*clips)


# --- who runs the blocks need not know --------------------------------------------------------------------


class Enough(Exception):
    pass


def test_blocks_in_any_order_or_left_out_are_the_right_ones(tmp_path):
    """An interrupted forward, and a stack that leaves blocks out."""
    whole, streamed = both(files.comfy_folder(tmp_path))
    wanted = velocities(whole)

    asked = []

    def stop():
        asked.append(1)
        if len(asked) == 2:
            raise Enough

    def skipping(model, order):
        def stack(tokens, context):
            for i in order:
                tokens = model.blocks[i](tokens, context)
            return tokens

        return stack

    streamed.stack = Interruptible(streamed, stop)
    with pytest.raises(Enough):
        velocities(streamed)
    for order in ([1], [1, 0, 0], []):
        for model in (whole, streamed):
            model.stack = skipping(model, order)
        assert torch.equal(velocities(streamed), velocities(whole))
    streamed.stack = streamed.run_blocks
    assert torch.equal(velocities(streamed), wanted)


def test_a_block_that_is_away_takes_nothing_and_gives_nothing_plausible(tmp_path):
    whole, streamed = both(files.comfy_folder(tmp_path))
    assert sizes(streamed) < sizes(whole) / 1000
    velocities(streamed)
    last = streamed.blocks[1].self_attn.q.weight
    assert not last.isnan().any()  # it is the one that ran last
    away = streamed.blocks[0].self_attn.q
    assert away(torch.ones(1, 256)).isnan().all()


# --- what can be wrong ------------------------------------------------------------------------------------


def test_a_checkpoint_is_refused_when_it_is_loaded_not_when_a_block_runs(tiny_models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"blocks.1.ffn.net.2.weight": torch.ones(24, 47)}, file)
    with pytest.raises(BadCheckpoint, match=r"blocks\.1\.ffn\.net\.2\.weight has shape"):
        load.load(folder, "tiny", streamed=True)
    del tensors["blocks.1.ffn.net.2.weight"]
    save_file(tensors, file)
    with pytest.raises(BadCheckpoint, match=r"lacks blocks\.1\.ffn\.2\.weight"):
        load.load(folder, "tiny", streamed=True)


def test_a_file_that_is_gone_is_one_line_and_the_next_try_reads_it_anew(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    model = load.load(folder, "tiny", streamed=True).transformer
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(BadCheckpoint, match=f"{file} cannot be read any more"):
        velocities(model)
    (tmp_path / "elsewhere").rename(file)
    assert torch.equal(velocities(model), velocities(load.load(folder, "tiny").transformer))


def test_a_file_that_was_changed_is_not_mixed_with_what_was_read_of_it_before(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models / "tiny", tmp_path / "tiny")
    model = load.load(folder, "tiny", streamed=True).transformer
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(BadCheckpoint, match=f"{file} was changed"):
        velocities(model)


def test_loras_are_not_merged_into_streamed_blocks(tiny_models, tmp_path):
    model = load.load(tiny_models / "tiny", "tiny").transformer
    read = lora_files.read(loras.save(loras.pairs(model), "comfy", tmp_path / "film.safetensors"))
    with pytest.raises(BadOption, match="cannot be merged into blocks that are streamed"):
        load.load(tiny_models / "tiny", "tiny", streamed=True, merge=[(read, 1.0, None)])


# --- memory -----------------------------------------------------------------------------------------------

MEASURE = """
import re, sys
from pathlib import Path
import torch
from broll.engine import detect, formats, load, offload
from broll.engine.shapes import Grid
from broll.engine.transformer import Transformer, parameter_dtype

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

small, path, low = sys.argv[1:]
torch.set_num_threads(1)

@torch.inference_mode()
def run(path):
    opened = formats.open_weights(Path(path))
    model = load.on_meta(lambda: Transformer(detect.transformer(opened)))
    model.compute_dtype = getattr(torch, low)
    away = offload.Away()
    load.fill(opened, model, lambda name: parameter_dtype(name, model.compute_dtype), away)
    offload.stream(model, away, torch.device("cpu"))
    context = model.context(Grid(1, 4, 4), torch.ones(1, 3, 256))
    for _ in range(2):
        model(torch.ones(1, 16, 1, 4, 4), torch.tensor([500.0]), context)

run(small)  # whatever is imported or set up once
Path("/proc/self/clear_refs").write_text("5")  # the peak so far does not count
before = status("VmRSS")
run(path)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    ("form", "low"), [("bf16", "float32"), pytest.param("single", "float32", marks=pytest.mark.slow)]
)
def test_a_streamed_model_takes_about_two_blocks(form, low, tmp_path, monkeypatch):
    """All pages of the process count, those of mapped files too."""
    small = files.transformer_file(tmp_path / "small", form)
    big = replace(files.NUMBERS, dim=512, ffn_dim=2048, num_heads=4, num_layers=16)
    monkeypatch.setattr(files, "NUMBERS", big)
    files.transformer.cache_clear()
    path = files.transformer_file(tmp_path / "big", form)
    files.transformer.cache_clear()
    opened = formats.open_weights(path)
    kept = footprint.of_opened(opened, lambda name: parameter_dtype(name, getattr(torch, low)))
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, small, path, low], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 0.4 * kept, f"{int(run.stdout)} of {kept}"


# --- CUDA -------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("pinnable", [10**9, 0], ids=["pinned", "file"])
@pytest.mark.parametrize("form", ["single", "fp8-rows", "gguf-Q4_K"])
def test_a_gpu_computes_the_same_bits_from_streamed_blocks(form, pinnable, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "NUMBERS", replace(files.NUMBERS, num_layers=8))
    files.transformer.cache_clear()
    folder = files.comfy_folder(tmp_path, form)
    files.transformer.cache_clear()
    whole, streamed = both(folder, BF16, device="cuda", pinnable=pinnable)
    assert sizes(streamed) < sizes(whole) / 1000
    for _ in range(3):
        assert torch.equal(velocities(streamed, steps=4), velocities(whole, steps=4))


@pytest.mark.gpu
def test_pinned_memory_is_given_back(tmp_path):
    memory = offload.pinned(1 << 20)
    assert memory.is_pinned()
    pointer = memory.data_ptr()
    del memory
    again = torch.empty(1 << 20, dtype=torch.uint8)
    assert again.data_ptr() != pointer or not again.is_pinned()


def test_names_of_what_is_streamed_are_those_of_the_matrices():
    model = load.on_meta(lambda: vace.transformer(files.numbers("vace")))
    matrices = {name for name, p in model.named_parameters() if offload.MATRIX.fullmatch(name)}
    assert {name.split(".")[0] for name in matrices} == {"blocks", "vace_blocks"}
    inside = {name for name, p in model.named_parameters() if p.dim() == 2 and "blocks." in name}
    assert {name.split(".", 2)[2] for name in inside - matrices} == {
        "before_proj.weight",
        "after_proj.weight",
    }
    assert all(parameter_dtype(name, torch.bfloat16) == torch.bfloat16 for name in matrices)
