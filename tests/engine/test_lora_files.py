"""LoRA files: every form says the same; whatever is wrong with one is said in one line."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from broll.engine import lora_facts, lora_files
from broll.engine.transformer import Transformer
from broll.errors import BadCheckpoint
from tests import checkpoints, loras


@pytest.fixture(scope="module")
def model():
    return checkpoints.built(lambda: Transformer(checkpoints.transformer_numbers("i2v")))


@pytest.fixture
def made(model):
    return loras.pairs(model)


def product(delta):
    return delta.scale * (delta.up @ delta.down)


def write(path, **tensors):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


Q = "blocks.0.self_attn.q"
A, B = torch.ones(3, 24), torch.ones(24, 3)


@pytest.mark.parametrize("form", loras.FORMS)
def test_every_form_gives_the_same_deltas_under_official_names(form, made, tmp_path):
    lora = lora_files.read(loras.save(made, form, tmp_path / f"{form}.safetensors"))
    assert lora.name == form
    assert lora.unmatched == ()
    assert lora.deltas.keys() == made.keys()
    for name, (down, up) in made.items():
        assert lora.deltas[name].rank == loras.RANK
        torch.testing.assert_close(
            product(lora.deltas[name]), loras.SCALE * (up @ down), rtol=1e-6, atol=1e-7
        )


def test_a_peft_folder_has_its_alphas_in_its_config(made, tmp_path):
    patterns = {"blocks.0.attn1.to_q": 12.0, "ffn.net.2": 1.5}
    lora = lora_files.read(loras.save_peft(made, tmp_path / "style", alpha_pattern=patterns))
    assert lora.name == "style"
    assert lora.deltas.keys() == made.keys()
    assert lora.deltas[Q].scale == 4
    assert lora.deltas["blocks.1.ffn.2"].scale == 0.5
    assert lora.deltas["blocks.1.self_attn.q"].scale == loras.SCALE


def test_rslora_scales_by_the_root_of_the_rank(made, tmp_path):
    lora = lora_files.read(loras.save_peft(made, tmp_path / "style", use_rslora=True))
    assert lora.deltas[Q].scale == pytest.approx(6 / 3**0.5)


def test_a_folder_of_diffusers_is_read_with_the_alphas_of_its_header(made, tmp_path):
    header = {"transformer.lora_alpha": 6, "transformer.r": 3}
    tensors = loras.FORMS["diffusers"](made)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, {"format": "pt", "lora_adapter_metadata": json.dumps(header)})
    assert lora_files.read(tmp_path).deltas[Q].scale == 2


def test_differences_of_weights_biases_norms_and_modulations_are_read(tmp_path):
    file = write(
        tmp_path / "a.safetensors",
        **{
            "diffusion_model.head.head.diff": torch.ones(64, 24),
            "diffusion_model.blocks.0.norm3.diff": torch.ones(24),
            "diffusion_model.blocks.0.norm3.diff_b": torch.ones(24),
            "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.ones(24),
            "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 24),
            "diffusion_model.blocks.1.modulation.diff": torch.ones(1, 6, 24),
            "diffusion_model.head.modulation.diff": torch.ones(1, 2, 24),
        },
    )
    deltas = lora_files.read(file).deltas
    assert set(deltas) == {
        "head.head", "blocks.0.norm3", "blocks.0.self_attn.norm_q", "blocks.0.modulation", "blocks.1.modulation",
        "head.modulation",
    }  # fmt: skip
    assert deltas["blocks.0.norm3"].diff_b is not None


def test_the_bias_of_an_up_matrix_is_scaled_as_its_product(tmp_path):
    tensors = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.lora_B.bias": torch.ones(24)}
    file = write(tmp_path / "a.safetensors", **tensors, **{f"{Q}.alpha": torch.tensor(6.0)})
    assert torch.equal(lora_files.read(file).deltas[Q].diff_b, 2 * torch.ones(24))


def test_keys_that_name_nothing_in_the_model_are_kept(made, tmp_path):
    extra = {"lora_te_text_model.lora_up.weight": B, "transformer_2.blocks.0.attn1.to_q.lora_A.weight": A}
    extra |= {"lora_unet_blocks_9_mystery.alpha": torch.tensor(1.0), f"{Q}.weight": torch.ones(24, 24)}
    lora = lora_files.read(loras.save(made, "kohya", tmp_path / "a.safetensors", extra))
    assert lora.deltas.keys() == made.keys()
    assert lora.unmatched == tuple(sorted(extra))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": A}, r"none of its 1 keys is known, such as a\.weight"),
        ({f"{Q}.lora_A.weight": A}, r"not its up matrix"),
        ({f"{Q}.lora_B.weight": B, f"{Q}.alpha": torch.ones(1)}, r"not its down matrix"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B[:, :2].contiguous()}, r"do not share a rank"),
        ({f"{Q}.lora_A.weight": A[0].clone(), f"{Q}.lora_B.weight": B}, r"do not share a rank"),
        ({f"{Q}.lora_A.weight": A.int(), f"{Q}.lora_B.weight": B}, r"floating point"),
        (
            {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.alpha": torch.ones(2)},
            r"one finite number",
        ),
        (
            {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.alpha": torch.tensor(float("nan"))},
            r"one finite number",
        ),
        ({f"{Q}.lora_B.bias": A}, r"up matrix that is not there"),
        ({f"{Q}.diff": A, f"diffusion_model.{Q}.diff": A}, r"says twice"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.dora_scale": A}, r"DoRA"),
        ({f"{Q}.lokr_w1": A}, r"LoKr"),
        ({f"{Q}.hada_w1_a": A}, r"LoHa"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tensors, message, tmp_path):
    with pytest.raises(BadCheckpoint, match=message) as caught:
        lora_files.read(write(tmp_path / "a.safetensors", **tensors))
    assert "\n" not in str(caught.value)
    assert "a.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"lora_alpha": "six"}, "lora_alpha"),
        ({"alpha_pattern": {r"blocks\.\d+\.attn1": 3}}, "only names"),
        ({"alpha_pattern": ["attn1"]}, "alpha_pattern"),
    ],
)
def test_a_config_that_means_something_else_is_refused(config, message, made, tmp_path):
    with pytest.raises(BadCheckpoint, match=message):
        lora_files.read(loras.save_peft(made, tmp_path / "style", **config))


def test_a_folder_must_hold_one_lora(tmp_path):
    with pytest.raises(BadCheckpoint, match="found none"):
        lora_files.read(tmp_path)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", **{f"{Q}.diff": A})
    with pytest.raises(BadCheckpoint, match=r"a\.safetensors, b\.safetensors"):
        lora_files.read(tmp_path)
    with pytest.raises(BadCheckpoint, match="no LoRA at"):
        lora_files.read(tmp_path / "c.safetensors")


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_one_clear_line(seed, model, tmp_path):
    chance = random.Random(seed)
    file = loras.save(loras.pairs(model, r"blocks\.0\.self"), "comfy", tmp_path / "a.safetensors")
    data = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    if seed % 2:
        del data[chance.randrange(len(data)) :]
    else:
        for _ in range(4):
            data[chance.randrange(header)] = chance.randrange(256)
    file.write_bytes(data)
    said = ""
    try:
        lora_files.read(file)  # a changed letter of a name may leave a file that can be read
    except BadCheckpoint as error:
        said = str(error)
    assert "\n" not in said


def test_a_pickle_is_read_and_cannot_run_code(made, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save(loras.FORMS["comfy"](made), tmp_path / "good.pt")
    assert lora_files.read(tmp_path / "good.pt").deltas.keys() == made.keys()
    torch.save({"a": Evil()}, tmp_path / "bad.pt")
    with pytest.raises(BadCheckpoint):
        lora_files.read(tmp_path / "bad.pt")
    assert not (tmp_path / "owned").exists()


# --- what a LoRA was made for -----------------------------------------------------------------------------


def named(made, path, **header):
    save_file(loras.FORMS["comfy"](made), path, header or None)
    return lora_files.read(path)


@pytest.mark.parametrize(
    ("name", "steps", "shift"),
    [
        ("wan2.1_i2v_lora_rank64_lightx2v_4step", 4, 5),
        ("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32", 4, 5),
        ("lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank32_bf16", 4, 5),
        ("Wan21_CausVid_14B_T2V_lora_rank32", 12, 7),
        ("Wan21_AccVid_T2V_14B_lora_rank32_fp16", 10, 5),
        ("Wan2.1_T2V_14B_FusionX_LoRA", 8, 2),
    ],
)
def test_distilled_loras_are_known_by_their_published_names(name, steps, shift, made, tmp_path):
    found = lora_facts.facts(named(made, tmp_path / f"{name}.safetensors"))
    assert (found.steps, found.shift, found.distilled) == (steps, shift, True)
    assert found.source.startswith("https://")
    assert (found.grid == "distilled") == ("lightx2v" in name)


@pytest.mark.parametrize("name", ["style", "wan2.2_t2v_A14b_low_noise_lora_rank64_lightx2v_4step"])
def test_of_other_loras_nothing_is_claimed(name, made, tmp_path):
    assert lora_facts.facts(named(made, tmp_path / f"{name}.safetensors")) is None


def test_a_file_beside_it_is_believed_before_the_header_and_the_name(made, tmp_path):
    lora = named(made, tmp_path / "lightx2v.safetensors", **{"broll.steps": "6", "broll.guidance": "1"})
    assert lora_facts.facts(lora).steps == 6
    (tmp_path / "lightx2v.toml").write_text('steps = 8\nshift = 3\nsampler = "unipc"\nweight = 0.5\n')
    assert lora_facts.facts(lora) == lora_facts.Recommended(
        8, None, 3.0, "unipc", None, 0.5, str(tmp_path / "lightx2v.toml")
    )


@pytest.mark.parametrize(
    "text",
    [
        "steps = 0",
        'sampler = "best"',
        "step = 4",
        "steps = ",
        'weight = "much"',
        "weight = 12",
        "weight = nan",
        "guidance = -1",
        'grid = "fine"',
    ],
)
def test_a_declaration_that_cannot_be_is_refused(text, made, tmp_path):
    lora = named(made, tmp_path / "style.safetensors")
    (tmp_path / "style.toml").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"style\.toml"):
        lora_facts.facts(lora)


def test_tensors_are_those_of_the_file(made, tmp_path):
    file = loras.save(made, "comfy", tmp_path / "a.safetensors")
    delta = lora_files.read(file).deltas[Q]
    assert torch.equal(delta.down, load_file(file)[f"diffusion_model.{Q}.lora_down.weight"])
