"""A whole service on a free port of this machine: real HTTP, real children, tiny models."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from broll.cli.serve import listen
from broll.server.app import build
from broll.serving import Running, running
from broll.settings import Settings

KEY = "broll-admin-key-for-tests-only"
QUICK = {
    "beat_s": 0.2,
    "poll_s": 0.2,
    "lease_s": 5.0,
    "backoff_s": 0.1,
    "drain_s": 20.0,
    "log_level": "error",
}


@dataclass(frozen=True)
class Live:
    url: str
    running: Running
    key: str = KEY

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)

    def tenant(self, name: str, **fields: Any) -> str:
        """A new tenant's key."""
        with self.client() as admin:
            made = admin.post("/v1/admin/tenants", json={"name": name} | fields).raise_for_status().json()
            path = f"/v1/admin/tenants/{made['id']}/api-keys"
            return admin.post(path, json={"name": "test"}).raise_for_status().json()["key"]


@contextmanager
def live(models: Path, data: Path, **changes: Any) -> Iterator[Live]:
    settings = Settings(models=models, data=data, threads=1, admin_key=KEY, **QUICK | changes)
    with running(settings) as started:
        listening = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(build(started.service), log_config=None, access_log=False))
        server.config.lifespan = "off"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", started)
        finally:
            started.service.draining.set()
            server.should_exit = True
            thread.join()


def finished(client: httpx.Client, job_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """The job when it is done."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        job = client.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=5"}).raise_for_status().json()
        if job["status"] in ("completed", "failed"):
            return job
    raise TimeoutError(job)
