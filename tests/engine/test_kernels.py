"""The kernel of attention: which can be had, which is best, and a fast one that is wrong spoils no clip."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from broll import group
from broll.cli.generate import keep
from broll.cli.typed import Options
from broll.engine import attention, kernels, mesh, pipeline, snapshot
from broll.engine.attention import AttendCall, Backend, sdpa
from broll.engine.kernels import Checked, Here
from broll.engine.load import Precision, load
from broll.engine.pipeline import Warned, digest, generate, resolve
from broll.engine.sampler import Step
from broll.engine.shapes import Grid
from broll.errors import BadOption
from broll.follower import Follower
from broll.settings import Settings
from broll.spec import parse
from broll.takes import Take

BF16, FP32 = torch.bfloat16, torch.float32
ALL = frozenset({"flash_attn", "flash_attn_interface", "sageattention", "triton"})
HOPPER = Here("cuda", BF16, (9, 0), ALL)
CALL = AttendCall("self", 0, Grid(2, 4, 5))


def nan(q, k, v, call):
    return sdpa(q, k, v, call) * float("nan")


def a_head_of_zeros(q, k, v, call):
    out = sdpa(q, k, v, call).clone()
    out[:, -1] = 0
    return out


def wrong_in_the_second_layer(q, k, v, call):
    return sdpa(q, k, v, call) * (1.5 if call.layer == 1 else 1)


def infinite_where_no_query_is_compared(q, k, v, call):
    out = sdpa(q, k, v, call).clone()
    out[:, 0, 1, 0] = math.inf
    return out


def refuses(q, k, v, call):
    raise RuntimeError("no kernel image is available for execution on the device\nmore lines")


def has_another_signature(q, k, v, call):
    return refuses(q, k, v)


class OutOfResources(Exception):
    """As Triton's is: of no kind that a caller would think of."""


def wants_more_shared_memory(q, k, v, call):
    raise OutOfResources("out of resource: shared memory, Required: 147456, Hardware limit: 101376")


def good(q, k, v, call):
    return attention.blocked(q, k, v, call)


WRONG = [nan, a_head_of_zeros, wrong_in_the_second_layer, infinite_where_no_query_is_compared]
BROKEN = [*WRONG, refuses, has_another_signature, wants_more_shared_memory]


@pytest.fixture
def register(monkeypatch):
    """A kernel in the table for one test."""
    return lambda kernel: monkeypatch.setitem(attention.BACKENDS, kernel.__name__, Backend(kernel))


def loaded(models, name="auto", **options):
    return load(models / "tiny", "tiny", attention=name, **options)


