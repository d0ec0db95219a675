"""A clip that does not fit, and its nearest relations that do: lighter weights, fewer frames, a smaller size."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from broll import plan as plans
from broll.engine.config import ModelConfig
from broll.plan import Plan, Target
from broll.spec import VideoSpec

FORMS = {"F8_E4M3": "fp8", "Q8_0": "Q8_0", "Q4_K": "Q4_K"}  # from the largest to the smallest
SHORTEST = 5  # frames: below it there is no motion
USUAL = ((1280, 720), (832, 480))  # sizes that WAN was trained at
SAME_ASPECT = 0.1


def nearest(plan: Plan, config: ModelConfig) -> list[str]:
    """Each a few words; the best of its kind."""
    fits = fitter(config, plan)
    spec, found = plan.spec, list[str]()
    streams = plan.offload == "off" and not plan.target.precision.int8  # which excludes it
    if streams and plans.make(spec, config, plan.target, can=plan.can).fits:
        found.append(f"with block streaming {shown(spec)} fit")
    form = next((f for f in FORMS if lighter(plan.target, config, f) and fits(spec, f)), None)
    if form is not None:
        found.append(f"with {FORMS[form]} weights {shown(spec)} fit")
    for at in [None, *(f for f in FORMS if lighter(plan.target, config, f))]:
        short = shorter(spec, lambda s, at=at: fits(s, at))  # type: ignore[misc]
        small = next((s for s in smaller(spec, config) if fits(s, at)), None)
        if short or small:
            with_ = "" if at is None else f" with {FORMS[at]} weights"
            found += [f"{shown(one)} fit{with_}" for one in (small, short) if one is not None]
            break
    return found


def sentence(plan: Plan, config: ModelConfig) -> str:
    found = nearest(plan, config)
    said = f"{shown(plan.spec)} do not fit"
    return (
        f"{'; '.join(found)}; {said}" if found else f"{said}, nor does anything smaller of {plan.spec.model}"
    )


def shown(spec: VideoSpec) -> str:
    return f"{spec.frames} frames at {spec.width}x{spec.height}"


def fitter(config: ModelConfig, plan: Plan) -> Callable[[VideoSpec, str | None], bool]:
    def fits(spec: VideoSpec, form: str | None) -> bool:
        target = plan.target if form is None else plans.in_form(plan.target, config, form)
        return plans.make(spec, config, target, can=plan.can, offload=plan.offload).fits

    return fits


def lighter(target: Target, config: ModelConfig, form: str) -> bool:
    """Whether this form is smaller than what is there, by a tenth at least."""
    now = plans.in_form(replace(target, held=None), config, form).held
    have = target.held
    if have is None:
        return True
    assert now is not None
    return sum(now.values()) < 0.9 * sum(have.values())


def shorter(spec: VideoSpec, fits: Callable[[VideoSpec], bool]) -> VideoSpec | None:
    """The most frames that fit, by halving: memory grows with them."""
    assert spec.frames

    def of(k: int) -> VideoSpec:
        return spec.model_copy(update={"frames": 4 * k + 1})

    low, high = (SHORTEST - 1) // 4, (spec.frames - 1) // 4
    if high <= low or not fits(of(low)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(of(middle)) else (low, middle)
    return of(low)


def smaller(spec: VideoSpec, config: ModelConfig) -> Iterator[VideoSpec]:
    """The usual sizes of this aspect, then fractions of its own, from large to small."""
    assert spec.width
    assert spec.height
    width, height, step = spec.width, spec.height, config.size_multiple
    turned = [(h, w) if height > width else (w, h) for w, h in USUAL]
    sizes = [(w, h) for w, h in turned if abs(w * height / (h * width) - 1) < SAME_ASPECT]
    for tenths in range(9, 1, -1):
        w, h = (max(step, round(side * tenths / 10 / step) * step) for side in (width, height))
        sizes += [(w, h)]
    for w, h in sizes:
        if w * h < width * height and w % step == 0 == h % step:
            yield spec.model_copy(update={"width": w, "height": h})
