"""What several folders of tests share: a place of one's own, and a tiny model."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests import checkpoints


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: `tiny` makes clips from text, `tiny-i2v` from a picture, `tiny-flf2v` from two."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints.diffusers_folder(folder / "tiny", "t2v")
    checkpoints.diffusers_folder(folder / "tiny-i2v", "i2v")
    checkpoints.diffusers_folder(folder / "tiny-flf2v", "flf2v")
    return folder


@pytest.fixture
def place(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with settings that touch nothing else of this machine."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("BROLL_MODELS", str(tiny_models))
    monkeypatch.setenv("BROLL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BROLL_THREADS", "1")
    return work
