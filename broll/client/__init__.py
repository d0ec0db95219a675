"""A Python client for `broll serve`, sync and async.

    calls           each endpoint once, as a value
    job             what the server says about a job
    event_stream    server-sent events: bytes to events
    retries, flows  when a call is repeated; what takes several calls. Generators: they send nothing themselves
    part_file       a download that can be gone on with
    connection      the one place that knows httpx's requests, answers and errors
    client, async_client    the methods; they send what the others describe

It needs httpx and the standard library. The names are loaded when they are first used: `import broll.client`
costs nothing (httpx brings rich along where it finds it).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broll.client.async_client import AsyncClient
    from broll.client.client import Client
    from broll.client.event_stream import Event
    from broll.client.job import Job
    from broll.client.retries import Retries

__all__ = ["AsyncClient", "Client", "Event", "Job", "Retries"]


def __getattr__(name: str) -> Any:
    places = {
        "AsyncClient": "async_client", "Client": "client", "Event": "event_stream", "Job": "job",
        "Retries": "retries",
    }  # fmt: skip
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{places[name]}"), name)