def run(parts, resume=None):
    """Latents, and what was told."""
    spec = resolve(parse(model="tiny", prompt="a lake", seed=4, frames=13), parts.config)
    events = list(generate(spec, parts, resume=resume))
    steps = [event for event in events if isinstance(event, Step)]
    return steps, [event.text for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize("kernel", BROKEN, ids=lambda kernel: kernel.__name__)
def test_a_broken_kernel_is_dropped_in_the_first_step_and_the_clip_is_sdpas_bit_for_bit(
    kernel, register, tiny_models
):
    register(kernel)
    parts = loaded(tiny_models, kernel.__name__)
    assert parts.transformer.attend_name == kernel.__name__
    steps, told = run(parts)
    truth, _ = run(loaded(tiny_models, "sdpa"))
    assert torch.equal(steps[-1].x, truth[-1].x)
    assert len(told) == 1
    assert f"attention {kernel.__name__} was dropped, sdpa goes on" in told[0]
    assert "step 1" in told[0] and "\n" not in told[0]
    assert snapshot.conditions(parts)["attention"] == f"sdpa after {kernel.__name__}"
    assert "dropped" in kernels.verdict(parts.transformer)
    assert run(parts)[1] == []  # it is not asked again, and nothing new is told


def test_the_warning_names_what_was_seen(register, tiny_models):
    for kernel, words in ((nan, "NaN"), (a_head_of_zeros, "off by 1.0e+00"), (refuses, "no kernel image")):
        register(kernel)
        assert words in run(loaded(tiny_models, kernel.__name__))[1][0]


def test_a_right_kernel_stays_and_its_distance_is_told(register, tiny_models):
    register(good)
    parts = loaded(tiny_models, "good")
    steps, told = run(parts)
    assert told == [] and len(steps) == 3
    assert parts.transformer.attend_name == "good"
    found = kernels.verdict(parts.transformer)
    assert found.startswith("good: first step within") and found.endswith("0.0001 allowed")


def test_each_layer_is_compared_once_a_clip_and_again_in_the_next(register, tiny_models):
    register(good)
    compared = []

    class Counting(Checked):
        def _tried(self, q, k, v, call):
            compared.append((call.kind, call.layer, call.branch, call.step))
            return super()._tried(q, k, v, call)

    parts = loaded(tiny_models)
    parts.transformer.use(Counting("good", good, 1e-4))
    layers = parts.config.transformer.num_layers
    run(parts)
    assert len(compared) == len(set(compared)) == layers * 2 * 2  # kinds and branches
    assert {step for *_, step in compared} == {0}
    run(parts)
    assert len(compared) == layers * 2 * 2 * 2


def test_the_check_changes_no_bit_of_what_a_right_kernel_makes(register, tiny_models):
    register(good)
    parts = loaded(tiny_models, "good")
    checked = run(parts)[0][-1]
    parts.transformer.use(good)
    assert digest(run(parts)[0][-1].x) == digest(checked.x)


def test_a_clip_goes_on_without_the_kernel_that_was_dropped_before(register, tiny_models):
    register(nan)
    first = loaded(tiny_models, "nan")
    steps, _ = run(first)
    before = snapshot.conditions(first)
    second = loaded(tiny_models, "nan")
    assert snapshot.conditions(second) != before
    with kernels.as_before(second.transformer, before["attention"]):
        assert snapshot.conditions(second) == before
        again, told = run(second, resume=steps[0])
    assert told == []
    assert torch.equal(again[-1].x, steps[-1].x)


def test_a_kernel_that_failed_elsewhere_is_used_for_the_next_clip(register, tiny_models):
    register(good)
    parts = loaded(tiny_models, "good")
    whole = snapshot.conditions(parts)
    with kernels.as_before(parts.transformer, "sdpa after good"):
        run(parts)
        assert kernels.verdict(parts.transformer).startswith("good dropped")
    assert snapshot.conditions(parts) == whole
    run(parts)
    assert kernels.verdict(parts.transformer).startswith("good: first step within")


def test_a_snapshot_of_a_clip_that_goes_on_without_a_kernel_says_so_again(register, tiny_models, tmp_path):
    register(good)
    parts = loaded(tiny_models, "good")
    spec = resolve(parse(model="tiny", prompt="a lake", seed=1, steps=3), parts.config)
    step = next(event for event in generate(spec, parts) if isinstance(event, Step))
    begun = snapshot.Snapshot(spec, step, snapshot.conditions(parts, spec) | {"attention": "sdpa after good"})
    job = SimpleNamespace(out=tmp_path / "x.mp4", resume=(tmp_path / "old", begun), loras={}, spec=spec)
    watch = SimpleNamespace(step=step, take=Take(0, 1, spec, ""))
    keep(Options(), job, parts, watch)
    assert snapshot.load(tmp_path / "x.mp4.snapshot").conditions["attention"] == "sdpa after good"


def test_one_that_fails_here_stays_dropped(register, tiny_models):
    register(nan)
    parts = loaded(tiny_models, "nan")
    run(parts)
    with kernels.as_before(parts.transformer, "sdpa after nan"):
        pass
    assert kernels.verdict(parts.transformer).startswith("nan dropped")


class Said(mesh.Team):
    """A team of which this is the leader, and what it tells the others."""

    def __init__(self):
        self.rank, self.halted, self.broken, self.orders = 0, False, False, []

    def say(self, order):
        self.orders.append(order)

    def go(self, *, stop=False):
        return not stop


def test_in_a_group_the_others_go_on_without_it_too(register, tiny_models, monkeypatch):
    register(nan)
    first, team = loaded(tiny_models, "nan"), Said()
    spec = resolve(parse(model="tiny", prompt="a lake", seed=1), first.config)
    other, seen = Follower(team, Settings()), []
    other._worn = loaded(tiny_models, "nan")

    def generated(_spec, parts, *_):
        seen.append(parts.transformer.attend_name)
        yield from ()

    monkeypatch.setattr(pipeline, "generate", generated)
    with kernels.as_before(first.transformer, "sdpa after nan"):
        assert list(group.generate(spec, replace(first, team=team), {}, None)) == []
    (order,) = team.orders
    other._do(order)
    assert seen == ["sdpa after nan"] * 2
    assert kernels.news(other._worn.transformer) == []


def test_sdpa_in_fp32_on_a_cpu_is_not_wrapped(tiny_models):
    assert loaded(tiny_models).transformer.attends == {attention.sdpa}
    assert kernels.verdict(loaded(tiny_models).transformer) == ""


def test_a_bf16_model_on_a_cpu_is_checked(tiny_models):
    parts = loaded(tiny_models, precision=Precision(linears=BF16))
    assert parts.transformer.attend_name == "blocked"
    _, told = run(parts)
    assert told == []
    assert kernels.verdict(parts.transformer).startswith("blocked: first step within")


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("kernel", [attention.sdpa, attention.blocked])
def test_right_kernels_lie_far_inside_the_bound(kernel, dtype):
    generator = torch.Generator().manual_seed(0)
    for sharpness in (0.1, 1, 6):  # from a mean of everything to nearly one key
        q, k, v = (torch.randn(1, 4, 600, 64, generator=generator) for _ in range(3))
        q, k, v = (q * sharpness).to(dtype), k.to(dtype), v.to(dtype)
        distance = kernels.distance(kernel(q, k, v, CALL), q, k, v, CALL)
        assert distance < kernels.BOUNDS[dtype] / 3


def eight_bits(q, k, v):
    """As SageAttention rounds: q and k in int8 by tokens, k without its mean, softmax and v in fp8."""
    k = k - k.mean(2, keepdim=True)
    q, k = (
        (x / (scale := x.abs().amax(-1, keepdim=True) / 127)).round() * scale for x in (q.float(), k.float())
    )
    scale = v.float().abs().amax(2, keepdim=True) / 448
    v = (v.float() / scale).to(torch.float8_e4m3fn).float() * scale
    weight = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    top = weight.amax(-1, keepdim=True)
    return ((weight / top * 448).to(torch.float8_e4m3fn).float() / 448 * top @ v).to(torch.bfloat16)


@pytest.mark.parametrize("sharpness", [0.1, 1, 6])
def test_eight_bits_lie_far_inside_their_own_bound(sharpness):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 600, 128, generator=generator).to(BF16) for _ in range(3))
    distance = kernels.distance(eight_bits(q * sharpness, k, v), q * sharpness, k, v, CALL)
    assert distance < kernels.BOUND_8_BITS / 3


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_the_check_never_holds_more_than_a_head_of_keys():
    n, width = 5000, 32
    q = torch.randn(1, 3, n, width, dtype=BF16)
    with Largest() as made:
        kernels.distance(q, q, q, q, CALL)
    assert made.elements == max(n * width, n * kernels.QUERIES)


