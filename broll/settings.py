"""The only reader of the environment.

BROLL_MODELS     folder with model checkpoints, one folder each      ~/.cache/broll/models
BROLL_DATA       folder for pictures and snapshots                   ~/.local/share/broll
BROLL_THREADS    CPU threads; 0 leaves it to torch
"""

from pathlib import Path

from platformdirs import user_cache_path, user_data_path
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BROLL_", extra="forbid")

    models: Path = Field(default_factory=lambda: user_cache_path("broll") / "models")
    data: Path = Field(default_factory=lambda: user_data_path("broll"))
    threads: int = Field(default=0, ge=0, le=1024)
