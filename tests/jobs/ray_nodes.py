"""A Ray cluster of several nodes on this machine, as its operator would start it, with a token. Nodes can be lost."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent
START_S = 60.0
TOKEN = "0123456789abcdef" * 4
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
RAY = (sys.executable, "-m", "ray.scripts.scripts")
NODE = ("--object-store-memory=100000000", "--disable-usage-stats", "--block")


class Nodes:
    """The head has no CPUs: it is where the dispatcher lives."""

    def __init__(self, auth: dict[str, str] | None = None) -> None:
        self._auth = AUTH if auth is None else auth
        self._folder = Path(tempfile.mkdtemp(prefix="broll-ray-"))  # short: sockets live in it
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: list[psutil.Process] = []
        self.address = f"127.0.0.1:{free_port()}"

    def head(self) -> None:
        port, folder = self.address.split(":")[1], self._folder
        self._start("head", "--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false")

    def add(self, name: str, *, gpus: int = 2) -> None:
        self._start(name, f"--address={self.address}", f"--num-gpus={gpus}", cpus=1)

    def lose(self, name: str) -> None:
        """All of a node at once, as when its power fails."""
        process = self._running.pop(name)
        for member in family(process.pid):
            member.kill()
        process.wait()

    def close(self) -> list[str]:
        """What was still there afterwards."""
        for name in reversed(self._running.copy()):
            self._seen += family(self._running[name].pid)
            self.lose(name)
        left = psutil.wait_procs(self._seen, timeout=10)[1]
        shutil.rmtree(self._folder, ignore_errors=True)
        return [f"{process.pid} {process.name()}" for process in left]

    def _start(self, name: str, *options: str, cpus: int = 0) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        env |= self._auth | {"TEST_BROLL_NODE": name, "PYTHONPATH": str(ROOT)}
        command = [*RAY, "start", *options, f"--num-cpus={cpus}", *NODE]
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._running[name] = process
        until = time.monotonic() + START_S  # one after another: nodes that start together pick the same ports
        while "Ray runtime started" not in (said := (self._folder / f"{name}.log").read_text()):
            assert process.poll() is None and time.monotonic() < until, said
            time.sleep(0.1)


def family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextmanager
def running(auth: dict[str, str] | None = None) -> Iterator[Nodes]:
    """A head node; nothing is left of the cluster at the end."""
    nodes = Nodes(auth)
    try:
        nodes.head()
        yield nodes
    finally:
        left = nodes.close()
    assert left == []
