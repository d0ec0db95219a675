"""The counted operations against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from broll.engine import attention
from broll.engine.config import PUBLISHED, TransformerConfig, VAEConfig
from broll.engine.estimate import decode_flops, estimate, matrix_rate, transformer_flops
from broll.engine.pipeline import resolve
from broll.engine.shapes import Grid
from broll.engine.transformer import Transformer
from broll.engine.vae import VAE
from broll.spec import parse


def counted(call):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def test_transformer_operations_are_those_that_torch_counts():
    config = TransformerConfig(dim=96, ffn_dim=200, num_heads=4, num_layers=2, text_dim=32)
    model = Transformer(config)
    model.use(attention.reference)  # torch does not count its fused CPU kernel
    text = torch.randn(1, 30, 32)
    context = model.context(Grid(3, 8, 12), text)
    x, t = torch.randn(1, 16, 3, 8, 12), torch.tensor([1.0])
    with torch.no_grad():
        model(x, t, context)  # fills the keys and values of the text
    assert transformer_flops(config, 72, 30) == pytest.approx(counted(lambda: model(x, t, context)), rel=0.03)


@pytest.mark.parametrize(
    "config", [VAEConfig(base_dim=8), VAEConfig(base_dim=8, num_res_blocks=1, patch_size=2)]
)
def test_decoder_operations_are_those_that_torch_counts(config):
    vae = VAE(config)
    z = torch.randn(1, 16, 3, 4, 6)
    assert decode_flops(config, Grid(3, 4, 6)) == pytest.approx(counted(lambda: vae.decode(z)), rel=0.03)


def test_published_operations_are_met():
    """One forward of the 14B at 720p is 6.5 PFLOP, of the 1.3B at 480p 0.28."""
    for name, tokens, petaflops in (("wan2.1-t2v-14b", 75_600, 6.521), ("wan2.1-t2v-1.3b", 32_760, 0.283)):
        flops = transformer_flops(PUBLISHED[name].transformer, tokens, 512)
        assert flops / 1e15 == pytest.approx(petaflops, rel=0.03)


def test_an_estimate_grows_with_what_is_asked():
    config = PUBLISHED["wan2.1-t2v-1.3b"]

    def cost(**fields):
        spec = resolve(parse(model=config.name, prompt="a lake", **fields), config)
        return estimate(spec, config, linears=torch.bfloat16)

    plain = cost()
    assert cost(guidance=1.0).denoise_flops == pytest.approx(plain.denoise_flops / 2)
    assert cost(steps=25).denoise_flops == pytest.approx(plain.denoise_flops / 2)
    assert cost(frames=41).decode_flops < plain.decode_flops
    assert plain.memory_bytes > plain.weight_bytes > 2 * config.parameters


def test_the_matrix_rate_is_that_of_a_real_machine():
    assert 1e8 < matrix_rate(torch.float32, torch.device("cpu"), seconds=0.05) < 1e16
