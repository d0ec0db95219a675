"""What is asked for: one frozen object that the CLI, the server and the engine all take.

It holds names of models and digests of pictures, never a path, a URL or a secret. A field left None means
"the model's default"; `broll.engine.pipeline.resolve` fills it in, so that the spec stored with a clip is
complete.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from broll.errors import BadOption, BadPrompt, BrollError, wrong

MAX_PROMPT = 10_000  # characters; the text encoder's own limit of 512 tokens is checked by the engine
MAX_SEED = 2**63 - 1
MAX_TAKES = 16
Pick = Literal["camera", "motion", "sharp"]
Quality = Literal["draft", "standard", "best"]
STUDENT = "{}-student"  # the LoRA that a model brings to make quality draft in few steps, by the model's name
StepCache = Literal["magcache", "teacache"]


class Artifact(BaseModel):
    """A file known by its content: `id` names it, `sha256` is its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, content: bytes) -> "Artifact":
        digest = hashlib.sha256(content).hexdigest()
        return cls(id=digest[:16], sha256=digest)


class Title(BaseModel):
    """Words to be read in the clip, letter by letter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=300)]


class LoraUse(BaseModel):
    """A LoRA beside the model: its name here, its digest, how strong, and in which steps (from 0, both included)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    first: Annotated[int | None, Field(ge=0, le=999)] = None
    last: Annotated[int | None, Field(ge=0, le=999)] = None

    @model_validator(mode="after")
    def _range(self) -> "LoraUse":
        if (self.first is None) != (self.last is None) or (self.first or 0) > (self.last or 0):
            raise BadOption(
                f"the steps of the LoRA {self.name} are {self.first} to {self.last}; give first and last"
            )
        return self


class VideoSpec(BaseModel):
    """One clip, as asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    model: Annotated[str, Field(min_length=1, max_length=100)]
    prompt: str
    negative_prompt: Annotated[str | None, Field(max_length=MAX_PROMPT)] = None
    width: Annotated[int | None, Field(ge=1, le=8192)] = None
    height: Annotated[int | None, Field(ge=1, le=8192)] = None
    frames: Annotated[int | None, Field(ge=1, le=10_001)] = None  # 4k + 1
    fps: Annotated[int | None, Field(ge=1, le=120)] = None
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    guidance: Annotated[float | None, Field(ge=1, le=50)] = None  # 1: no guidance
    guidance_until: Annotated[float | None, Field(gt=0, le=1)] = (
        None  # share of the steps; then in every second
    )
    shift: Annotated[float | None, Field(gt=0, le=100)] = None
    sampler: Literal["unipc", "dpm++", "euler"] | None = None
    grid: Literal["official", "diffusers", "distilled"] | None = None
    sparsity: Annotated[float | None, Field(ge=0, le=0.9)] = None  # of all pairs left out of attention
    quality: Quality | None = None  # below best, steps are skipped; None: best
    step_cache: StepCache | None = None  # how the steps to skip are chosen; None: magcache
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None  # None: drawn, and written back
    image: Artifact | None = None  # first frame
    last_image: Artifact | None = None
    preprocessing: Literal["official", "diffusers"] = "official"  # of the pictures
    loras: Annotated[tuple[LoraUse, ...], Field(max_length=8)] = ()
    titles: Annotated[tuple[Title, ...], Field(max_length=20)] = ()
    motion: Literal["low", "medium", "high"] | None = (
        None  # measured in the clip, which is retimed to meet it
    )
    takes: Annotated[int | None, Field(ge=1, le=MAX_TAKES)] = None  # so many seeds, one kept
    pick: Pick | None = None  # by what the take to keep is chosen

    @property
    def guided(self) -> int:
        """Of a resolved spec: in how many steps the negative prompt is run."""
        return guided_steps(self.steps or 0, self.guidance or 1, self.guidance_until)

    @property
    def student(self) -> LoraUse | None:
        """Its model's own LoRA for quality draft, if that is on."""
        return next((use for use in self.loras if use.name == STUDENT.format(self.model)), None)

    @field_validator("prompt", "negative_prompt", mode="before")
    @classmethod
    def _text(cls, text: object) -> object:
        if isinstance(text, str) and "\0" in text:
            raise BadPrompt("the prompt contains a NUL character")
        if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise BadPrompt("the prompt is not valid text: it contains half a character (a lone surrogate)")
        return text

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, prompt: str) -> str:
        if not prompt.strip():
            raise BadPrompt("the prompt is empty: say what the clip shows and how the camera moves")
        if len(prompt) > MAX_PROMPT:
            raise BadPrompt(f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT} are possible")
        return prompt


def guided_steps(steps: int, guidance: float, until: float | None) -> int:
    """Those that run the negative prompt: the first ones, then every second; without guidance none."""
    first = max(1, round(steps * (1 if until is None else until)))
    return 0 if guidance == 1 else first + (steps - first) // 2


def parse(**fields: object) -> VideoSpec:
    """A VideoSpec, or one line that names the field, what it got and what is possible."""
    try:
        return VideoSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, BrollError):
            raise cause from None
        name = ".".join(str(part) for part in first["loc"]) or "spec"
        raise BadOption(wrong(name, first)) from None
