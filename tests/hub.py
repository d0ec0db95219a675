"""A small hub of models on this machine: the routes that huggingface_hub asks, over real HTTP, with real faults."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".pth", ".gguf", ".bin")  # kept apart from git, and known by their sha256


@dataclass
class Hub:
    """What it has, and what goes wrong with it."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # file, Range
    strange: list[str] = field(default_factory=list)  # what has nothing to do with a download
    gated: set[str] = field(default_factory=set)
    private: dict[str, str] = field(default_factory=dict)  # repository -> the token that may read it
    drop: dict[str, int] = field(
        default_factory=dict
    )  # the line is cut once after so many bytes of this file
    stall: dict[str, int] = field(default_factory=dict)  # and here nothing follows, until `go_on`
    broken: set[str] = field(default_factory=set)  # these are answered with 503
    corrupt: set[str] = field(default_factory=set)  # these arrive with another first byte
    sizes: dict[str, int] = field(default_factory=dict)  # these are listed with another size
    no_ranges: bool = False
    go_on: threading.Event = field(default_factory=threading.Event)

    def put(self, repository: str, folder: Path) -> None:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repositories.setdefault(repository, {}).update(files)

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that shall ask this hub, and know no token of the machine's."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}

    def fetched(self) -> list[str]:
        return [path for path, _ in self.asked]


def entry(path: str, data: bytes, size: int) -> dict:
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    found = {"type": "file", "path": path, "size": size, "oid": blob}
    if path.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] != ["api", "models"] and parts[0] == "api":
            self.hub.strange.append(self.path)
            self.answer(404, {"error": "no"})
            return
        if parts[0] == "api":
            repository, kind, revision = "/".join(parts[2:4]), parts[4], parts[5]
        else:
            repository, kind, revision = "/".join(parts[:2]), parts[2], parts[3]
        if not self.allowed(repository, revision):
            return
        files = self.hub.repositories[repository]
        if kind == "revision":
            self.answer(200, {"id": repository, "sha": COMMIT, "tags": ["license:apache-2.0"]})
        elif kind == "tree":
            sizes = self.hub.sizes
            self.answer(200, [entry(path, data, sizes.get(path, len(data))) for path, data in files.items()])
        else:
            self.send_file("/".join(parts[4:]), files)

    def allowed(self, repository: str, revision: str) -> bool:
        hub, token = self.hub, (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if repository in hub.gated:
            self.answer(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        elif repository not in hub.repositories or hub.private.get(repository, token) != token:
            self.answer(401 if not token else 404, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})
        elif revision == "none":
            self.answer(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def send_file(self, path: str, files: dict[str, bytes]) -> None:
        hub, asked = self.hub, self.headers["Range"]
        hub.asked.append((path, asked))
        if path in hub.broken:
            self.answer(503, {"error": "later"})
            return
        data = files[path]
        if path in hub.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = 0 if asked is None or hub.no_ranges else int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = hub.drop.pop(path, None)
        stop = hub.stall.get(path)
        self.wfile.write(data[start : min((n for n in (cut, stop) if n is not None), default=len(data))])
        if stop is not None:
            self.wfile.flush()
            hub.go_on.wait(60)
        self.close_connection = cut is not None or stop is not None

    def answer(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask it in this process too, which has read HF_ENDPOINT already."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", "")


class Quiet(ThreadingHTTPServer):
    """A client that hangs up is no news, least of all on the stderr that a test reads."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    server = Quiet(("127.0.0.1", 0), type("Of", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
