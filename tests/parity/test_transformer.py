"""The transformer against diffusers', in fp32 and with the fp32 islands of a bf16 model."""

import dataclasses

import pytest
import torch

from broll.engine import attention, conditioning
from broll.engine.shapes import Grid
from broll.engine.transformer import Transformer, set_precision
from tests.parity.judge import LIMIT, TASKS, relative, transformers

GRID = Grid(3, 8, 12)
TIME = torch.tensor([749.0])
REAL_TOKENS = 20


def inputs(config):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, config.in_dim, 3, 8, 12, generator=generator)
    text = torch.randn(1, REAL_TOKENS, config.text_dim, generator=generator)
    tokens = config.image_positions or 17
    image = (
        None if config.image_dim is None else torch.randn(1, tokens, config.image_dim, generator=generator)
    )
    return x, text, image


def velocity(model, x, text, image, pad=conditioning.padded):
    text = pad(text, model.config.text_len)
    context = model.context(GRID, text.features, image, text_bias=text.bias)
    return model(x, TIME, context)


def judged(theirs, x, text, image):
    text = conditioning.padded(text, 512).features
    if image is not None and image.shape[1] == 34:  # diffusers pairs the two pictures itself
        image = image.view(2, 17, -1)
    return theirs(x, TIME, text, image, return_dict=False)[0]


@pytest.mark.parametrize("task", TASKS)
def test_velocity_equals_diffusers(task):
    ours, theirs = transformers(TASKS[task])
    x, text, image = inputs(TASKS[task])
    with torch.no_grad():
        assert relative(velocity(ours, x, text, image), judged(theirs, x, text, image)) < LIMIT


@pytest.mark.parametrize("task", TASKS)
def test_collapsed_padding_equals_all_512_tokens(task):
    ours, _ = transformers(TASKS[task])
    x, text, image = inputs(TASKS[task])
    with torch.no_grad():
        slow = velocity(ours, x, text, image)
        fast = velocity(ours, x, text, image, conditioning.collapsed)
    assert relative(fast, slow) < 1e-5


@pytest.mark.parametrize("backend", attention.BACKENDS)
def test_every_attention_backend_agrees_with_diffusers(backend):
    ours, theirs = transformers(TASKS["i2v"])
    ours.use(attention.BACKENDS[backend])
    x, text, image = inputs(TASKS["i2v"])
    with torch.no_grad():
        fast = velocity(ours, x, text, image, conditioning.collapsed)
        assert relative(fast, judged(theirs, x, text, image)) < LIMIT


def test_remembered_keys_and_values_change_no_bit():
    ours, _ = transformers(TASKS["flf2v"])
    x, text, image = inputs(TASKS["flf2v"])
    with torch.no_grad():
        context = ours.context(GRID, text, image)
        first, second = ours(x, TIME, context), ours(x, TIME, context)
        forgetful = ours(x, TIME, dataclasses.replace(context, memory=None))
    assert torch.equal(first, second)
    assert torch.equal(first, forgetful)


@pytest.mark.parametrize(("task", "limit"), [("t2v", 2e-3), ("i2v", 4e-3)])
def test_fp32_islands_keep_a_bf16_model_close_to_fp32(task, limit):
    """Cast naively, both lose about 7e-3. With random weights the image branch outweighs the rest."""
    config = dataclasses.replace(TASKS[task], dim=128, ffn_dim=320, num_layers=3)
    exact, naive = transformers(config)
    x, text, image = inputs(config)
    low = torch.bfloat16
    with torch.no_grad():
        truth = velocity(exact, x, text, image)
        islands = Transformer(config).eval()
        islands.load_state_dict(exact.state_dict())
        error = relative(velocity(set_precision(islands, low), x, text, image), truth)
        naive.to(low)
        padded = conditioning.padded(text, 512).features.to(low)
        cast = naive(x.to(low), TIME, padded, None if image is None else image.to(low), return_dict=False)[0]
    assert error < limit
    assert relative(cast.float(), truth) > 1.5 * error


def test_islands_are_where_the_design_puts_them():
    model = set_precision(Transformer(TASKS["flf2v"]), torch.bfloat16)
    low = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert low
    for name in low:
        assert name.startswith("blocks.")
        assert ".norm" not in name
        assert "modulation" not in name
