"""Every lever alone and with every other one: the clip stays what it is said to be, or one line says why it cannot.

A new lever is a row in LEVERS. Levers of one option are alternatives: nobody can ask for two of them at once.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch

from broll.engine import fp8, load, lora, lora_files, magnitudes, step_cache, tiles
from broll.engine.compiled import ON, Compiler
from broll.engine.config import Ratios
from broll.engine.pipeline import Frames, Warned, generate, resolve
from broll.engine.sampler import Step
from broll.errors import BadOption
from broll.spec import parse
from tests import formats, loras
from tests.parity.judge import relative

ASK = {
    "model": "tiny", "prompt": "a lake", "negative_prompt": "grey", "seed": 4, "width": 32, "height": 32,
    "frames": 9, "steps": 4, "guidance": 4.0, "shift": 3.0,
}  # fmt: skip
WORDS = (ASK["prompt"], ASK["negative_prompt"])
RATIOS = Ratios((1.0, *[0.99] * 8), (1.0, *[0.98] * 8), "made up")


@dataclass(frozen=True)
class Lever:
    """`bound`: how far its clip may be from that of `like`, or from the plain one; 0: the same bits. None: a clip of
    its own.
    """

    name: str
    option: str
    spec: Mapping = field(default_factory=dict)  # fields of the spec
    how: Mapping = field(default_factory=dict)  # of `World.parts`
    bound: float | None = None
    like: str = ""


LEVERS = (
    Lever("magcache", "quality", {"quality": "standard", "steps": 9}),
    Lever("teacache", "quality", {"quality": "draft", "step_cache": "teacache", "steps": 9}),
    Lever("sparsity", "sparsity", {"sparsity": 0.5}),
    Lever("guidance until", "guidance_until", {"guidance_until": 0.2}),
    Lever("few steps", "steps", {"steps": 3, "guidance": 1, "grid": "distilled", "sampler": "euler"}),
    Lever("text first", "text", how={"prompts": WORDS, "text_first": True}, bound=0),
    Lever("block streaming", "offload", how={"streamed": True}, bound=0),
    Lever("attention", "attention", how={"attention": "blocked"}, bound=1e-3),
    Lever("compile", "compile", how={"compiled": True}, bound=1e-3),
    Lever("lora beside", "lora", how={"beside": True}),
    Lever("lora merged", "lora", how={"merged": True}, bound=1e-3, like="lora beside"),
    Lever("fp8 weights", "weights", how={"form": "fp8-rows"}),
    Lever("native fp8", "weights", how={"form": "fp8-rows", "native_fp8": True}, bound=0.3, like="fp8 weights"),
    Lever("int8", "weights", how={"int8": True}, bound=0.1),
    Lever("vae tiling", "tiles", how={"tiles": 2}, bound=1e-3),
)  # fmt: skip
NAMED = {lever.name: lever for lever in LEVERS}
PAIRS = [(a, b) for a, b in itertools.combinations(LEVERS, 2) if a.option != b.option]
EXCLUDED = {
    frozenset(("block streaming", "lora merged")): "cannot be merged into blocks that are streamed",
    frozenset(("block streaming", "int8")): "int8 and block streaming exclude each other",
    frozenset(("fp8 weights", "lora merged")): "packed or quantized, so no LoRA can be merged into it",
    frozenset(("native fp8", "lora merged")): "packed or quantized, so no LoRA can be merged into it",
    frozenset(("guidance until", "few steps")): "guidance is 1: there is none to leave out",
    frozenset(("guidance until", "magcache")): "guidance_until is 0.2 and quality is standard",
    frozenset(("guidance until", "teacache")): "guidance_until is 0.2 and quality is draft",
}
IDLE = {  # the first changes nothing beside the second, and says so
    ("magcache", "few steps"): "changes nothing: 3 steps are too few",
    ("teacache", "few steps"): "changes nothing: 3 steps are too few",
}
# In `make test` those that exclude each other, and those with streaming, which must change no bit; the others are long.
CASES = [
    (a, b)
    if frozenset((a.name, b.name)) in EXCLUDED
    or (a.name, b.name) in IDLE
    or "block streaming" in (a.name, b.name)
    else pytest.param(a, b, marks=pytest.mark.slow)
    for a, b in PAIRS
]


class World:
    """A tiny model in two forms, a LoRA for it, and every clip that was made so far."""

    def __init__(self, place):
        self.folders = {form: formats.comfy_folder(place / form, form) for form in ("single", "fp8-rows")}
        for folder in self.folders.values():
            (folder / magnitudes.NAME).write_text(magnitudes.written(RATIOS))
        pairs = loras.pairs(formats.transformer(), r"^blocks")
        file = loras.save(pairs, "comfy", place / "film.safetensors")
        self.stack = [(lora_files.read(file), 0.7, None)]
        self.loaded, self.clips = {}, {}

    def parts(self, *, form="single", beside=False, merged=False, compiled=False, **options):
        key = (form, merged, *sorted(options.items()))
        if key not in self.loaded:
            stack = self.stack if merged else ()
            kinds = {name: options.pop(name, False) for name in ("native_fp8", "int8")}
            count = options.pop("tiles", 1)
            made = load.load(
                self.folders[form], "tiny", precision=load.Precision(**kinds), merge=stack, **options
            )
            tiles.use(made.vae, count)
            self.loaded[key] = made
        parts = self.loaded[key]
        lora.attach(parts.transformer, self.stack if beside else [])
        config = replace(parts.config, name="wan2.1-t2v-1.3b")  # of which TeaCache's numbers are published
        return replace(parts, config=config, compiler=Compiler(ON, None) if compiled else Compiler())

    def clip(self, *levers):
        """The latents after the last step and the pictures, as one row of numbers; and what was told."""
        names = frozenset(lever.name for lever in levers)
        if names not in self.clips:
            how, given = {}, dict(ASK)
            for lever in levers:
                how, given = how | lever.how, given | lever.spec
            parts = self.parts(**how)
            spec = resolve(parse(**given), parts.config)
            if (
                spec.sparsity and "compiled" in how
            ):  # the functions as they are will do, but not FlexAttention
                parts = replace(parts, compiler=Compiler(ON, "aot_eager"))
            events = list(generate(spec, parts))
            steps = [event for event in events if isinstance(event, Step)]
            pictures = [event.frames.flatten() for event in events if isinstance(event, Frames)]
            told = [event.text for event in events if isinstance(event, Warned)]
            told += filter(None, [step_cache.told(spec, parts.config)])
            assert len(steps) == spec.steps
            self.clips[names] = torch.cat([steps[-1].x.flatten(), *pictures]), told
        return self.clips[names]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("levers"))


def can(*levers):
    if any(lever.name == "native fp8" for lever in levers) and not fp8.available(torch.device("cpu")):
        pytest.skip("this torch multiplies no fp8 on a CPU")


def check(world, *levers):
    """Those that only change how the clip is made are left out, and it is the same one, or as near as they say."""
    can(*levers)
    made, told = world.clip(*levers)
    own = [NAMED.get(lever.like) if lever.bound is not None else lever for lever in levers]
    same, _ = world.clip(*filter(None, own))
    bound = sum(lever.bound or 0 for lever in levers)
    assert bool(made.isfinite().all())
    assert torch.equal(made, same) if bound == 0 else relative(made, same) < bound
    return made, told


@pytest.mark.parametrize("lever", LEVERS, ids=lambda lever: lever.name)
def test_a_lever_alone_makes_the_plain_clip_or_one_of_its_own(lever, world):
    made, told = check(world, lever)
    if lever.bound is None or lever.like or lever.bound > 1e-2:
        assert not torch.equal(made, world.clip()[0])
    assert not any("dropped" in text for text in told)
    assert any("of 9 steps are computed" in text for text in told) == (lever.option == "quality")


@pytest.mark.parametrize(("one", "other"), CASES, ids=lambda lever: lever.name)
def test_a_pair_of_levers_makes_the_clip_of_both_or_says_why_not(one, other, world):
    names = (one.name, other.name)
    if frozenset(names) in EXCLUDED:
        with pytest.raises(BadOption, match=EXCLUDED[frozenset(names)]) as refused:
            world.clip(one, other)
        assert "\n" not in str(refused.value)
        return
    made, told = check(world, one, other)
    assert not any("dropped" in text for text in told)
    if names in IDLE:
        assert torch.equal(made, world.clip(other)[0])
        assert any(IDLE[names] in text for text in told)
    elif one.bound is None and other.bound is None:
        assert not any(torch.equal(made, world.clip(lever)[0]) for lever in (one, other))


def test_what_is_excluded_or_idle_is_a_pair_that_can_be_asked_for():
    known = {frozenset((one.name, other.name)) for one, other in PAIRS}
    assert set(EXCLUDED) | {frozenset(names) for names in IDLE} <= known
