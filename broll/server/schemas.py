"""What clients send and get. Requests refuse unknown fields, and text that no database can hold."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from broll.errors import BadOption
from broll.prompts.report import CameraOut, Report
from broll.spec import MAX_TAKES, Pick, Quality, StepCache, Title

Word = Annotated[str, Field(max_length=200)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        check_text(value)
        for name, item in value.items() if isinstance(value, dict) else ():
            if (
                isinstance(item, bool)
                and name in cls.model_fields
                and cls.model_fields[name].annotation is not bool
            ):
                raise BadOption(f"{name} is {str(item).lower()}, which is neither a number nor a text")
        return value


def check_text(value: Any, depth: int = 0) -> None:
    """Refuse NUL and halves of characters anywhere: PostgreSQL keeps neither, and UTF-8 not the second."""
    if depth > 20:
        raise BadOption("the request is nested too deeply")
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise BadOption("the request holds a NUL or half a character (a lone surrogate)")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key, depth + 1)
            check_text(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_text(item, depth + 1)


class LoraAsked(Strict):
    """A LoRA that the server has. A digest, if given, must be its own; steps count from 0, both included."""

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]
    weight: Annotated[float | None, Field(ge=-10, le=10)] = None
    first: Annotated[int | None, Field(ge=0, le=999)] = None
    last: Annotated[int | None, Field(ge=0, le=999)] = None
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$")] = None


class Generate(Strict):
    """A clip, in the words of the native API. What is left out is the model's default."""

    prompt: str
    duration: Annotated[float | None, Field(gt=0, le=600, description="seconds")] = None
    seconds: Annotated[float | None, Field(gt=0, le=600, description="the same as duration")] = None
    frames: Annotated[int | None, Field(ge=1, le=10_001, description="4k + 1, instead of duration")] = None
    size: Annotated[str | None, Field(pattern=r"^\d{1,5}x\d{1,5}$", description="WIDTHxHEIGHT")] = None
    width: Annotated[int | None, Field(ge=1, le=8192)] = None
    height: Annotated[int | None, Field(ge=1, le=8192)] = None
    model: Word | None = None
    negative_prompt: Annotated[str | None, Field(max_length=10_000)] = None
    fps: Annotated[int | None, Field(ge=1, le=120)] = None
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    guidance: Annotated[float | None, Field(ge=1, le=50)] = None
    guidance_until: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="share of the steps after which guidance is computed in every second; 1: never",
        ),
    ] = None
    shift: Annotated[float | None, Field(gt=0, le=100)] = None
    sampler: Literal["unipc", "dpm++", "euler"] | None = None
    grid: Literal["official", "diffusers", "distilled"] | None = None
    preprocessing: Literal["official", "diffusers"] | None = None
    sparsity: Annotated[
        float | None,
        Field(ge=0, le=0.9, description="share of the far pairs that self-attention leaves out; 0: none"),
    ] = None
    quality: Annotated[
        Quality | None, Field(description="best computes every step; standard and draft skip some")
    ] = None
    step_cache: Annotated[StepCache | None, Field(description="how the steps to skip are chosen")] = None
    seed: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None
    loras: Annotated[list[LoraAsked], Field(max_length=8)] = []
    titles: Annotated[list[Title], Field(max_length=20)] = []
    motion: Literal["low", "medium", "high"] | None = None
    takes: Annotated[
        int | None,
        Field(ge=1, le=MAX_TAKES, description="so many seeds, each at the price of a clip; the best is kept"),
    ] = None
    pick: Annotated[Pick | None, Field(description="by what the best take is chosen")] = None
    coach: Annotated[
        Literal["off", "check", "fix"] | None,
        Field(description="fix rewrites the prompt; check is the default"),
    ] = None
    preset: Annotated[Word | None, Field(description="a use to rewrite for, such as ambient-loop")] = None
    style: Annotated[Word | None, Field(description="a style to rewrite in, such as cinematic")] = None
    image: Annotated[str | None, Field(description="an upload's id, or a data URI")] = None
    image_url: Annotated[str | None, Field(max_length=4000)] = None
    last_image: str | None = None
    last_image_url: Annotated[str | None, Field(max_length=4000)] = None
    webhook_url: Annotated[str | None, Field(max_length=4000)] = None
    priority: Literal["low", "normal", "high"] = "normal"

    @model_validator(mode="after")
    def _once(self) -> "Generate":
        if sum(value is not None for value in (self.duration, self.seconds, self.frames)) > 1:
            raise BadOption("give one of duration, seconds and frames")
        if self.size is not None and (self.width is not None or self.height is not None):
            raise BadOption("give size, or width and height")
        for name in ("image", "last_image"):
            if getattr(self, name) is not None and getattr(self, f"{name}_url") is not None:
                raise BadOption(f"give {name} or {name}_url")
        return self


