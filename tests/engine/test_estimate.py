"""What a stage needs, as counted and as watched on the meta device, against what really is alive."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from broll.engine import footprint, load, outlines
from broll.engine.config import PUBLISHED, VAEConfig
from broll.engine.estimate import estimate, text_freed
from broll.engine.load import Precision
from broll.engine.packed import PackedLinear
from broll.engine.pipeline import resolve
from broll.engine.shapes import Grid
from broll.engine.sources import sources
from broll.engine.text_encoder import umt5
from broll.spec import Artifact, parse
from tests import checkpoints

BF16 = Precision(linears=torch.bfloat16, text=torch.bfloat16)
WAN = PUBLISHED["wan2.1-t2v-1.3b"]


def cost(config=WAN, precision=BF16, device="cpu", **fields):
    spec = resolve(parse(model=config.name, prompt="a lake", **fields), config)
    return estimate(spec, config, precision=precision, device=device)


def test_an_estimate_grows_with_what_is_asked():
    plain = cost()
    assert [stage.name for stage in plain.stages] == ["text", "denoise", "decode"]
    half = cost(steps=25).stage("denoise").operations.total
    assert half == pytest.approx(plain.stage("denoise").operations.total / 2)
    assert cost(guidance=1.0).stage("denoise").operations.total == pytest.approx(half)
    assert cost(frames=41).stage("decode").operations.total < plain.stage("decode").operations.total
    assert cost(width=624, height=352).memory_bytes < plain.memory_bytes
    assert plain.memory_bytes > plain.weight_bytes > 2 * WAN.parameters


def test_decoding_needs_no_more_for_a_longer_clip():
    assert cost(frames=9).stage("decode").working == cost(frames=81).stage("decode").working


def test_pictures_and_a_video_to_follow_are_a_stage():
    picture = PUBLISHED["wan2.1-i2v-14b-480p"]
    made = cost(picture, image=Artifact.of(b"a picture"))
    assert [stage.name for stage in made.stages] == ["text", "image", "denoise", "decode"]
    assert made.stage("image").operations.convolution > 1e14
    assert cost(PUBLISHED["wan2.1-vace-1.3b"]).stage("image").operations.total > 1e14


def test_a_first_picture_that_is_kept_as_it_is_costs_one_frame_of_the_autoencoder():
    starts = dataclasses.replace(WAN, name="starts", task="ti2v")
    assert [stage.name for stage in cost(starts).stages] == ["text", "denoise", "decode"]
    made = cost(starts, image=Artifact.of(b"a picture"))
    assert [stage.name for stage in made.stages] == ["text", "image", "denoise", "decode"]
    whole = cost(PUBLISHED["wan2.1-vace-1.3b"]).stage("image")  # the same autoencoder, all frames
    assert 0 < made.stage("image").operations.total < whole.operations.total / 40
    assert made.stage("image").working < whole.working
    assert made.stage("denoise") == cost(starts).stage("denoise")


def test_a_text_encoder_that_is_let_go_is_in_memory_alone_and_then_not_at_all():
    whole = cost()
    freed = whole.changed(text_freed)
    text = dict(whole.held)["text_encoder"]
    assert freed.stage("text").weights == text
    assert freed.stage("denoise").weights == whole.weight_bytes - text
    assert freed.memory_bytes < whole.memory_bytes - 2e9


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_of_published_models_take_two_bytes_a_parameter_and_islands_four(name):
    sizes = footprint.built(PUBLISHED[name], BF16)
    parameters = PUBLISHED[name].parameters
    assert 2 * parameters < sizes["transformer"] < 2.2 * parameters
    assert sizes["vae"] == pytest.approx(507.6e6, rel=0.001)
    assert sizes["text_encoder"] == 2 * 5_680_910_336
    assert footprint.built(PUBLISHED[name], Precision())["transformer"] == 4 * parameters


def held(module):
    """Each storage once: umT5's embedding has two names. Packed weights (CPUs with bf16) are no parameters."""
    tensors = [*module.parameters(), *module.buffers()]
    packed = [t for m in module.modules() if isinstance(m, PackedLinear) for t in (m.weight, m.bias)]
    plain = sum({t.data_ptr(): t.nbytes for t in tensors if t.device.type != "meta"}.values())
    return plain + sum(t.nbytes for t in packed)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_weights_that_are_kept_are_those_that_are_loaded(tmp_path, task):
    folder = checkpoints.diffusers_folder(tmp_path, task)
    config = load.describe(folder, "tiny")
    parts = load.load(folder, "tiny", precision=BF16)
    sizes = footprint.kept(folder, config, BF16)
    assert sizes["transformer"] == held(parts.transformer)
    assert sizes["vae"] == held(parts.vae)
    assert sizes["text_encoder"] == held(parts.text.model)


