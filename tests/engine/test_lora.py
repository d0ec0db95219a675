"""LoRAs on a model: beside and merged they are what one computes by hand; taken off, nothing has happened."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from broll.engine import lora, lora_files, packed, pipeline, quantized
from broll.engine.load import load
from broll.engine.lora_layers import BesideLinear
from broll.engine.shapes import Grid
from broll.engine.stored import Stored, as_rows
from broll.engine.transformer import Transformer, set_precision
from broll.errors import BadCheckpoint, BadOption
from broll.spec import VideoSpec
from tests import checkpoints, loras
from tests.parity.judge import TASKS, relative, shake

EXACT = 1e-6
GRID, TIME = Grid(2, 4, 4), torch.tensor([749.0])


def built(task="i2v"):
    """The same random weights every time."""
    model = checkpoints.built(lambda: Transformer(TASKS[task])).requires_grad_(False)
    shake(model)
    return model


@pytest.fixture
def model():
    return built()


def inputs(config):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, config.in_dim, 2, 4, 4, generator=generator)
    text = torch.randn(1, 20, config.text_dim, generator=generator)
    image = None if config.image_dim is None else torch.randn(1, 17, config.image_dim, generator=generator)
    return x, text, image


@torch.inference_mode()
def velocity(model, step=0, context=None):
    x, text, image = inputs(model.config)
    return model(x, TIME, context or model.context(GRID, text, image), step)


def with_state(model, state):
    other = built("i2v" if model.config.image_dim else "t2v")
    other.load_state_dict(state)
    return velocity(other)


def saved(tmp_path, tensors, name="a"):
    file = tmp_path / f"{name}.safetensors"
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, file)
    return lora_files.read(file)


def style(tmp_path, model, name="style", pattern="", seed=7):
    made = loras.pairs(model, pattern, seed)
    return made, lora_files.read(loras.save(made, "comfy", tmp_path / f"{name}.safetensors"))


def differences(model, seed=3):
    """Every parameter of a model changes: `.diff`, `.diff_b` and `.diff_m`, and the same by parameter."""
    generator = torch.Generator().manual_seed(seed)
    tensors, changes = {}, {}
    for name, parameter in model.named_parameters():
        change = 0.1 * torch.randn(parameter.shape, generator=generator)
        changes[name] = change
        if name.endswith(".modulation"):
            tensors[f"diffusion_model.{name.removesuffix('.modulation')}.diff_m"] = change
        elif name.endswith("emb_pos"):
            tensors[f"diffusion_model.{name}.diff"] = change
        elif name.endswith(".bias"):
            tensors[f"diffusion_model.{name.removesuffix('.bias')}.diff_b"] = change
        else:
            tensors[f"diffusion_model.{name.removesuffix('.weight')}.diff"] = change
    return tensors, changes


# --- the same numbers as by hand --------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*loras.FORMS, "peft"])
def test_every_form_beside_and_merged_is_what_one_computes_by_hand(form, model, tmp_path):
    made = loras.pairs(model)
    if form == "peft":
        path = loras.save_peft(made, tmp_path / "style")
    else:
        path = loras.save(made, form, tmp_path / "style.safetensors")
    truth = with_state(model, loras.by_hand(model, made, 0.7))
    plain = velocity(model)
    read = lora_files.read(path)
    attached = lora.attach(model, [(read, 0.7, None)])
    assert attached is not None
    assert attached.unused == ()
    assert relative(velocity(model), truth) < EXACT
    assert relative(plain, truth) > 0.1
    lora.detach(model)
    lora.merge(model, [(read, 0.7, None)])
    assert relative(velocity(model), truth) < EXACT


@pytest.mark.parametrize("task", ["t2v", "flf2v"])
def test_a_difference_of_every_parameter_is_added(task, tmp_path):
    tensors, changes = differences(built(task))
    read = saved(tmp_path, tensors)
    truth, model, merged = built(task), built(task), built(task)
    for name, parameter in truth.named_parameters():
        parameter.data += 0.5 * changes[name]
    lora.attach(model, [(read, 0.5, None)])
    lora.merge(merged, [(read, 0.5, None)])
    x, text, _ = inputs(truth.config)
    image = None if task == "t2v" else torch.randn(1, 34, 40)
    with torch.inference_mode():
        wanted, beside, inside = (m(x, TIME, m.context(GRID, text, image)) for m in (truth, model, merged))
    assert relative(beside, wanted) < EXACT
    assert relative(inside, wanted) < EXACT
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, truth.get_parameter(name)), name


def test_one_linear_under_a_pair_a_difference_and_a_bias(tmp_path):
    base = torch.nn.Linear(24, 40).requires_grad_(False)
    d = lora_files.Delta(
        "x", ("x",), torch.randn(3, 24), torch.randn(40, 3), 2.0, torch.randn(40, 24), torch.randn(40)
    )
    layer = BesideLinear(base, torch.empty(0))
    layer.hold([(1, d)])
    layer.mix((9.0, 0.5))
    x = torch.randn(2, 7, 24)
    weight = base.weight + 0.5 * (2 * d.up @ d.down + d.diff)
    assert relative(layer(x), F.linear(x, weight, base.bias + 0.5 * d.diff_b)) < EXACT
    layer.mix((9.0, 0.0))
    assert torch.equal(layer(x), base(x))


def test_a_patch_embedding_may_have_a_pair(model, tmp_path):
    down, up = torch.randn(2, 36, 1, 2, 2), torch.randn(96, 2, 1, 1, 1)
    read = saved(tmp_path, {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up})
    state = model.state_dict()
    change = (up.flatten(1) @ down.flatten(1)).view(96, 36, 1, 2, 2)
    truth = with_state(model, state | {"patch_embedding.weight": state["patch_embedding.weight"] + change})
    lora.attach(model, [(read, 1.0, None)])
    assert relative(velocity(model), truth) < EXACT


def test_a_stack_adds_up(model, tmp_path):
    first, one = style(tmp_path, model, "one")
    second, two = style(tmp_path, model, "two", r"ffn|cross", seed=8)
    tensors, changes = differences(model)
    three = saved(tmp_path, tensors, "three")
    state = loras.by_hand(model, first, 0.8)
    for name, (a, b) in second.items():
        state[f"{name}.weight"] += -0.4 * loras.SCALE * (b @ a)
    state = {name: tensor + 0.3 * changes[name] for name, tensor in state.items()}
    stack = [(one, 0.8, None), (two, -0.4, None), (three, 0.3, None)]
    lora.attach(model, stack)
    assert relative(velocity(model), with_state(model, state)) < EXACT
    other = built()
    lora.merge(other, stack)
    assert relative(velocity(other), with_state(model, state)) < EXACT


# --- taken off, rearranged --------------------------------------------------------------------------------


def test_taking_it_off_restores_every_bit_and_every_tensor(model, tmp_path):
    plain, before = velocity(model), {n: (p, p.data_ptr()) for n, p in model.named_parameters()}
    copy_of = {name: p.clone() for name, p in model.named_parameters()}
    modules = dict(model.named_modules())
    _, one = style(tmp_path, model)
    two = saved(tmp_path, differences(model)[0])
    lora.attach(model, [(one, 1.0, None), (two, 0.5, (1, 2))])
    for step in range(4):
        velocity(model, step)
    assert lora.attach(model, []) is None
    assert dict(model.named_modules()) == modules
    for name, parameter in model.named_parameters():
        assert before[name] == (parameter, parameter.data_ptr())
        assert torch.equal(parameter, copy_of[name])
    assert lora.attached(model) is None
    assert model.forward.__func__ is Transformer.forward
    assert torch.equal(velocity(model), plain)


def test_rearranging_reads_nothing_and_wraps_nothing_anew(model, tmp_path):
    first, one = style(tmp_path, model, "one")
    _, two = style(tmp_path, model, "two", r"blocks\.0\.", seed=8)
    lora.attach(model, [(one, 1.0, None), (two, 1.0, None)])
    wrapped = {n: (m, m.base) for n, m in model.named_modules() if isinstance(m, BesideLinear)}
    (tmp_path / "one.safetensors").unlink()
    (tmp_path / "two.safetensors").unlink()
    lora.attach(model, [(two, 0.5, (0, 3)), (one, 0.25, None)])
    lora.attach(model, [(one, 0.25, None)])
    for name, (layer, base) in wrapped.items():
        assert model.get_submodule(name) is layer
        assert layer.base is base
    assert relative(velocity(model), with_state(built(), loras.by_hand(built(), first, 0.25))) < EXACT
    lora.attach(model, [(two, 1.0, None)])
    left = {name for name, module in model.named_modules() if isinstance(module, BesideLinear)}
    assert left == set(two.deltas)


def test_a_weight_of_zero_is_the_plain_model_bit_for_bit(model, tmp_path):
    plain = velocity(model)
    two = saved(tmp_path, differences(model)[0])
    lora.attach(model, [(style(tmp_path, model)[1], 0.0, None), (two, 0.0, None)])
    assert torch.equal(velocity(model), plain)


def test_a_refused_stack_leaves_what_is_there(model, tmp_path):
    _, one = style(tmp_path, model)
    wrong = saved(
        tmp_path,
        {
            "blocks.0.ffn.0.lora_A.weight": torch.ones(2, 5),
            "blocks.0.ffn.0.lora_B.weight": torch.ones(160, 2),
        },
    )
    lora.attach(model, [(one, 1.0, None)])
    before = velocity(model)
    with pytest.raises(BadCheckpoint, match=r"weight of \[160, 5\], this model has \[160, 96\]"):
        lora.attach(model, [(one, 0.5, None), (wrong, 1.0, None)])
    assert torch.equal(velocity(model), before)


@pytest.mark.parametrize(
    ("weight", "steps"), [(float("nan"), None), (float("inf"), None), (1.0, (-1, 2)), (1.0, (3, 1))]
)
def test_a_stack_that_makes_no_sense_is_refused(weight, steps, model, tmp_path):
    _, one = style(tmp_path, model)
    with pytest.raises(BadOption, match="style"):
        lora.attach(model, [(one, weight, steps)])


# --- step ranges ------------------------------------------------------------------------------------------


def test_in_a_step_range_only_those_steps_change(model, tmp_path):
    """Also what is computed before the steps: the embedded text and picture, and the kept keys and values."""
    made, one = style(tmp_path, model)
    tensors, changes = differences(model)
    two = saved(tmp_path, tensors)
    plain = velocity(model)
    state = loras.by_hand(model, made, 0.6)
    under_one = with_state(model, state)
    under_both = with_state(model, {n: t + 0.5 * changes[n] for n, t in state.items()})
    lora.attach(model, [(one, 0.6, (1, 3)), (two, 0.5, (3, 3))])
    _, text, image = inputs(model.config)
    with torch.inference_mode():
        context = model.context(GRID, text, image)
    for _ in range(2):  # forwards and again, as under two prompts
        assert torch.equal(velocity(model, 0, context), plain)
        assert relative(velocity(model, 1, context), under_one) < EXACT
        assert relative(velocity(model, 2, context), under_one) < EXACT
        assert relative(velocity(model, 3, context), under_both) < EXACT
        assert torch.equal(velocity(model, 4, context), plain)


def test_a_range_without_end_and_the_first_step_alone(model, tmp_path):
    made, one = style(tmp_path, model)
    under = with_state(model, loras.by_hand(model, made))
    plain = velocity(model)
    lora.attach(model, [(one, 1.0, (2, None))])
    assert torch.equal(velocity(model, 1), plain)
    assert relative(velocity(model, 99), under) < EXACT
    lora.attach(model, [(one, 1.0, (0, 0))])
    assert relative(velocity(model, 0), under) < EXACT
    assert torch.equal(velocity(model, 1), plain)


def test_contexts_of_two_clips_may_take_turns(model, tmp_path):
    _, one = style(tmp_path, model)
    lora.attach(model, [(one, 1.0, (1, 1))])
    _, text, image = inputs(model.config)
    alone = [velocity(model, step) for step in (0, 1, 1)]
    with torch.inference_mode():
        a, b = (model.context(GRID, text, image) for _ in range(2))
    turns = [(a, 0), (b, 1), (a, 1)]
    for (context, step), wanted in zip(turns, alone, strict=True):
        assert torch.equal(velocity(model, step, context), wanted)


def test_a_clip_resumed_in_the_middle_is_the_same_clip(tiny_models, tmp_path):
    parts = load(tiny_models / "tiny", "tiny")
    _, one = style(tmp_path, parts.transformer)
    lora.attach(parts.transformer, [(one, 1.0, (1, 2))])
    spec = pipeline.resolve(VideoSpec(model="tiny", prompt="a lighthouse", seed=1, steps=4), parts.config)
    steps = [step for step in pipeline.generate(spec, parts) if isinstance(step, pipeline.Step)]
    for after in (0, 1, 2):
        again = [
            s for s in pipeline.generate(spec, parts, resume=steps[after]) if isinstance(s, pipeline.Step)
        ]
        assert torch.equal(again[-1].x, steps[-1].x)
    lora.detach(parts.transformer)
    plain = [step for step in pipeline.generate(spec, parts) if isinstance(step, pipeline.Step)]
    assert torch.equal(plain[0].x, steps[0].x)
    assert not torch.equal(plain[1].x, steps[1].x)


# --- other models, other Linears --------------------------------------------------------------------------


def test_a_text_to_video_lora_leaves_the_image_branch_of_an_image_model_as_it_is(model, tmp_path):
    made, read = style(tmp_path, built("t2v"))
    attached = lora.attach(model, [(read, 1.0, None)])
    assert attached.unused == ()
    assert not any("_img" in name or "img_emb" in name for name in attached.layers)
    assert relative(velocity(model), with_state(model, loras.by_hand(built(), made))) < EXACT


def test_an_image_lora_on_a_text_model_says_which_keys_have_no_effect(model, tmp_path):
    made, _ = style(tmp_path, model)
    tensors = loras.FORMS["kohya"](made) | {"patch_embedding.diff": torch.ones(96, 36, 1, 2, 2)}
    tensors |= {"lora_unet_mystery.alpha": torch.ones(1)}
    text_model = built("t2v")
    attached = lora.attach(text_model, [(saved(tmp_path, tensors, "picture"), 1.0, None)])
    kinds = {str(unused).partition(": ")[2].rpartition(": ")[2]: unused.keys for unused in attached.unused}
    branch = kinds["it is for the image branch, which this model lacks"]
    assert len(branch) == 3 * (2 * 3 + 2)  # down, up, alpha of k_img and v_img in 3 blocks, and of img_emb
    assert kinds["it is for 36 input channels, this model has 16"] == ("patch_embedding.diff",)
    assert kinds["a WAN transformer has no such part"] == ("lora_unet_mystery.alpha",)
    assert all("\n" not in str(unused) for unused in attached.unused)
    kept = {name: pair for name, pair in made.items() if "img" not in name}
    assert relative(velocity(text_model), with_state(text_model, loras.by_hand(built("t2v"), kept))) < EXACT


def test_a_lora_with_nothing_for_this_model_is_refused(model, tmp_path):
    _, read = style(tmp_path, model, pattern="_img")
    with pytest.raises(BadCheckpoint, match=r"changes nothing in this model.*image branch"):
        lora.attach(built("t2v"), [(read, 1.0, None)])


def packed_in_fp32(model):
    """As `pack` does it, but exactly: any CPU can do that."""
    for block in model.blocks:
        for attention in (block.self_attn, block.cross_attn):
            for name, child in list(attention.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(attention, name, packed.PackedLinear(child))
        first, _, second = block.ffn
        block.ffn = torch.nn.Sequential(packed.PackedLinear(first, gelu=True), packed.PackedLinear(second))
    return model


def test_on_packed_linears_it_is_added_before_their_gelu(model, tmp_path):
    made, read = style(tmp_path, model)
    tensors, changes = differences(model)
    stack = [(read, 0.5, None), (saved(tmp_path, tensors), 0.2, None)]
    state = {name: t + 0.2 * changes[name] for name, t in loras.by_hand(model, made, 0.5).items()}
    fast = packed_in_fp32(built())
    before = velocity(fast)
    lora.attach(fast, stack)
    assert [type(layer.base) for layer in fast.blocks[0].ffn] == [packed.PackedLinear, packed.PackedLinear]
    assert relative(velocity(fast), with_state(model, state)) < EXACT
    lora.detach(fast)
    assert torch.equal(velocity(fast), before)
    with pytest.raises(BadOption, match="packed"):
        lora.merge(fast, stack)


def test_on_quantized_linears_it_runs_beside_and_the_bytes_stay(model, tmp_path):
    made, read = style(tmp_path, model)
    low = built()
    for name in [
        n for n, m in low.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("blocks")
    ]:
        weight = low.get_submodule(name).weight.to(torch.float8_e4m3fn)
        model.get_submodule(name).weight.data = weight.float()
        assert quantized.install(
            low, f"{name}.weight", Stored("F8_E4M3", tuple(weight.shape), as_rows(weight))
        )
    before, held = velocity(low), quantized.held(low)
    with pytest.raises(BadOption, match="quantized"):
        lora.merge(low, [(read, 0.5, None)])
    assert torch.equal(velocity(low), before)
    lora.attach(low, [(read, 0.5, None)])
    assert relative(velocity(low), with_state(model, loras.by_hand(model, made, 0.5))) < EXACT
    assert quantized.held(low) == held
    lora.detach(low)
    assert torch.equal(velocity(low), before)


def test_changing_weights_compiles_nothing_anew():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    layer = BesideLinear(torch.nn.Linear(24, 40).requires_grad_(False), torch.empty(0))
    down, up = torch.randn(3, 24), torch.randn(40, 3)
    layer.hold([(0, lora_files.Delta("x", ("x",), down, up)), (1, lora_files.Delta("x", ("x",), down, up))])
    fast, x = torch.compile(layer, backend=backend), torch.randn(2, 7, 24)
    for weights in ((1.0, 0.0), (0.3, 0.7), (0.0, 2.0)):
        layer.mix(weights)
        torch.testing.assert_close(fast(x), layer(x))
    assert len(compiled) == 1


@pytest.mark.skipif(not packed.available(), reason="this torch or CPU cannot pack bf16")
def test_a_packed_model_with_a_lora_is_as_close_to_fp32_as_a_plain_one(model, tmp_path):
    made, read = style(tmp_path, model)
    plain, fast = (set_precision(built(), torch.bfloat16) for _ in range(2))
    packed.pack(fast)
    truth = with_state(model, loras.by_hand(model, made, 0.5))
    for other in (plain, fast):
        lora.attach(other, [(read, 0.5, None)])
    assert relative(velocity(fast), truth) < 1.2 * relative(velocity(plain), truth)


def test_beside_a_bf16_model_it_is_as_close_to_fp32_as_merged_into_it(model, tmp_path):
    made, read = style(tmp_path, model)
    beside, merged = (set_precision(built(), torch.bfloat16) for _ in range(2))
    lora.attach(beside, [(read, 0.5, None)])
    lora.merge(merged, [(read, 0.5, None)])
    assert beside.blocks[0].self_attn.q.up.dtype == torch.bfloat16
    assert beside.head.head.up.dtype == torch.float32
    truth = with_state(model, loras.by_hand(model, made, 0.5))
    assert relative(velocity(beside), truth) < 1.5 * relative(velocity(merged), truth) < 0.03


def test_a_merged_stack_and_one_beside_do_not_mix_up(model, tmp_path):
    _, read = style(tmp_path, model)
    lora.attach(model, [(read, 0.5, None)])
    with pytest.raises(BadOption, match="beside"):
        lora.merge(model, [(read, 0.5, None)])


def test_merging_rounds_once_and_takes_no_step_range(model, tmp_path):
    made, one = style(tmp_path, model)
    low = set_precision(built(), torch.bfloat16)
    before = copy.deepcopy(low)
    lora.merge(low, [(one, 0.5, None), (one, 0.25, None)])
    name = "blocks.0.self_attn.q"
    a, b = made[name]
    wanted = before.get_submodule(name).weight.float() + 0.75 * loras.SCALE * (b @ a)
    torch.testing.assert_close(low.get_submodule(name).weight, wanted.bfloat16(), rtol=2**-7, atol=1e-6)
    with pytest.raises(BadOption, match="some steps"):
        lora.merge(low, [(one, 1.0, (0, 1))])


def test_the_tiny_checkpoint_of_the_tests_has_the_same_linears(tmp_path):
    numbers = checkpoints.transformer_numbers("flf2v")
    model = checkpoints.built(lambda: Transformer(numbers))
    _, read = style(tmp_path, model)
    assert lora.attach(model, [(read, 1.0, None)]).unused == ()
