"""Passes in place of what lies between products: the same velocities beside all other features, and no trace of it."""

import os
from dataclasses import replace
from functools import wraps
from pathlib import Path

import pytest
import torch

from broll.engine import compiled, fused, lora, lora_files, snapshot, sparse
from broll.engine.compiled import Compiler, Dropped
from broll.engine.config import PUBLISHED
from broll.engine.load import Parts, Precision, load
from broll.engine.pipeline import Warned, generate, resolve
from broll.engine.sampler import Step
from broll.engine.shapes import Grid
from broll.engine.step_cache import StepCache
from broll.engine.transformer import set_precision
from broll.errors import BadOption
from broll.spec import parse
from tests import checkpoints, loras
from tests import formats as files
from tests.engine.test_offload import both, velocities
from tests.parity.judge import relative

TASKS = ["t2v", "i2v", "flf2v", "vace"]


def plain():
    """The functions as they are."""
    return Compiler(compiled.ON, None)


def model_of(task):
    from broll.engine import vace

    return checkpoints.built(lambda: vace.transformer(checkpoints.transformer_numbers(task))).requires_grad_(
        False
    )


def fast(model, compiler=None):
    compiler = compiler or plain()
    with fused.on(model, compiler, wanted=True):
        out = velocities(model)
    assert compiler.dropped == {}
    return out


@pytest.mark.parametrize("task", TASKS)
def test_a_model_of_every_task_gives_the_velocities_of_its_plain_blocks(task):
    model = model_of(task)
    before = velocities(model)
    assert relative(fast(model), before) < 1e-5
    assert torch.equal(velocities(model), before)  # nothing is left of it


def test_in_bf16_it_is_as_close_to_fp32_as_the_plain_blocks_are():
    truth = velocities(model_of("t2v"))
    model = set_precision(model_of("t2v"), torch.bfloat16)
    assert relative(fast(model), truth) < 1.2 * relative(velocities(model), truth)


def test_each_frame_may_have_a_time_of_its_own():
    model = model_of("t2v")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 16, 3, 4, 6, generator=generator)
    context = model.context(Grid(3, 4, 6), torch.randn(1, 7, 16, generator=generator))
    time = torch.tensor([[0.0, 500.0, 900.0]])
    with torch.inference_mode():
        wanted = model(x, time, context)
        with fused.on(model, plain(), wanted=True):
            assert relative(model(x, time, context), wanted) < 1e-5


def test_loras_come_and_go_and_nothing_is_compiled_anew(tmp_path):
    made = []

    def backend(graph, _):
        made.append(graph)
        return graph.forward

    model, compiler = files.transformer().requires_grad_(False), Compiler(compiled.ON, backend)
    first = fast(model, compiler)
    count = len(made)
    file = loras.save(loras.pairs(model), "comfy", tmp_path / "film.safetensors")
    for stack in ([(0.7, None)], [(1.0, (1, None))], []):
        lora.attach(model, [(lora_files.read(file), weight, steps) for weight, steps in stack])
        out = fast(model, compiler)
        assert relative(out, velocities(model)) < 1e-5
        assert torch.allclose(out, first) == (not stack)
    assert len(made) == count > 5


def test_streamed_and_quantized_blocks_go_on_as_they_are(tmp_path):
    whole, streamed = both(files.comfy_folder(tmp_path, "gguf-Q8_0"))
    made = fast(whole)
    assert torch.equal(fast(streamed), made)
    assert relative(made, velocities(whole)) < 1e-5


