"""`broll(...)` runs the real command line in this process; signals and start-up are in test_process.py."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broll.cli import app


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Broll = Callable[..., Ran]


@pytest.fixture
def broll(place: Path, capsys: pytest.CaptureFixture[str]) -> Broll:
    def run(*words: object) -> Ran:
        capsys.readouterr()
        status = app.run([str(word) for word in words])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "picture.jpg"
    Image.linear_gradient("L").resize((120, 60)).convert("RGB").save(path)
    return path
