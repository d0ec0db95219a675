"""The only reader of broll.toml, and of broll's settings in the environment.

Each name is a variable BROLL_NAME, or NAME in the file that BROLL_CONFIG names (else ./broll.toml). The
environment wins; a command's own flag wins over both. A name that is not here is refused.
"""

import os
import tomllib
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_cache_path, user_data_path
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from broll.errors import BadOption

CLIENTS = {"BROLL_SERVER", "BROLL_KEY"}  # read by the client and its commands
Seconds = Annotated[float, Field(gt=0, le=10**9)]
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Loading:
    """How a model is loaded: what the settings say of it, and what a plan has switched on."""

    attention: str = "auto"
    compile: str = "auto"
    int8: bool = False
    native_fp8: bool = False
    vae_precision: str = "auto"
    streamed: bool = False  # the transformer's blocks come as they run
    text_first: bool = False  # prompts that are known are encoded, and the text encoder is let go


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BROLL_", extra="forbid")

    config: Path = Field(default=Path("broll.toml"), description="the file with settings")
    models: Path = Field(
        default_factory=lambda: user_cache_path("broll") / "models",
        description="folder with model checkpoints, one folder each",
    )
    data: Path = Field(
        default_factory=lambda: user_data_path("broll"), description="folder for what broll keeps"
    )
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads of the engine; 0: torch decides")
    merge_loras: bool = Field(
        default=False, description="LoRAs go into the weights where they can, instead of running beside"
    )
    native_fp8: bool = Field(
        default=False,
        description="fp8 weights are multiplied as they are where the device can; else dequantized",
    )
    int8: bool = Field(
        default=False,
        description="matrices of the blocks are rounded to 8-bit integers as they load, and multiplied so",
    )
    offload: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="blocks of the transformer are streamed: auto, if a clip does not fit otherwise; on; off",
    )
    attention: str = Field(
        default="auto",
        description="the kernel that computes attention; auto: the best here that rounds no further",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="passes between matrix products are compiled: auto, on a GPU for clips that it pays for; on; off",
    )
    parallel: str = Field(
        default="auto",
        description="how processes that make one clip together share it: auto, or such as cfg=2,ulysses=4,ring=1",
    )
    group: int = Field(
        default=1,
        ge=1,
        le=64,
        description="so many GPUs of one machine, or processes, make each clip together",
    )
    prompt_cache_mb: int = Field(
        default=256,
        ge=0,
        description="features of prompts are kept in `data`, at most so much; 0: they are not",
    )
    vae_precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="what frames are decoded in; auto: bfloat16 on a GPU, else float32"
    )

    host: str = Field(default="127.0.0.1", description="address that `broll serve` listens on")
    port: int = Field(default=8188, ge=0, le=65535, description="and its port")
    public_url: str | None = Field(default=None, description="how clients reach it; begins output_url")
    database: SecretStr | None = Field(
        default=None, description="sqlite:///FILE or postgresql://...; without it a file in `data`"
    )
    artifacts: str | None = Field(default=None, description="folder or s3://BUCKET/PREFIX for clips")
    artifacts_endpoint: str | None = Field(default=None, description="URL of an S3-compatible storage")
    secret: SecretStr | None = Field(
        default=None, description="signs URLs and keys; the same for every process; without it one in `data`"
    )
    old_secrets: Annotated[list[SecretStr], NoDecode] = Field(
        default=[], description="still accepted in signed URLs, comma-separated"
    )
    admin_key: SecretStr | None = Field(default=None, description="an API key with all scopes, made at start")

    role: Literal["all", "api", "dispatcher"] = Field(default="all", description="what this process does")
    executor: Literal["local", "ray"] = Field(default="local", description="where jobs run")
    ray_address: str | None = Field(default=None, description="of the Ray cluster, HOST:PORT")
    devices: int = Field(
        default=0, ge=0, le=10_000, description="how many jobs at once; 0: one a GPU, else 1"
    )
    batch: int = Field(
        default=1,
        ge=1,
        le=64,
        description="so many small jobs of one shape a device makes together, in one forward",
    )
    offer: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="models that devices elsewhere have, comma-separated; else those on this machine",
    )
    memory_mb: int = Field(default=0, ge=0, description="memory of a device; 0: what is there")

    lease_s: Seconds = Field(default=30.0, description="a dispatcher not heard of so long loses its jobs")
    beat_s: Seconds = Field(default=5.0, description="between two heartbeats")
    poll_s: Seconds = Field(default=2.0, description="between two looks for jobs")
    snapshot_s: float = Field(default=30.0, ge=0, description="between two snapshots of a job")
    stage_timeout_s: Seconds = Field(default=3600.0, description="an executor silent so long is killed")
    drain_s: Seconds = Field(default=60.0, description="for running jobs to be handed back at SIGTERM")
    max_attempts: int = Field(default=3, ge=1, le=100, description="failed attempts that end a job")
    backoff_s: Seconds = Field(default=5.0, description="before the second attempt; doubles")
    warm_age_s: float = Field(default=60.0, ge=0, description="a job waits so long for its model at most")
    retention_s: Seconds = Field(default=7 * 86_400.0, description="clips are kept so long")
    upload_s: Seconds = Field(default=86_400.0, description="uploads are kept so long")
    url_s: Seconds = Field(default=86_400.0, description="life of a signed URL")

    max_seconds: float = Field(default=0, ge=0, le=600, description="longest clip; 0: each model's own")
    max_body_mb: int = Field(default=40, ge=1, le=1000, description="largest request")
    network_allow: Annotated[list[Network], NoDecode] = Field(
        default=[], description="private networks that clients' URLs may point into, CIDR, comma-separated"
    )
    coach_url: str | None = Field(
        default=None,
        description="an OpenAI-compatible language model for the coach, such as http://127.0.0.1:11434/v1",
    )
    coach_model: str = Field(default="", description="its name there")
    coach_key: SecretStr | None = Field(default=None, description="its key, if it wants one")
    coach_timeout_s: Seconds = Field(default=10.0, description="then the coach goes on without it")
    blocklist: Annotated[list[str], NoDecode] = Field(
        default=[], description="words that no prompt may contain, comma-separated"
    )
    price_base: int = Field(default=100, ge=0, description="credits of a 720p clip, before its seconds")
    price_second: int = Field(default=20, ge=0, description="and for each second")
    gpu_hour: float = Field(
        default=0, ge=0, description="what an hour of a device costs, in any money; 0: not said"
    )
    welcome_credits: int = Field(default=100, ge=0, description="for a new tenant")
    cancel_charge: Literal["used", "free"] = Field(
        default="used", description="for a job cancelled while running"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="of the JSON log"
    )

    def __init__(self, **values: Any) -> None:
        """Raises BadOption, in one line, for whatever cannot be used."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise BadOption(_first(error)) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise BadOption(f"{_file()} cannot be read as TOML: {' '.join(str(error).split())}") from None

    @field_validator("public_url", "artifacts_endpoint", "coach_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is no URL: it begins with http:// or https://")
        return value

    @field_validator("network_allow", "offer", "old_secrets", "blocklist", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @model_validator(mode="after")
    def _int8_stays(self) -> "Settings":
        """What is rounded as it loads cannot come again with every step; `auto` then leaves streaming off (plan.py)."""
        if self.int8 and self.offload == "on":
            raise BadOption(
                "int8 and offload on exclude each other: blocks are streamed as their file has them"
            )
        return self

    def loading(self, *, streamed: bool = False, text_first: bool = False) -> Loading:
        return Loading(
            self.attention, self.compile, self.int8, self.native_fp8, self.vae_precision, streamed, text_first
        )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        known = {f"BROLL_{name.upper()}" for name in cls.model_fields} | CLIENTS
        odd = sorted(name for name in os.environ if name.startswith("BROLL_") and name not in known)
        if odd:
            raise BadOption(f"there is no setting {odd[0]}; docs/settings.md lists all of them")
        file = _file()
        if "BROLL_CONFIG" in os.environ and not file.is_file():
            raise BadOption(f"BROLL_CONFIG names {file}, which is not there")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)


def _file() -> Path:
    return Path(os.environ.get("BROLL_CONFIG", "broll.toml"))


def _first(error: ValidationError) -> str:
    """What is wrong first; never what was given, which may be a secret."""
    found = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return f"there is no setting {name}; docs/settings.md lists all of them"
    return f"the setting {name} cannot be used: {found['msg'].removeprefix('Value error, ')}"
