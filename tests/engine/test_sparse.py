"""Far pairs left out of self-attention: what is left is computed exactly, and nothing else changes."""

import math
from dataclasses import replace

import pytest
import torch

from broll.engine import attention, counts, sparse, vace
from broll.engine.attention import AttendCall
from broll.engine.compiled import ON, Compiler
from broll.engine.config import PUBLISHED
from broll.engine.estimate import estimate
from broll.engine.load import Precision, load
from broll.engine.pipeline import generate, resolve
from broll.engine.sampler import Step
from broll.engine.shapes import Grid
from broll.errors import BadOption
from broll.spec import parse
from tests import checkpoints

GRIDS = [
    *(Grid(1, 4, 5), Grid(5, 4, 5), Grid(9, 3, 7), Grid(4, 1, 3), Grid(4, 20, 20), Grid(13, 1, 1)),
    *(Grid(21, 5, 8), Grid(41, 2, 3)),
]
STEPS = 4


@pytest.fixture(scope="module")
def parts(tiny_models):
    return load(tiny_models / "tiny", "tiny")


def ask(parts, **fields):
    given = {"model": "tiny", "prompt": "a lake", "seed": 4, "frames": 17, "steps": STEPS}
    return resolve(parse(**given | fields), parts.config)


def steps_of(spec, parts, resume=None):
    return [event for event in generate(spec, parts, resume=resume) if isinstance(event, Step)]


def tensors(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, 16, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tile_by_tile_equals_the_masked_twin(grid, sparsity):
    q, k, v = tensors(grid.size)
    made = sparse.pattern(grid, sparsity)
    call = AttendCall("self", 1, grid)
    fast = sparse.gathered(attention.sdpa, q, k, v, call, made)
    torch.testing.assert_close(fast, sparse.masked(q, k, v, made), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_flexattention_is_given_the_pairs_of_the_pattern_and_no_others(grid):
    made = sparse.pattern(grid, 0.5)
    mask, n = sparse.mask(made, torch.device("cpu")), grid.size
    pairs = torch.zeros(n, n, dtype=torch.bool)
    for row in range(-(-n // sparse.BLOCK)):
        queries = slice(row * sparse.BLOCK, (row + 1) * sparse.BLOCK)
        some, full = (
            which[0, 0, row, : counts[0, 0, row]].tolist()
            for counts, which in (
                (mask.kv_num_blocks, mask.kv_indices),
                (mask.full_kv_num_blocks, mask.full_kv_indices),
            )
        )
        assert not set(some) & set(full)
        for block in some + full:
            keys = slice(block * sparse.BLOCK, (block + 1) * sparse.BLOCK)
            q, k = torch.meshgrid(torch.arange(n)[queries], torch.arange(n)[keys], indexing="ij")
            pairs[queries, keys] = True if block in full else mask.mask_mod(0, 0, q, k)
    assert torch.equal(pairs, made.kept[made.tile][made.piece][:, made.piece])


def test_flexattention_equals_the_dense_kernel_tile_by_tile():
    grid = Grid(5, 9, 10)
    q, k, v = tensors(grid.size)
    made, call, compiler = sparse.pattern(grid, 0.5), AttendCall("self", 1, grid), Compiler(ON, "aot_eager")
    out = sparse.flexed(compiler, q, k, v, made)
    twin = sparse.gathered(attention.sdpa, q, k, v, call, made)
    torch.testing.assert_close(out, twin, atol=2e-6, rtol=1e-5)
    asked = []

    def dense(q, k, v, call):
        asked.append(q.shape[2])
        return attention.sdpa(q, k, v, call)

    radial = sparse.Radial(dense, 0.5, 0, compiler)
    assert torch.equal(radial(q, k, v, call), radial(q, k, v, call))
    assert len(asked) == len(made.kept)  # compared once


def test_where_flexattention_cannot_be_had_it_goes_tile_by_tile():
    grid = Grid(5, 4, 5)
    q, k, v = tensors(grid.size)
    call, made, compiler = (
        AttendCall("self", 1, grid),
        sparse.pattern(grid, 0.5),
        Compiler(ON, "no such thing"),
    )
    out = sparse.Radial(attention.sdpa, 0.5, 0, compiler)(q, k, v, call)
    assert torch.equal(out, sparse.gathered(attention.sdpa, q, k, v, call, made))
    assert len(compiler.news()) == 1 and not compiler.makes("sparse")


def test_calls_that_are_large_enough_go_tile_by_tile_though_flexattention_is_there(monkeypatch):
    monkeypatch.setattr(sparse, "FEW", 40)
    compiler, asked = Compiler(ON, "no such thing"), []

    def dense(q, k, v, call):
        asked.append(q.shape[2])
        return attention.sdpa(q, k, v, call)

    grid = Grid(6, 8, 8)
    sparse.Radial(dense, 0.5, 0, compiler)(*tensors(grid.size), AttendCall("self", 1, grid))
    assert asked == [3 * 16] * 8  # a quarter of three frames
    assert compiler.makes("sparse")


@pytest.mark.parametrize(("size", "so"), [((256, 256), True), ((832, 480), False), ((1280, 720), False)])
def test_only_small_frames_go_by_flexattention(size, so):
    config = PUBLISHED["wan2.1-t2v-14b"]
    spec = parse(model=config.name, prompt="a lake", sparsity=0.5, width=size[0], height=size[1])
    assert sparse.by_flex(resolve(spec, config), config, Compiler(ON)) == so


def attends(frames, band, other_frame, other_band, width):
    """The definition, word by word: of a band of a group of frames."""
    apart = min(abs(frame - other_frame) for frame in frames)
    if apart == 0 or other_frame == 0:
        return True
    if width >= apart:
        return abs(band - other_band) <= width / apart
    every = 1
    while every < apart / width:
        every *= 2
    return band == other_band and apart % every == 0


@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 3.0, 4.0, 7.5, 16.0])
def test_windows_narrow_with_the_distance(width):
    group, bands = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), 6
    made = sparse.windows(group, bands, width)
    for i in range(4 * bands):
        for j in range(len(group) * bands):
            own, band = divmod(i, bands)
            frames = [frame for frame in range(len(group)) if group[frame] == own]
            assert made[i, j] == attends(frames, band, *divmod(j, bands), width)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 9, 13, 21, 41])