def test_in_fp8_an_input_is_rounded_once_for_all_that_share_it(tmp_path, monkeypatch):
    from broll.engine import fp8

    if not fp8.available(torch.device("cpu")):
        pytest.skip("this torch multiplies no fp8 on a CPU")
    folder = files.comfy_folder(tmp_path, "fp8-rows")
    parts = load(folder, "tiny", precision=Precision(native_fp8=True))
    model = parts.transformer
    assert dict(parts.digests)["native_fp8"].endswith(" matrices")  # a snapshot and a record tell it
    assert "native_fp8" not in dict(load(folder, "tiny").digests)
    wanted, asked, rounded = velocities(model), [], fp8.rounded
    monkeypatch.setattr(fp8, "rounded", lambda x: asked.append(x) or rounded(x))
    assert relative(fast(model, Compiler(compiled.ON, None)), wanted) < 1e-3
    blocks, forwards = len(model.blocks), 4
    of_prompts, compared = 2 * 2 * blocks, 1
    assert len(asked) == 6 * blocks * forwards + of_prompts + compared


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_integers_of_a_gpu_are_rounded_once_for_all_that_share_them_and_scaled_in_one_pass(
    backend, monkeypatch
):
    from torch import nn

    from broll.engine import int8

    cpu, model = torch.device("cpu"), model_of("t2v")
    if int8.reach(cpu) == 0:
        pytest.skip("this CPU has no products of integers")
    exact = velocities(model)
    monkeypatch.setattr(int8, "laid_out", lambda integers: integers)
    assert int8.use(model, cpu)
    for layer in model.modules():
        if isinstance(layer, int8.Int8Linear):
            layer.packed = False  # on a GPU they are not, and torch multiplies such ones on a CPU too
    for block in model.blocks:
        block.ffn = nn.Sequential(*block.ffn)
    wanted, asked = velocities(model), []
    assert 0 < relative(wanted, exact) < 0.1
    if backend is None:
        for name in ("rounded", "scaled"):
            whole = getattr(int8, name)
            told = wraps(whole)(lambda *x, name=name, whole=whole: asked.append(name) or whole(*x))
            monkeypatch.setattr(int8, name, told)
    assert relative(fast(model, Compiler(compiled.ON, backend)), wanted) < 1e-3
    if backend is None:
        blocks, forwards = len(model.blocks), 4
        of_prompts, compared = 2 * 2 * blocks, 1  # keys and values of text, once a prompt
        assert asked.count("rounded") == 6 * blocks * forwards + of_prompts + compared
        assert asked.count("scaled") == 8 * blocks * forwards + of_prompts + compared


def test_skipped_steps_and_sparse_attention_go_with_it(tiny_models):
    parts = load(tiny_models / "tiny", "tiny")
    model = parts.transformer
    model.stack = StepCache(model.run_blocks, frozenset({1}))
    assert relative(fast(model), velocities(model)) < 1e-5
    model.stack = model.run_blocks
    fields = {"frames": 17, "sparsity": 0.6, "steps": 4}
    both_on, told = clip(replace(parts, compiler=Compiler(compiled.ON, "aot_eager")), **fields)
    slow, _ = clip(parts, **fields)
    assert told == []
    assert relative(both_on[-1].x, slow[-1].x) < 1e-4


# --- a clip -----------------------------------------------------------------------------------------------


def spec_of(parts: Parts, **fields):
    given = {"model": "tiny", "prompt": "a lake", "seed": 4, "frames": 9}
    return resolve(parse(**given | fields), parts.config)


def clip(parts, **fields):
    """Steps, and what was told."""
    events = list(generate(spec_of(parts, **fields), parts))
    steps = [event for event in events if isinstance(event, Step)]
    return steps, [event.text for event in events if isinstance(event, Warned)]


def test_a_clip_says_that_it_was_compiled_and_the_next_one_without_is_the_plain_one(tiny_models):
    parts = load(tiny_models / "tiny", "tiny")
    before, _ = clip(parts)
    on = replace(parts, compiler=Compiler(compiled.ON, "aot_eager"))
    made, told = clip(on)
    assert told == []
    assert relative(made[-1].x, before[-1].x) < 1e-4
    assert snapshot.conditions(on, spec_of(on))["compiled"] == "blocks"
    assert "compiled" not in snapshot.conditions(parts, spec_of(parts))
    assert torch.equal(clip(parts)[0][-1].x, before[-1].x)


def raises(graph, _):
    raise RuntimeError("no compiler here\nmore lines")


def wrong(graph, _):
    return lambda *given: tuple(out * 1.5 for out in graph.forward(*given))


