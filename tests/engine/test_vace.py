"""What VACE is given to follow, and that its hints go where the numbers say."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from broll.engine import detect, formats, load, vace
from broll.engine.interrupt import Interruptible
from broll.engine.shapes import Grid
from broll.engine.vae import VAE
from broll.errors import BadCheckpoint
from tests import checkpoints
from tests import formats as files


def test_the_mask_becomes_one_channel_for_each_pixel_under_a_latent():
    """Channel 8 i + j is row i and column j of the 8x8 pixels; frames 1 and 3 of five become latents 0 and 1."""
    mask = torch.zeros(1, 1, 5, 16, 24)
    mask[0, 0, 1, 3, 5] = 1  # row 3, column 5 of the first latent
    mask[0, 0, 3, 8, 23] = 1  # row 0, column 7 of the last latent
    kept, anew = torch.zeros(1, 16, 2, 2, 3), torch.ones(1, 16, 2, 2, 3)
    made = vace.control(kept, anew, mask, 8)
    assert made.shape == (1, 96, 2, 2, 3)
    assert torch.equal(made[:, :16], kept)
    assert torch.equal(made[:, 16:32], anew)
    assert {tuple(place) for place in made[0, 32:].nonzero().tolist()} == {(8 * 3 + 5, 0, 0, 0), (7, 1, 1, 2)}


def test_nothing_to_follow_is_grey_and_all_of_it_made_anew():
    vae = checkpoints.built(lambda: VAE(checkpoints.PLAIN_VAE_NUMBERS))
    with torch.no_grad():
        made = vace.free(vae, 9, 32, 48)
        grey = vae.encode(torch.zeros(1, 3, 9, 32, 48))
    assert torch.equal(made, torch.cat([grey, grey, torch.ones(1, 64, 3, 4, 6)], dim=1))


def model_and_context():
    numbers = dataclasses.replace(checkpoints.transformer_numbers("vace"), num_layers=4, vace_layers=(0, 2))
    model = checkpoints.built(lambda: vace.transformer(numbers))
    generator = torch.Generator().manual_seed(1)
    text, control = (
        torch.randn(1, 5, 16, generator=generator),
        torch.randn(1, 96, 2, 4, 6, generator=generator),
    )
    return model, model.follow(model.context(Grid(2, 4, 6), text), control)


def test_hints_computed_one_at_a_time_are_those_computed_first():
    """The slow twin holds all hints before the first block, as the official code does."""
    model, context = model_and_context()
    x = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(3))

    def all_first(tokens, context):
        hints = dict(zip(model.config.vace_layers, list(model.hints(tokens, context)), strict=True))
        for layer, block in enumerate(model.blocks):
            tokens = block(tokens, context)
            if layer in hints:
                tokens = tokens + hints[layer] * context.control_scale
        return tokens

    with torch.no_grad():
        usual = model(x, torch.tensor([500.0]), context)
        model.stack = all_first
        assert torch.equal(model(x, torch.tensor([500.0]), context), usual)


def test_it_can_be_interrupted_between_blocks():
    model, context = model_and_context()
    x = torch.zeros(1, 16, 2, 4, 6)
    asked = []
    with torch.no_grad():
        usual = model(x, torch.tensor([500.0]), context)
        model.stack = Interruptible(model, lambda: asked.append(1))
        assert torch.equal(model(x, torch.tensor([500.0]), context), usual)
    assert len(asked) == 5  # before the first of four, and after each


@pytest.mark.parametrize("layout", [checkpoints.diffusers_folder, checkpoints.original_folder])
def test_a_checkpoint_says_that_it_is_vace(layout, tmp_path):
    described = load.describe(layout(tmp_path / "tiny-vace", "vace"), "tiny-vace")
    assert (described.task, described.transformer.vace_layers) == ("vace", (0,))
    assert described.transformer.vace_in_dim == 96


def test_hints_that_do_not_divide_the_blocks_are_refused(tmp_path):
    tensors = files.state(files.transformer("vace"))
    for kind, new in (("blocks.0.", "blocks.2."), ("vace_blocks.0.", "vace_blocks.1.")):
        tensors |= {n.replace(kind, new): t.clone() for n, t in tensors.items() if n.startswith(kind)}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(BadCheckpoint, match="2 hint blocks for 3 blocks"):
        detect.transformer(formats.open_weights(tmp_path / "odd.safetensors"))
