"""Several processes equal one. What they do is in parallel_cases.py; here is what came of it."""

import pytest
import torch

from broll.engine import attention, mesh, parallel, parallel_attention, parallel_text
from broll.engine.attention import AttendCall
from broll.engine.config import PUBLISHED, TextConfig
from broll.engine.mesh import Layout
from broll.engine.parallel import spans
from broll.engine.shapes import Grid
from broll.errors import BadOption
from broll.spec import parse
from tests import checkpoints
from tests.engine import together

NEAR = 1e-5  # relative: products of other shapes, in fp32


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for task in ("t2v", "i2v", "ti2v", "vace"):
        checkpoints.diffusers_folder(folder / task, task)
    return folder


@pytest.fixture(scope="module")
def two(models):
    return together.run(2, "tests.engine.parallel_cases:two", models)


@pytest.fixture(scope="module")
def more(models):
    return together.run(2, "tests.engine.parallel_cases:more", models)


@pytest.fixture(scope="module")
def four(models):
    return together.run(4, "tests.engine.parallel_cases:four", models)


def check_clips(results):
    for name, (latents, frames, _) in results[0][0].items():
        assert latents < NEAR, name
        assert frames < NEAR, name
        assert len({found[0][name][2] for found in results}) == 1, f"{name}: latents differ between processes"


def check_the_rest(results):
    for _, attends, (same, share), strips in results:
        assert same, "features differ"
        assert all(off == 0 for name, off in attends.items() if "ulysses" in name), attends
        assert all(off < (1e-2 if "bf16" in name else 1e-6) for name, off in attends.items()), attends
        assert all(off < 1e-5 for off in strips.values()), strips
        assert share < (0.6 if len(results) == 2 else 0.4)


def test_two_processes_make_the_clip_of_one(two):
    check_clips(two)


def test_two_prompts_side_by_side_give_the_same_bits(two):
    assert all(latents == 0 for name, (latents, _, _) in two[0][0].items() if "cfg=2" in name)


def test_two_processes_share_attention_text_and_frames(two):
    check_the_rest(two)


@pytest.mark.slow
def test_two_processes_make_clips_of_every_kind_and_with_every_lever(more):
    check_clips(more)
    check_the_rest(more)


@pytest.mark.slow
def test_four_processes_make_the_clip_of_one(four):
    check_clips(four)
    check_the_rest(four)


# --- layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "guided", "heads", "layout"),
    [
        (2, True, 12, Layout(cfg=2)),
        (2, False, 12, Layout(ulysses=2)),
        (3, True, 12, Layout(ulysses=3)),
        (8, True, 12, Layout(cfg=2, ulysses=4)),
        (8, False, 12, Layout(ulysses=8)),
        (8, False, 6, Layout(ulysses=4, ring=2)),
    ],
)
def test_auto_splits_the_prompts_first_then_the_heads_and_leaves_the_rest_to_the_ring(
    size, guided, heads, layout
):
    assert mesh.chosen("auto", size, guided=guided, heads=heads) == layout


def test_a_layout_is_said_in_words():
    assert mesh.parse("ring=2, cfg=2") == Layout(cfg=2, ring=2)
    assert str(Layout(cfg=2, ulysses=4)) == "cfg=2,ulysses=4"
    assert mesh.parse(str(Layout(ulysses=3, ring=2))) == Layout(ulysses=3, ring=2)
    assert mesh.parse(str(Layout())) == Layout()


@pytest.mark.parametrize(
    "words", ["", "off", "cfg", "cfg=3", "cfg=2,cfg=2", "ulysses=0", "ring=-1", "tensor=2", "ring=²"]
)
def test_other_words_are_refused_with_what_is_possible(words):
    with pytest.raises(BadOption, match="possible are auto, or such as"):
        mesh.parse(words)


def test_a_layout_of_another_size_or_for_guidance_that_is_not_there_is_refused():
    with pytest.raises(BadOption, match="for 4 processes, and here are 2"):
        mesh.chosen("cfg=2,ulysses=2", 2, guided=True, heads=12)
    with pytest.raises(BadOption, match="does not need both"):
        mesh.chosen("cfg=2", 2, guided=False, heads=12)