def test_groups_are_of_up_to_three_frames_in_a_row(frames):
    group = sparse.groups(frames).tolist()
    sizes = [group.count(number) for number in range(group[-1] + 1)]
    assert group == sorted(group) and max(sizes) <= 3 and max(sizes) - min(sizes) <= 1


def test_every_frame_sees_itself_and_the_first_however_little_is_left():
    made, bands = sparse.pattern(Grid(21, 30, 52), 0.9), sparse.BANDS
    seen = made.kept[made.tile].unflatten(0, (21, bands)).unflatten(2, (21, bands))
    for frame in range(21):
        assert seen[frame, :, frame].all()
        assert seen[frame, :, 0].all()
    assert made.share == pytest.approx((3 * 3 * 7 + 18) / 21**2)


@pytest.mark.parametrize(
    "grid", [Grid(21, 5, 8), Grid(21, 30, 52), Grid(21, 45, 80), Grid(41, 45, 80)], ids=str
)
def test_the_dial_says_what_is_left_out(grid):
    shares = [sparse.pattern(grid, sparsity).share for sparsity in (0.1, 0.3, 0.5, 0.7, 0.8)]
    for share, sparsity in zip(shares, (0.1, 0.3, 0.5, 0.7, 0.8), strict=True):
        assert 1 - sparsity - 0.1 < share <= 1 - sparsity
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_cover_every_token_once_and_are_of_a_group_of_frames(grid):
    made, frame = sparse.pattern(grid, 0.5), grid.height * grid.width
    assert made.edges[0] == 0 and made.edges[-1] == grid.size
    assert list(made.edges) == sorted(set(made.edges))
    assert set(range(0, grid.size + 1, frame)) <= set(made.edges)
    tokens = torch.arange(grid.size)
    tiles = [torch.cat([tokens[run] for run in own]) for own, _ in made.rows]
    assert torch.equal(torch.cat(tiles).sort().values, tokens)
    group = sparse.groups(grid.frames)
    assert all(len(set(group[tile // frame].tolist())) == 1 for tile in tiles)


@pytest.mark.parametrize("nothing", [None, 0.0])
def test_without_sparsity_no_bit_changes_and_no_kernel_is_wrapped(parts, nothing):
    plain = steps_of(ask(parts), parts)[-1].x
    assert torch.equal(steps_of(ask(parts, sparsity=nothing), parts)[-1].x, plain)
    with sparse.on(parts.transformer, ask(parts, sparsity=nothing)):
        assert parts.transformer.attends == {attention.sdpa}


def test_a_sparse_clip_is_that_of_the_twin_and_not_the_dense_one(parts, monkeypatch):
    spec = ask(parts, sparsity=0.6)
    fast = steps_of(spec, parts)[-1].x
    dense = steps_of(ask(parts), parts)[-1].x
    monkeypatch.setattr(
        sparse, "gathered", lambda dense, q, k, v, call, pattern: sparse.masked(q, k, v, pattern)
    )
    slow = steps_of(spec, parts)[-1].x
    assert (fast - slow).norm() / slow.norm() < 1e-4
    assert (fast - dense).norm() / dense.norm() > 1e-3


def test_the_share_that_is_told_is_what_is_computed(parts):
    seen = []

    def watched(q, k, v, call):
        seen.append((call.kind, call.layer, call.step, q.shape[2] * k.shape[2]))
        return attention.sdpa(q, k, v, call)

    spec = ask(parts, sparsity=0.6)
    parts.transformer.use(watched)
    try:
        steps_of(spec, parts)
    finally:
        parts.transformer.use(attention.sdpa)
    n, layers = sparse.grid_of(spec, parts.config).size, parts.config.transformer.num_layers
    own = [(layer, step, pairs) for kind, layer, step, pairs in seen if kind == "self"]
    whole = 2 * STEPS * layers * n * n
    assert sum(pairs for *_, pairs in own) / whole == pytest.approx(sparse.share(spec, parts.config))
    dense = {(layer, step) for layer, step, pairs in own if pairs == n * n}
    assert dense == {
        (layer, step) for layer in range(layers) for step in range(STEPS) if layer == 0 or step < 1
    }


def test_a_clip_goes_on_from_a_step_with_the_same_bits(parts):
    spec = ask(parts, sparsity=0.6)
    whole = steps_of(spec, parts)
    again = steps_of(spec, parts, resume=whole[1])
    assert torch.equal(again[-1].x, whole[-1].x)


def test_the_model_is_as_it_was_when_the_clip_is_done_or_given_up(parts):
    spec = ask(parts, sparsity=0.6)
    events = generate(spec, parts)
    next(events)
    assert parts.transformer.attend_name == "sdpa"
    assert len(parts.transformer.attends) > 1
    events.close()
    assert parts.transformer.attends == {attention.sdpa}


def test_of_vace_the_first_block_of_hints_is_dense_too():
    numbers = replace(checkpoints.transformer_numbers("vace"), vace_layers=(0, 1))
    model = vace.transformer(numbers)
    spec = parse(model="tiny", prompt="a lake", sparsity=0.5, steps=4)
    with sparse.on(model, spec):
        for blocks in (model.blocks, model.vace_blocks):
            assert blocks[0].self_attn.attend is attention.sdpa
            assert isinstance(blocks[1].self_attn.attend, sparse.Radial)
            assert blocks[1].cross_attn.attend is attention.sdpa


def test_with_skipped_steps_and_8_of_10_pairs_left_out_the_estimate_falls():
    config = PUBLISHED["wan2.1-t2v-1.3b"]

    def attended(**fields):
        spec = resolve(parse(model=config.name, prompt="a lake", seed=1, **fields), config)
        return spec, estimate(spec, config, precision=Precision()).stage("denoise").operations.attention

    (_, whole), (spec, less) = attended(), attended(sparsity=0.5)
    n, c = sparse.grid_of(spec, config).size, config.transformer
    text = whole / (4.0 * n * c.dim * c.num_layers * 100) - n  # 50 steps, two prompts
    assert less / whole == pytest.approx((n * sparse.share(spec, config) + text) / (n + text))
    assert counts.forward(c, n, 0, share=0.5).attention == counts.forward(c, n, 0).attention / 2
    _, both = attended(sparsity=0.5, quality="draft")
    assert both < min(less, attended(quality="draft")[1])


def test_what_it_comes_to_is_said_in_one_line(parts):
    assert sparse.told(ask(parts), parts.config) == ""
    told = sparse.told(ask(parts, sparsity=0.6), parts.config)
    assert told.startswith("sparsity 0.6: ") and "first 1 of 4 steps" in told
    assert "TFLOP/s" not in told


def test_on_a_gpu_it_says_where_it_would_save_no_time():
    config = PUBLISHED["wan2.1-t2v-14b"]

    def told(sparsity, **size):
        spec = parse(model=config.name, prompt="a lake", seed=1, sparsity=sparsity, **size)
        return sparse.told(resolve(spec, config), config, "cuda")

    assert "only where dense attention computes less than 4" in told(0.5, width=256, height=256)
    assert "TFLOP/s" not in told(0.8, width=256, height=256)
    assert "TFLOP/s" not in told(0.3, width=1280, height=720)  # tile by tile, in long calls
    assert "less than 53" in told(0.3, width=832, height=480) and "TFLOP/s" not in told(
        0.5, width=832, height=480
    )
    assert "less than 400 TFLOP/s" in sparse.worth(0.5, 200e12) and sparse.worth(0.3, 200e12) == ""


@pytest.mark.parametrize("sparsity", [-0.1, 0.91, 1, math.nan])
def test_a_sparsity_that_leaves_nothing_is_refused(sparsity):
    with pytest.raises(BadOption, match="sparsity"):
        parse(model="tiny", prompt="a lake", sparsity=sparsity)
