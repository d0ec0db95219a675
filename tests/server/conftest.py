"""One live service for all tests of a folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import Live, live


@pytest.fixture(scope="session")
def service(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tiny_models, tmp_path_factory.mktemp("service")) as running:
        yield running
