"""The edge to httpx: a call becomes its request, its failures become ours. Shared by both clients."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from broll.client.calls import Call, header
from broll.client.errors import ConnectionFailed
from broll.client.flows import Answer
from broll.client.retries import Retries
from broll.errors import BadOption

SERVER = "http://127.0.0.1:8188"
CONNECT_S = 10.0
# A proxy of the environment is not asked for this machine itself.
LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")


@dataclass(frozen=True)
class Connection:
    """Where the server is, and how to speak with it."""

    base_url: str
    api_key: str
    timeout_s: float
    retries: Retries

    @classmethod
    def of(
        cls, base_url: str | None, api_key: str | None, timeout_s: float, retries: Retries | None
    ) -> "Connection":
        """As given, else as the environment says, else on this machine; a /v1 at its end is left out."""
        url = (base_url or os.environ.get("BROLL_SERVER") or SERVER).strip().rstrip("/").removesuffix("/v1")
        key = (api_key or os.environ.get("BROLL_KEY") or "").strip()
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise BadOption(f"the server is {url!r}; it must be a URL such as {SERVER}")
        return cls(url, header("the API key", key) if key else "", timeout_s, retries or Retries())

    def options(self) -> dict[str, Any]:
        """For httpx.Client and httpx.AsyncClient alike."""
        headers = {"User-Agent": "broll-client", "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {
            "base_url": self.base_url,
            "headers": headers,
            "timeout": httpx.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s)),
            "mounts": dict.fromkeys(LOOPBACK),
        }

    def request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
        connect_s = min(CONNECT_S, self.timeout_s)
        return http.build_request(
            call.method,
            call.path,
            params=dict(call.query) or None,
            headers=dict(call.headers),
            content=call.body,
            data=call.form,
            files=call.files,
            timeout=httpx.Timeout(self.timeout_s + call.hold_s, connect=connect_s),
        )

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Errors of httpx, in our words."""
        try:
            yield
        except httpx.ConnectError as error:
            raise ConnectionFailed(
                f"cannot reach {self.base_url}: is `broll serve` running there? ({error})"
            ) from error
        except httpx.TimeoutException as error:
            raise ConnectionFailed(f"{self.base_url} did not answer in time") from error
        except httpx.TransportError as error:
            raise ConnectionFailed(f"the connection to {self.base_url} broke: {error}") from error
        except (httpx.DecodingError, httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise ConnectionFailed(f"the answer of {self.base_url} cannot be read: {error}") from error


def answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)