def ask(**fields):
    given = {
        "model": "wan2.1-t2v-1.3b",
        "prompt": "a lake",
        "width": 832,
        "height": 480,
        "frames": 81,
        "steps": 50,
    }
    return parse(**given | {"guidance": 5.0, "shift": 5.0} | fields)


@pytest.mark.parametrize(
    ("layout", "fields", "options", "why"),
    [
        (Layout(ring=2), {"sparsity": 0.5}, {}, "sparsity does not go with parallel ring=2"),
        (Layout(ring=2), {}, {"attention": "sage"}, "attention sage does not go with parallel ring=2"),
        (
            Layout(cfg=2, ulysses=2),
            {},
            {"compile": "on"},
            "compile on does not go with parallel cfg=2,ulysses=2",
        ),
        (Layout(ulysses=64), {"width": 32, "height": 32, "frames": 1}, {}, "this clip has 4 tokens"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(layout, fields, options, why):
    with pytest.raises(BadOption, match=why):
        parallel.check(layout, ask(**fields), PUBLISHED["wan2.1-t2v-1.3b"], **options)


def test_what_goes_together_is_not_refused():
    config = PUBLISHED["wan2.1-t2v-1.3b"]
    parallel.check(Layout(cfg=2), ask(), config, compile="on", attention="sage")
    parallel.check(Layout(ulysses=8), ask(sparsity=0.5), config, attention="sage")
    parallel.check(Layout(ulysses=4, ring=2), ask(), config, attention="sdpa")


def test_half_guided_clips_are_not_split_by_prompts():
    config = PUBLISHED["wan2.1-t2v-1.3b"]
    assert parallel.layout("auto", 2, ask(guidance_until=0.5), config) == Layout(ulysses=2)
    assert parallel.layout("auto", 2, ask(), config) == Layout(cfg=2)


# --- shares -----------------------------------------------------------------------------------------------


def test_tokens_are_cut_between_rows_of_the_picture():
    assert spans(Grid(21, 30, 52), 8) == [79 * 52] * 6 + [78 * 52] * 2
    assert spans(Grid(1, 2, 3), 4) == [2, 2, 1, 1]


def test_no_process_holds_much_more_of_the_text_encoder_than_its_share():
    published = TextConfig()
    for size in (2, 4, 8):
        owners = parallel_text.owners(published, size)
        assert owners == sorted(owners)
        assert len(owners) == published.num_layers + 1
        layer = (
            4 * published.d_model * published.num_heads * published.d_kv
            + 3 * published.d_model * published.d_ff
        )
        sizes = [published.vocab_size * published.d_model, *[layer] * published.num_layers]
        held = [
            sum(s for s, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(size)
        ]
        assert max(held) < max(sizes[0], sum(sizes) / size + layer) * 1.001


# --- a ring's parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 20, 39])
@pytest.mark.parametrize(
    ("device", "dtype", "bound"),
    [
        ("cpu", torch.float32, 1e-6),
        ("cpu", torch.bfloat16, 1e-2),
        pytest.param("cuda", torch.float32, 1e-5, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, 1e-2, marks=pytest.mark.gpu),
    ],
)
def test_attention_over_all_keys_is_made_of_attention_over_some(device, dtype, bound, cut):
    q, k, v = (torch.randn(1, 3, n, 64, device=device).to(dtype) for n in (37, 40, 40))
    truth = attention.reference(q.float(), k.float(), v.float(), AttendCall("self", 0, Grid(1, 1, 37)))
    first, second = (
        parallel_attention.part(q, k[:, :, keys].contiguous(), v[:, :, keys].contiguous())
        for keys in (slice(cut), slice(cut, None))
    )
    logits = q.float() @ k[:, :, :cut].float().transpose(-1, -2) / 8
    torch.testing.assert_close(first[1], logits.logsumexp(-1), atol=0.05, rtol=0)
    out, _ = parallel_attention.merged(first[0].float(), first[1], *second)
    assert float((out - truth).norm() / truth.norm()) < bound