def test_a_bias_of_keys_is_never_lost():
    """A kernel of a package is not even imported for such a call; that is why this runs without it."""
    q, k, v = (torch.randn(1, 2, n, 16) for n in (9, 5, 5))
    call = replace(CALL, kind="text", key_bias=torch.linspace(-1, 3, 5))
    for name, backend in attention.BACKENDS.items():
        torch.testing.assert_close(
            backend.attend(q, k, v, call), attention.reference(q, k, v, call), atol=1e-5, rtol=1e-4, msg=name
        )


@pytest.mark.parametrize(
    ("here", "name"),
    [
        (Here("cpu", FP32), "sdpa"),
        (Here("cpu", BF16), "blocked"),
        (Here("mps", FP32), "sdpa"),
        (HOPPER, "flash3"),
        (replace(HOPPER, packages=ALL - {"flash_attn_interface"}), "sdpa"),
        (replace(HOPPER, capability=(8, 9)), "sdpa"),  # never 8 bits without being asked
        (replace(HOPPER, capability=(12, 0)), "sdpa"),
        (replace(HOPPER, dtype=FP32), "sdpa"),
    ],
)
def test_the_best_kernel_is_the_fastest_that_rounds_no_further(here, name):
    assert kernels.chosen("auto", here) == name


@pytest.mark.parametrize(
    ("name", "here", "words"),
    [
        ("flash3", Here("cpu", BF16), "needs an NVIDIA GPU; the device here is cpu"),
        ("flash3", replace(HOPPER, capability=(8, 9)), "9.0 or more, below 10.0; this one has 8.9"),
        ("flash2", replace(HOPPER, capability=(7, 5)), "8.0 or more; this one has 7.5"),
        ("sage", replace(HOPPER, packages=frozenset()), "sageattention is not installed"),
        ("flash2", replace(HOPPER, packages=frozenset()), "pip install flash-attn"),
        ("flash2", replace(HOPPER, dtype=FP32), "bf16 or fp16; this model computes in float32"),
        ("flex", replace(HOPPER, packages=frozenset()), "triton is not installed"),
        ("fast", Here("cpu", BF16), "'fast'; possible here are auto, sdpa, blocked, reference"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_that_says_what_can(name, here, words):
    with pytest.raises(BadOption) as refused:
        kernels.chosen(name, here)
    assert words in str(refused.value)
    assert "auto, sdpa" in str(refused.value)


@pytest.mark.parametrize("name", attention.BACKENDS)
def test_every_kernel_can_be_had_on_some_device(name):
    assert kernels.chosen(name, HOPPER) == name


def test_a_model_is_not_loaded_with_a_kernel_that_cannot_compute_here(tiny_models):
    with pytest.raises(BadOption, match="flash3 is not possible here"):
        loaded(tiny_models, "flash3")
