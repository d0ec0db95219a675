"""`broll serve` as it really runs: processes of its own that tests kill, freeze and start again.

Leases last 2 seconds, so that a death is noticed soon. Every wait ends; whatever was started is gone at the end,
frozen processes and orphans too.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).parents[2]
KEY = "broll-admin-key-for-tests-only"
T = TypeVar("T")
PATIENCE_S = 300.0  # this machine may be busy with other things
QUICK = {
    "lease_s": 2, "beat_s": 0.4, "poll_s": 0.2, "backoff_s": 0.1, "snapshot_s": 0, "max_attempts": 20,
    "threads": 1, "devices": 1, "memory_mb": 100_000, "admin_key": KEY, "secret": "a secret of these tests only",
    "drain_s": 30,
}  # fmt: skip


def until(look: Callable[[], T], what: str, *, timeout_s: float = PATIENCE_S, every_s: float = 0.01) -> T:
    """The first thing that `look` sees; TimeoutError with `what` was waited for."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        seen = look()
        if seen:
            return seen
        time.sleep(every_s)
    raise TimeoutError(f"waited {timeout_s:g} s for {what}")


@dataclass
class Serve:
    """One `broll serve`, and the children in which it runs jobs."""

    process: subprocess.Popen[bytes]
    log: Path
    ever: set[psutil.Process] = field(default_factory=set)  # children seen so far

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def url(self) -> str:
        return re.findall(r"serving on (http\S+);", self.text())[0]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self) -> bool:
        if not self.alive:
            raise AssertionError(f"broll serve ended with {self.process.returncode}:\n{self.text()[-3000:]}")
        return "serving on" in self.text() or "dispatching to" in self.text()

    def children(self) -> list[psutil.Process]:
        """The renderers that it has now."""
        found = []
        with suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                with suppress(psutil.Error):
                    if "broll.child" in child.cmdline():
                        found.append(child)
        self.ever.update(found)
        return found

    def send(self, number: signal.Signals) -> None:
        self.children()
        self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def terminate(self, timeout_s: float = PATIENCE_S) -> int:
        """Ask it to go, as systemd does; its exit status."""
        self.send(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def clear(self) -> None:
        """Make sure that neither it nor a child is left."""
        if self.alive:
            self.kill()
        for child in self.ever:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(self.ever, timeout=10)


@dataclass
class Crew:
    """Processes that share a database, a folder of artifacts and a folder of models."""

    database_url: str
    models: Path
    folder: Path
    started: list[Serve] = field(default_factory=list)

    @property
    def artifacts(self) -> Path:
        return self.folder / "clips"

    def start(self, role: str = "dispatcher", *, wait: bool = True, **changes: Any) -> Serve:
        values = QUICK | {
            "database": self.database_url, "models": self.models, "data": self.folder / "data",
            "artifacts": self.artifacts, "role": role, "port": 0,
        } | changes  # fmt: skip
        env = {name: text for name, text in os.environ.items() if not name.startswith("BROLL_")}
        env |= {f"BROLL_{name.upper()}": str(value) for name, value in values.items()}
        env |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{role}-{len(self.started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "broll", "serve", "--role", role],
                cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        serve = Serve(process, log)
        self.started.append(serve)
        if wait:
            until(serve.ready, f"broll serve --role {role}")
        return serve

    def ensure(self, count: int, **changes: Any) -> list[Serve]:
        """So many dispatchers that live; the new ones may still be starting."""
        living = [serve for serve in self.started if serve.alive]
        return living + [self.start(wait=False, **changes) for _ in range(count - len(living))]

    def holder(self, device: str) -> Serve:
        """Whose device it is: its name ends with the process's id and the device's number."""
        pid = int(device.rsplit("-", 2)[1])
        return next(serve for serve in self.started if serve.pid == pid)

    def clear(self) -> None:
        for serve in self.started:
            serve.clear()


@contextmanager
def crew(database_url: str, models: Path, folder: Path) -> Iterator[Crew]:
    made = Crew(database_url, models, folder)
    try:
        yield made
    finally:
        made.clear()
