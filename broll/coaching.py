"""The coach at work on a spec: a model's facts become its context, and its words the spec's.

off     the prompt as it is, the model's published negative prompt
check   the prompt as it is, findings, a negative prompt that does not push away what the prompt asks for
fix     the prompt rewritten: words for the picture lifted out, what is lacking added

A negative prompt that was given stands, whatever the mode. With a language model (settings, coach_url) its phrases are
preferred where the rules would have added their own.
"""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from broll import catalog
from broll.engine.config import ModelConfig
from broll.errors import BadCheckpoint, BadOption, BadPrompt, BrollError
from broll.prompts import coach, language_model, negative, slots
from broll.prompts.findings import Context, Read, Task
from broll.prompts.language_model import Endpoint
from broll.prompts.report import Report, checked, rewritten
from broll.prompts.rewriter import Rewrite
from broll.prompts.rules import length
from broll.prompts.vocabulary import style_presets, uses
from broll.settings import Settings
from broll.spec import Title, VideoSpec

LARGE = 100_000  # words of a vocabulary; umT5's has 256,384, nano's 2,048
Mode = Literal["off", "check", "fix"]


def context(
    config: ModelConfig,
    spec: VideoSpec,
    settings: Settings,
    *,
    use: str | None = None,
    style: str | None = None,
) -> Context:
    """What the coach knows of the clip, before the model's defaults are filled in."""
    if use is not None and use not in uses():
        raise BadOption(f"there is no preset {use!r}; there are {', '.join(sorted(uses()))}")
    if style is not None and style not in style_presets():
        raise BadOption(f"there is no style {style!r}; there are {', '.join(sorted(style_presets()))}")
    own = config.defaults
    width, height = spec.width or own.size[0], spec.height or own.size[1]
    return Context(
        task=kind(config, spec),
        seconds=(spec.frames or own.frames) / (spec.fps or own.fps), width=width, height=height,
        guidance=own.guidance if spec.guidance is None else spec.guidance, steps=spec.steps or own.steps,
        base_negative=own.negative_prompt, negative=spec.negative_prompt,
        small=config.transformer.dim < 3000, use=use, style=style, blocklist=tuple(settings.blocklist),
        read=functools.partial(read, settings, spec.model, config.text.vocab_size),
    )  # fmt: skip


def read(settings: Settings, model: str, vocabulary: int, text: str) -> Read:
    """By the model's own tokenizer; where it is not here, or the library for it is not, nothing is known.

    umT5's knows the letters of every language, so it is loaded only for what may be too long.
    """
    if vocabulary >= LARGE and len(text) < length.TOKENS:
        return Read()
    try:
        from broll.engine.sources import tokenizer_folder  # noqa: PLC0415  prompts are checked without the engine too

        known = tokenizer(tokenizer_folder(catalog.find(settings, model).folder) / "tokenizer.json")
    except (ImportError, OSError, BrollError):
        return Read()
    made = known.encode(text)
    unknown = known.token_to_id("<unk>")
    places = [place for place, token in zip(made.offsets, made.ids, strict=True) if token == unknown]
    letters = (letter for begin, end in places for letter in text[begin:end] if letter.isalpha())
    return Read(len(made.ids), "".join(dict.fromkeys(letters)))


@functools.lru_cache(maxsize=4)
def tokenizer(file: Path) -> Any:
    """Whole texts, as long as they are."""
    from tokenizers import Tokenizer  # noqa: PLC0415  of the engine

    try:
        found = Tokenizer.from_file(str(file))
    except Exception as error:  # that is what tokenizers raises
        raise BadCheckpoint(f"{file} cannot be read: {error}") from error
    found.no_truncation()
    return found


def kind(config: ModelConfig, spec: VideoSpec) -> Task:
    """What this clip is made from, where its model leaves a choice."""
    if config.task == "ti2v":
        return "t2v" if spec.image is None else "i2v"
    return "t2v" if config.task == "vace" else config.task


def refuse_blocked(prompt: str, known: Context) -> None:
    """What the operator does not want made, whatever the mode."""
    for finding in coach.check(prompt, known) if known.blocklist else ():
        if finding.rule == "SAFE-1":
            raise BadPrompt(finding.message)


def endpoint(settings: Settings) -> Endpoint | None:
    if settings.coach_url is None:
        return None
    key = settings.coach_key.get_secret_value() if settings.coach_key else ""
    return Endpoint(
        settings.coach_url, settings.coach_model, key, settings.coach_timeout_s, settings.data / "coach"
    )


def better(
    prompt: str,
    known: Context,
    model: Endpoint | None,
    *,
    without: tuple[str, ...] = (),
    picture: bytes | None = None,
) -> tuple[Rewrite, str]:
    """The prompt rewritten, and what is to be said of the language model."""
    if model is None:
        return coach.rewrite(prompt, known, without), ""
    offered = language_model.offer(model, prompt, known, picture)
    return coach.rewrite(prompt, replace(known, offers=offered.phrases), without), offered.note


def coached(
    spec: VideoSpec, known: Context, mode: Mode, model: Endpoint | None = None, picture: bytes | None = None
) -> tuple[VideoSpec, Report | None]:
    """The spec with its negative prompt, rewritten if asked for, and what was said of it."""
    if mode == "off":
        return spec, None
    if mode == "fix":
        made, note = better(spec.prompt, known, model, picture=picture)
        report = rewritten(made).model_copy(update={"note": note[:1000]})
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
