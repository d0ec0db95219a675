"""Skipped steps against diffusers' own MagCache: the same steps, the same velocities, the same measured ratios."""

import ast

import pytest
import torch
from diffusers import MagCacheConfig

from broll.engine import conditioning, step_cache
from broll.engine.shapes import Grid
from broll.engine.step_cache import Dial, Observed, skipped
from tests.parity.judge import LIMIT, TASKS, relative, transformers

STEPS = 12
GRID = Grid(3, 8, 12)
RATIOS = [1.0, *(0.995 - 0.004 * i for i in range(STEPS - 1))]
BRANCHES = {"positive": 20, "negative": 7}  # tokens of their prompts


def inputs(config):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(STEPS, 1, config.in_dim, 3, 8, 12, generator=generator)
    texts = {
        branch: torch.randn(1, count, config.text_dim, generator=generator)
        for branch, count in BRANCHES.items()
    }
    return noise, texts


def ours_and_theirs(ours, theirs, skips):
    """Velocities of every step in both branches, one after the other."""
    noise, texts = inputs(ours.config)
    padded = {branch: conditioning.padded(text, 512).features for branch, text in texts.items()}
    contexts = {branch: ours.context(GRID, text, branch=branch) for branch, text in padded.items()}
    with torch.no_grad(), step_cache.on(ours, skips):
        for step in range(STEPS):
            time = torch.tensor([1000.0 - 80 * step])
            for branch, text in padded.items():
                mine = ours(noise[step], time, contexts[branch], step)
                with theirs.cache_context(branch):
                    yield mine, theirs(noise[step], time, text, return_dict=False)[0]


@pytest.mark.parametrize(
    "dial", [Dial(0.06, 3, 0.2), Dial(0.12, 2, 0.2), Dial(0.24, 6, 0.2), Dial(0.5, 9, 0.0)]
)
def test_a_run_with_skipped_steps_equals_diffusers(dial):
    ours, theirs = transformers(TASKS["t2v"])
    theirs.enable_cache(MagCacheConfig(dial.threshold, dial.most, dial.retention, STEPS, RATIOS))
    found = skipped([RATIOS], dial)
    assert found
    for mine, judged in ours_and_theirs(ours, theirs, found):
        assert relative(mine, judged) < LIMIT


def test_the_ratios_that_are_measured_equal_diffusers(capsys):
    ours, theirs = transformers(TASKS["t2v"])
    theirs.enable_cache(MagCacheConfig(num_inference_steps=STEPS, calibrate=True))
    ours.stack = seen = Observed(ours.run_blocks)
    for _ in ours_and_theirs(ours, theirs, frozenset()):
        pass
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0")]
    for branch, line in zip(BRANCHES, said, strict=True):
        assert seen.ratios[branch] == pytest.approx(ast.literal_eval(line), rel=1e-4)
