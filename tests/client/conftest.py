"""The client's tests run against the small server beside them, each with the sync and the async client.

`server` has `url` and `key`. What uses nothing else of it (`test_contract.py`) also runs against a real one:

    TEST_BROLL_SERVER=http://127.0.0.1:8188 TEST_BROLL_KEY=... pytest tests/client/test_contract.py
"""

import asyncio
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import pytest

from broll.client import AsyncClient, Client, Retries
from tests.client.small_server import SmallServer

SOON = Retries(times=4, first_s=0.01, most_s=5)


@dataclass(frozen=True)
class RealServer:
    url: str
    key: str


class Waiting:
    """The async client with the sync one's methods, so that one test is for both."""

    def __init__(self, *given: Any, **more: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._made(*given, **more))

    async def _made(self, *given: Any, **more: Any) -> AsyncClient:
        return AsyncClient(*given, **more)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)

        def call(*given: Any, **more: Any) -> Any:
            made = found(*given, **more)
            return self._runner.run(made) if inspect.iscoroutine(made) else self._each(made)

        return call if callable(found) else found

    def _each(self, items: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._runner.run(anext(items))
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(items.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROLL_SERVER", "BROLL_KEY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def small() -> Iterator[SmallServer]:
    with SmallServer() as server:
        yield server


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Any:
    url = os.environ.get("TEST_BROLL_SERVER")
    if url:
        return RealServer(url, os.environ.get("TEST_BROLL_KEY", ""))
    return request.getfixturevalue("small")


@pytest.fixture(params=[Client, Waiting], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def client(kind: Any, server: Any) -> Iterator[Any]:
    with kind(server.url, server.key, retries=SOON) as made:
        yield made
