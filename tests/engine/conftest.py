"""A tiny model that knows how little it changes from step to step."""

import dataclasses
from pathlib import Path

import pytest

from broll.engine.load import Parts, load
from tests.engine.steps import FALLING


@pytest.fixture(scope="module")
def parts(tiny_models: Path) -> Parts:
    loaded = load(tiny_models / "tiny", "tiny")
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, ratios=FALLING))