class AskedPrompt(Strict):
    """A prompt to be looked at, and the clip that it is for."""

    prompt: str
    model: Word | None = None
    duration: Annotated[float | None, Field(gt=0, le=600, description="seconds")] = None
    seconds: Annotated[float | None, Field(gt=0, le=600, description="the same as duration")] = None
    size: Annotated[str | None, Field(pattern=r"^\d{1,5}x\d{1,5}$", description="WIDTHxHEIGHT")] = None
    guidance: Annotated[float | None, Field(ge=1, le=50)] = None
    negative_prompt: Annotated[str | None, Field(max_length=10_000)] = None
    preset: Word | None = None
    style: Word | None = None
    offsets: Annotated[
        Literal["codepoints", "utf16"],
        Field(description="what start and end count; browsers count UTF-16 units"),
    ] = "codepoints"


class AskedRewrite(AskedPrompt):
    without: Annotated[list[Word], Field(max_length=100, description="ids of additions to leave out")] = []


class Step(BaseModel):
    """All but the inserts make what was given, all but the deletes the new prompt."""

    op: Literal["equal", "insert", "delete"]
    text: str


class Rewritten(Report):
    diff: list[Step]


class CameraMeasured(BaseModel):
    """Asked beside measured; as_asked is null where no single move was asked for."""

    asked: CameraOut | None
    measured: str
    as_asked: bool | None


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Problem(BaseModel):
    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    error: ErrorObject


class JobOut(BaseModel):
    job_id: str
    status: Literal["queued", "processing", "completed", "failed"]
    progress: int
    stage: str | None
    prompt: str
    model: str
    size: str
    seconds: float
    frames: int
    seed: int
    credits: int
    queue_position: int | None
    eta_s: float | None
    output_url: str | None
    error: str | None
    error_code: str | None
    attempts: int
    priority: str
    retry_of: str | None
    remix_of: str | None
    resumed_elsewhere: bool
    created_at: str
    started_at: str | None
    completed_at: str | None
    expires_at: str | None
    notes: list[str]
    coach: Annotated[Report | None, Field(description="what was said of the prompt, and changed in it")]
    camera: CameraMeasured | None
    checks: Annotated[
        dict[str, Any] | None, Field(description="what the clip shows, measured: docs/checks.md")
    ]
    takes: Annotated[list[dict[str, Any]], Field(description="of several, each with what was measured")]
    retimed: Annotated[float, Field(description="how many times slower it plays than it was made")]
    spec: dict[str, Any]
    urls: dict[str, str]


class JobList(BaseModel):
    data: list[JobOut]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Estimate(BaseModel):
    credits: int
    seconds_s: Annotated[float | None, Field(description="of making it, without the wait")]
    time_source: Annotated[
        Literal["seen", "measured"] | None,
        Field(description="earlier clips, or this machine's measured rates"),
    ]
    money: Annotated[float | None, Field(description="at the setting gpu_hour")]
    memory_mb: int
    model: str
    size: str
    frames: int
    seconds: float
    notes: list[str]


class UploadOut(BaseModel):
    id: str
    sha256: str
    width: int
    height: int
    bytes: int
    expires_at: str
