"""What several folders of tests share: a place of one's own, and a tiny model.

The process that only gives out tests reads this file, too, before the others start: so torch is imported where it is
needed.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests import databases

if TYPE_CHECKING:
    from broll.jobs.database import Database


def pytest_runtest_setup(item: pytest.Item) -> None:
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: `tiny` makes clips from text, `tiny-i2v` from a picture, `tiny-flf2v` from two."""
    from tests import checkpoints

    folder = tmp_path_factory.mktemp("models")
    checkpoints.diffusers_folder(folder / "tiny", "t2v")
    checkpoints.diffusers_folder(folder / "tiny-i2v", "i2v")
    checkpoints.diffusers_folder(folder / "tiny-flf2v", "flf2v")
    return folder


@pytest.fixture(scope="session")
def measured(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data that knows how fast this machine is with the tiny models: half a second, once for all tests."""
    from broll import catalog, plan, wiring
    from broll.settings import Settings
    from broll.spec import parse

    data = tmp_path_factory.mktemp("measured")
    settings = Settings(models=tiny_models, data=data, threads=1)
    wiring.use_threads(settings)  # rates hold for a number of threads
    model = catalog.find(settings, "tiny")
    config = wiring.describe(model)
    plan.here(plan.whole(parse(model="tiny", prompt="a lake"), config), config, settings, model)
    return data


@pytest.fixture
def place(tmp_path: Path, tiny_models: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with settings that touch nothing else of this machine."""
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(measured, tmp_path / "data")
    monkeypatch.chdir(work)
    monkeypatch.setenv("BROLL_MODELS", str(tiny_models))
    monkeypatch.setenv("BROLL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BROLL_THREADS", "1")
    return work


@pytest.fixture(scope="session")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with databases.postgresql_server(tmp_path_factory.mktemp("postgresql")) as url:
        yield url


@pytest.fixture(params=databases.KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, of either kind."""
    server = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    with databases.empty_database(request.param, tmp_path, server) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator["Database"]:
    """The same, with its tables."""
    with databases.ready_database(database_url) as ready:
        yield ready