def test_quantized_weights_are_counted_in_their_bytes(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = checkpoints.diffusers_folder(tmp_path)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    config = load.describe(folder, "tiny")
    plain = footprint.kept(folder, config, BF16)["transformer"]
    small = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.dim() == 2 and name.startswith("blocks.") else tensor
        for name, tensor in tensors.items()
    }
    save_file(small, file)
    parts = load.load(folder, "tiny", precision=BF16)
    sizes = footprint.kept(folder, config, BF16)
    assert sizes["transformer"] == held(parts.transformer) < plain
    as_if = footprint.built(config, BF16, "F8_E4M3")["transformer"]
    assert as_if == sizes["transformer"]
    assert sources(folder)["transformer"].open().kinds["F8_E4M3"] < sizes["transformer"]


REAL = """
import torch
from broll.engine.config import VAEConfig
from broll.engine.vae import VAE
from pathlib import Path

def peak():
    return int(next(l.split()[1] for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)) * 1024

torch.set_num_threads(1)
c = VAEConfig(base_dim=32)
vae = VAE(c).eval()
with torch.inference_mode():
    list(vae.decode_stream(torch.zeros(1, 16, 1, 2, 2)))
    before = peak()
    list(vae.decode_stream(torch.randn(1, 16, 3, 16, 16)))
print(peak() - before)
"""


def test_what_was_watched_on_meta_is_what_a_decoder_really_takes():
    done = subprocess.run(
        [sys.executable, "-c", REAL], capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin", "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )  # fmt: skip
    real = int(done.stdout)
    ours = footprint.decode(VAEConfig(base_dim=32), 16, 16, 3, torch.float32, "cpu")
    assert ours == pytest.approx(real, rel=0.15)


def test_a_forward_needs_as_many_bytes_a_token_as_its_tensors_have():
    """In bf16 at least: the residual stream, q and k in fp32, and q, k, v, the result and the input in bf16."""
    c, latent = WAN.transformer, Grid(21, 60, 104)
    tokens = 32_760
    need = footprint.forward(c, latent, 81, 0, torch.bfloat16, "cuda")
    assert tokens * c.dim * 22 < need < tokens * c.dim * 40
    hints = PUBLISHED["wan2.1-vace-1.3b"].transformer
    assert footprint.forward(hints, latent, 81, 0, torch.bfloat16, "cuda") > need


def test_an_estimate_of_a_model_that_is_not_here_reads_nothing_and_answers_at_once():
    import time

    umt5(checkpoints.TEXT_NUMBERS)  # imports transformers' models, which takes as long as all the rest
    begin = time.perf_counter()
    cost(PUBLISHED["wan2.1-t2v-14b"], device="cuda")
    assert time.perf_counter() - begin < 5


def watched(dtype):
    """A little of everything that is run on the meta device."""
    for function in (footprint.forward, footprint.decode, footprint.encode):
        function.cache_clear()
    seen = {"i2v": checkpoints.IMAGE_TOKENS}
    numbers = {task: checkpoints.transformer_numbers(task) for task in ("t2v", "i2v", "vace")}
    forwards = [
        footprint.forward(c, Grid(3, 4, 8), 9, seen.get(task, 0), dtype, "cpu") for task, c in numbers.items()
    ]
    decoded = footprint.decode(checkpoints.VAE_NUMBERS, 4, 8, 3, dtype, "cpu")
    return [*forwards, decoded, footprint.encode(checkpoints.PLAIN_VAE_NUMBERS, 64, 64, 9, dtype, "cuda")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outlines_are_those_that_torch_works_out(dtype, monkeypatch):
    quick = watched(dtype)
    monkeypatch.setattr(outlines, "OUTLINES", {})
    assert watched(dtype) == quick


def test_nothing_is_imported_to_plan_that_only_computing_needs():
    """The compiler of torch and transformers take seconds. Its own process: this one has them."""
    code = (
        "import sys; from broll.engine import footprint; from broll.engine.shapes import Grid;"
        "from broll.engine.config import PUBLISHED; import torch; c = PUBLISHED['wan2.1-t2v-1.3b'];"
        "footprint.forward(c.transformer, Grid(1, 4, 4), 9, 0, torch.bfloat16, 'cpu');"
        "footprint.decode(c.vae, 4, 4, 3, torch.float32, 'cpu');"
        "print({'torch._dynamo', 'sympy', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