@pytest.mark.parametrize(("backend", "words"), [(raises, "no compiler here"), (wrong, "off by")])
def test_a_compiler_that_fails_costs_one_warning_and_no_picture(backend, words, tiny_models):
    torch._dynamo.reset()
    parts = load(tiny_models / "tiny", "tiny")
    plain_clip, _ = clip(parts)
    broken = replace(parts, compiler=Compiler(compiled.ON, backend))
    steps, told = clip(broken)
    assert len(told) == 1 and words in told[0] and "\n" not in told[0]
    assert torch.equal(steps[-1].x, plain_clip[-1].x)
    assert "compiled" not in snapshot.conditions(broken, spec_of(broken))
    assert clip(broken)[1] == []  # it is not asked again


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_inductor_itself_makes_a_pass_for_any_number_of_tokens(tmp_path, monkeypatch):
    """The one that all models need; the others go through the same compiler in benchmarks/gpu.py."""
    if compiled.refusal(torch.device("cpu")):
        pytest.skip("there is no C++ compiler here")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiler = Compiler(compiled.ON)
    for tokens in (24, 40):
        given = torch.randn(1, tokens, 32), torch.randn(1, tokens, 32).bfloat16(), torch.randn(1, 1, 32)
        out = fused.Passes(compiler)._pass(fused.after_ffn, *given)
        torch.testing.assert_close(out, fused.after_ffn(*given))
    assert compiler.dropped == {}


# --- the choice -------------------------------------------------------------------------------------------


def asked(name, size, **fields):
    config = PUBLISHED[name]
    given = {"model": name, "prompt": "a lake", "seed": 1, "width": size[0], "height": size[1]}
    return resolve(parse(**given | fields), config), config


@pytest.mark.parametrize(
    ("name", "size", "fields", "pays"),
    [
        ("wan2.1-t2v-14b", (832, 480), {"steps": 50}, True),
        ("wan2.1-t2v-14b", (832, 480), {"steps": 4, "guidance": 1}, False),
        ("wan2.1-t2v-14b", (1280, 720), {"steps": 4, "guidance": 1}, False),
        ("wan2.1-t2v-14b", (1280, 720), {"steps": 8, "guidance": 5}, True),
        ("wan2.1-t2v-1.3b", (832, 480), {"steps": 50}, False),
        ("wan2.1-t2v-1.3b", (832, 480), {"steps": 50, "frames": 161}, True),
    ],
)
def test_auto_compiles_for_clips_that_it_pays_for(name, size, fields, pays):
    spec, config = asked(name, size, **fields)
    assert fused.wanted(spec, config, Compiler(compiled.AUTO)) == pays
    assert fused.wanted(spec, config, Compiler(compiled.ON))
    assert not fused.wanted(spec, config, Compiler(compiled.OFF))
    assert fused.named(spec, config, Compiler(compiled.AUTO)) == ("blocks" if pays else "")


def test_on_a_cpu_only_who_asks_gets_it_and_elsewhere_it_is_refused_in_a_line():
    cpu = torch.device("cpu")
    assert compiled.chosen("auto", cpu) == compiled.chosen("off", cpu) == "off"
    assert (compiled.chosen("on", cpu) == "on") if not compiled.refusal(cpu) else True
    with pytest.raises(BadOption, match=r"compile on is not possible here: .*the device here is mps"):
        compiled.chosen("on", torch.device("mps"))
    with pytest.raises(BadOption, match="'fast'; possible are auto, on and off"):
        compiled.chosen("fast", cpu)


def test_a_model_is_loaded_with_what_was_asked_for(tiny_models):
    for how in ("auto", "off"):
        assert load(tiny_models / "tiny", "tiny", compile=how).compiler.how == "off"
    if not compiled.refusal(torch.device("cpu")):
        assert load(tiny_models / "tiny", "tiny", compile="on").compiler.how == "on"
    with pytest.raises(BadOption):
        load(tiny_models / "tiny", "tiny", compile="fast")


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, "mine"), ("/tmp/torchinductor_root", "mine"), ("/var/cache/compiled", "/var/cache/compiled")],
)
def test_what_is_compiled_is_kept_where_somebody_said_or_else_with_the_data(given, kept, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    monkeypatch.setenv(compiled.THREADS, "1")
    monkeypatch.setenv(compiled.FOLDER, given or "")
    compiled.keep(Path("mine"))
    assert os.environ[compiled.FOLDER] == kept


def test_nan_is_no_result():
    compiler = plain()
    with pytest.raises(Dropped):
        compiler.run("blocks", "x", lambda: torch.full((3,), torch.nan), lambda: torch.ones(3))
    assert not compiler.makes("blocks") and compiler.makes("sparse")
    assert len(compiler.news()) == 1 and compiler.news() == []


def test_sparse_attention_by_flex_is_named_too():
    spec, config = asked("wan2.1-t2v-14b", (256, 256), steps=4, guidance=1, sparsity=0.5)
    assert fused.named(spec, config, Compiler(compiled.AUTO)) == "sparse"
    assert not sparse.by_flex(spec, config, Compiler(compiled.OFF))
