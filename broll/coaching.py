"""The coach at work on a spec: a model's facts become its context, and its words the spec's.

off     the prompt as it is, the model's published negative prompt
check   the prompt as it is, findings, a negative prompt that does not push away what the prompt asks for
fix     the prompt rewritten: words for the picture lifted out, what is lacking added

A negative prompt that was given stands, whatever the mode.
"""

from typing import Literal

from broll.engine.config import ModelConfig
from broll.errors import BadOption
from broll.prompts import coach, negative, slots
from broll.prompts.findings import Context
from broll.prompts.report import Report, checked, rewritten
from broll.prompts.vocabulary import style_presets, uses
from broll.spec import Title, VideoSpec

Mode = Literal["off", "check", "fix"]


def context(
    config: ModelConfig, spec: VideoSpec, *, use: str | None = None, style: str | None = None
) -> Context:
    """What the coach knows of the clip, before the model's defaults are filled in."""
    if use is not None and use not in uses():
        raise BadOption(f"there is no preset {use!r}; there are {', '.join(sorted(uses()))}")
    if style is not None and style not in style_presets():
        raise BadOption(f"there is no style {style!r}; there are {', '.join(sorted(style_presets()))}")
    own = config.defaults
    width, height = spec.width or own.size[0], spec.height or own.size[1]
    return Context(
        task=config.task, seconds=(spec.frames or own.frames) / (spec.fps or own.fps), width=width, height=height,
        guidance=own.guidance if spec.guidance is None else spec.guidance, steps=spec.steps or own.steps,
        base_negative=own.negative_prompt, negative=spec.negative_prompt,
        small=config.transformer.dim < 3000, use=use, style=style,
    )  # fmt: skip


def coached(
    spec: VideoSpec, known: Context, mode: Mode, without: tuple[str, ...] = ()
) -> tuple[VideoSpec, Report | None]:
    """The spec with its negative prompt, rewritten if asked for, and what was said of it."""
    if mode == "off":
        return spec, None
    if mode == "fix":
        made = coach.rewrite(spec.prompt, known, without)
        report = rewritten(made)
        titles = tuple(Title(text=text) for text in made.titles)
        spec = spec.model_copy(update={"prompt": made.prompt, "titles": spec.titles + titles})
    else:
        built = negative.build(spec.prompt, known.base_negative, slots.parse(spec.prompt))
        report = checked(spec.prompt, known, built)
    if spec.negative_prompt is None:
        spec = spec.model_copy(update={"negative_prompt": report.negative_prompt})
    else:
        report = report.model_copy(
            update={"negative_prompt": spec.negative_prompt, "negative_dropped": (), "negative_added": ()}
        )
    return spec, report
