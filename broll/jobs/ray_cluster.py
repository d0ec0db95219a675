"""Devices on other machines: one Ray actor a device, which keeps its model warm.

    dispatcher  ── run(number, work), stop(number, now) ──▶  actor on some node
                ◀── events, a streaming generator ─────────

Ray finds the node and notices its death; the next run gets a new actor, wherever there is room. Nothing but Work and
events passes between the two, through Ray's object store: a GPU machine needs no database and no storage.

Whoever reaches a Ray cluster may run any code on it. It is one trust zone: a private network and token authentication,
without which `connect` refuses. The dispatcher's machine is a node too (`ray start --address=... --num-cpus=0`).
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from broll.errors import BadOption, BrollError, MissingExtra
from broll.events import FINAL, Event, Stopped, Work
from broll.jobs.executor import ExecutorDied

KILL_S = 5.0  # how long a stop may take
ANSWER_S = 10.0  # how long an idle actor may take to answer
POLL_S = 0.1
CONNECT_S = 5.0
PROBE_S = 60.0
MISSING = 'ray is not installed; to get it: pip install "broll[cluster]"'
REFUSED = "AuthenticationError"  # in what Ray's command prints
CONTROL = "control"  # the actor's second thread: it answers while the first one works


class ClusterUnreachable(BrollError):
    """The Ray cluster cannot be reached."""

    code = "cluster_unreachable"
    exit_status = 7


class InsecureCluster(BrollError):
    """The Ray cluster has no token authentication."""

    code = "insecure_cluster"
    exit_status = 7


# --- the cluster ------------------------------------------------------------------------------------------


def connect(address: str, *, trusted: bool = False) -> None:
    """Join the cluster whose head node listens at `address`; `trusted`: even one that asks for no token."""
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra(MISSING)
    _check_reachable(address)
    if not trusted:
        _check_token(os.environ)
        _check_closed(address)
    ray = _ray()
    try:
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
        why = _line(error)
        if not ray.is_initialized() and REFUSED in _status(address, os.environ)[1]:
            why = "it has another token"
        raise ClusterUnreachable(f"the Ray cluster at {address} cannot be joined: {why}") from error


def disconnect() -> None:
    _ray().shutdown()


def places(kind: Literal["gpu", "cpu"], per_job: int, cpus_per_job: int) -> int:
    """How many jobs the cluster can run at a time; a job with several GPUs has them on one node."""

    def fit(has: Mapping[str, float]) -> int:
        by_gpu = int(has.get("GPU", 0) // per_job) if kind == "gpu" else sys.maxsize
        by_cpu = int(has.get("CPU", 0) // cpus_per_job) if cpus_per_job else sys.maxsize
        return min(by_gpu, by_cpu)

    return sum(fit(node["Resources"]) for node in _ray().nodes() if node["Alive"])


def _ray() -> Any:
    """Imported by whoever uses it: it is large, and most have no cluster."""
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise MissingExtra(MISSING) from None


def _check_reachable(address: str) -> None:
    """Ray itself would try for 40 seconds."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise BadOption(f"a Ray cluster's address is host:port, like 10.0.0.1:6379; this is {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(f"no Ray head node answers at {address}: {error}") from None


def _check_token(environ: Mapping[str, str]) -> None:
    """Ray reads these too, but kills the process if the file is not there."""
    mode = environ.get("RAY_AUTH_MODE", "")
    if mode.lower() != "token":
        raise InsecureCluster(
            f"RAY_AUTH_MODE is {mode!r}; set RAY_AUTH_MODE=token here and on every node, with one token for all "
            "(ray get-auth-token --generate)"
        )
    if environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        token = path.read_text().strip()
    except (OSError, ValueError):
        token = ""
    if not token:
        raise InsecureCluster(f"there is no token in {path}; put the cluster's there, or set RAY_AUTH_TOKEN")


def _check_closed(address: str) -> None:
    """A cluster without authentication takes any token; so another process asks it with none."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    status, said = _status(address, environ | {"RAY_AUTH_MODE": "disabled"})
    if status == 0:
        raise InsecureCluster(
            f"the Ray cluster at {address} answers without a token; start every node with RAY_AUTH_MODE=token"
        )
    if REFUSED not in said:
        raise ClusterUnreachable(f"the Ray cluster at {address} does not answer: {_last_line(said)}")


def _status(address: str, environ: Mapping[str, str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(  # noqa: S603  our own command
            command, env=environ, timeout=PROBE_S, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"nothing was heard for {PROBE_S:.0f} s"
    return asked.returncode, asked.stdout


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """`ray.init` puts its own handler in place of the server's, which would drain."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if kept is not None:  # None: not from Python
            signal.signal(signal.SIGTERM, kept)


# --- on the node ------------------------------------------------------------------------------------------


class Flag(Protocol):
    """How the running work is told to stop."""

    soon: bool
    now: bool


class Renders(Protocol):
    def run(self, work: Work, flag: Flag) -> Iterator[Event]: ...


class Host:
    """What the actor is. `factory` is module:function; the function gives a renderer, and what makes a flag.

    `env` comes into the environment before that.

    A stop names its run by number, because the two arrive by different threads: one that is early waits for its
    run, and one that is late meets nobody.
    """

    _renderer: Renders
    _flag: Callable[[], Flag]

    def __init__(self, factory: str, env: Mapping[str, str]) -> None:
        os.environ.update(env)
        module, _, name = factory.partition(":")
        self._renderer, self._flag = getattr(importlib.import_module(module), name)()
        self._flags: dict[int, Flag] = {}

    def here(self) -> int:
        return os.getpid()

    def run(self, number: int, work: Work) -> Iterator[Event]:
        self._flags = {n: flag for n, flag in self._flags.items() if n >= number}
        yield from self._renderer.run(work, self._flags.setdefault(number, self._flag()))

    def stop(self, number: int, now: bool) -> None:  # noqa: FBT001  Ray passes arguments by place
        flag = self._flags.setdefault(number, self._flag())
        flag.soon = True
        flag.now = flag.now or now


# --- at the dispatcher ------------------------------------------------------------------------------------


@dataclass
class Attempt:
    number: int
    asked: bool = False  # to stop
    over: threading.Event = field(default_factory=threading.Event)


class RayExecutor:
    """One place on the cluster: `gpus` of one node, and `cpus` of the same."""

    def __init__(
        self, factory: str, *, gpus: int = 0, cpus: float = 1, start_s: float = 120.0,
        env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._factory, self._gpus, self._cpus, self._start_s = factory, gpus, cpus, start_s
        self._env = dict(env or {})
        self._actor: Any = None
        self._first: Any = None  # the actor's first answer, once it has started
        self._held = False  # that answer has come
        self._group: Any = None  # keeps several devices together while the actor is replaced
        self._attempt = Attempt(0)
        self._changing = threading.RLock()  # the actor

    def run(self, work: Work) -> Iterator[Event]:
        self._attempt = Attempt(self._attempt.number + 1)  # now, so that a stop before the first event counts
        return self._events(self._attempt, work)

    def stop(self, *, now: bool) -> None:
        attempt, actor = self._attempt, self._actor
        attempt.asked = True
        if actor is None or attempt.over.is_set():
            return
        with contextlib.suppress(_ray().exceptions.RayError):
            actor.stop.options(concurrency_group=CONTROL).remote(attempt.number, now)
        if now:
            threading.Thread(target=_enforce, args=(actor, attempt.over), daemon=True).start()

    def ready(self, models: tuple[str, ...]) -> tuple[str, ...]:
        return models if self._ready() else ()

    def _ready(self) -> bool:
        """Whether a device is held. Asks for one if not, and for another if it was lost while nothing ran."""
        with self._changing:
            if self._held and not self._answers():
                self._drop()
            if self._actor is None:
                self._create()
            self._held = bool(_ray().wait([self._first], timeout=0)[0])
            return self._held

    def close(self) -> None:
        self._attempt.asked = True
        with self._changing:
            self._drop()
            group, self._group = self._group, None
            if group is not None:
                _ray().util.remove_placement_group(group)

    # --- one run ------------------------------------------------------------------------------------------

    def _events(self, attempt: Attempt, work: Work) -> Iterator[Event]:
        ray = _ray()
        ended = False
        try:
            actor = self._started(attempt)
            if actor is None:
                ended = True
                yield Stopped()
                return
            for told in actor.run.options(num_returns="streaming").remote(attempt.number, work):
                event = ray.get(told)
                ended = isinstance(event, FINAL)
                yield event
                if ended:
                    return
            raise ExecutorDied("the actor came to an end without a last word")
        except ray.exceptions.RayError as error:
            raise ExecutorDied(_line(error)) from error
        finally:
            attempt.over.set()
            if not ended:  # nobody listens any more, so nothing may go on
                self._drop()

    def _started(self, attempt: Attempt) -> Any:
        """The actor, once there is a device; None if asked to stop meanwhile."""
        until = time.monotonic() + self._start_s
        while not attempt.asked:
            if self._ready():
                with self._changing:
                    actor, first = self._actor, self._first
                if actor is not None:
                    _ray().get(first)  # raises why it could not start
                    return None if attempt.asked else actor
            if time.monotonic() > until:
                wanted = f"{self._gpus} GPUs and " * bool(self._gpus) + f"{self._cpus:g} CPUs"
                raise ExecutorDied(f"no node of the cluster had {wanted} free within {self._start_s:.0f} s")
            time.sleep(POLL_S)
        return None

    # --- the actor ----------------------------------------------------------------------------------------

    def _create(self) -> None:
        ray = _ray()
        made = ray.remote(
            num_gpus=self._gpus, num_cpus=self._cpus, max_restarts=0, max_task_retries=0,
            concurrency_groups={CONTROL: 1}, scheduling_strategy=self._strategy(),
        )  # fmt: skip
        self._actor = made(Host).remote(self._factory, self._env)
        self._first = self._actor.here.options(concurrency_group=CONTROL).remote()

    def _strategy(self) -> Any:
        if self._gpus < 2:
            return "DEFAULT"
        util = _ray().util
        if self._group is None:
            self._group = util.placement_group([{"GPU": self._gpus, "CPU": self._cpus}], "STRICT_PACK")
        return util.scheduling_strategies.PlacementGroupSchedulingStrategy(self._group)

    def _answers(self) -> bool:
        ray = _ray()
        try:
            ray.get(self._actor.here.options(concurrency_group=CONTROL).remote(), timeout=ANSWER_S)
        except ray.exceptions.RayError:
            return False
        return True

    def _drop(self) -> None:
        with self._changing:
            actor, self._actor, self._first, self._held = self._actor, None, None, False
        if actor is not None:
            _kill(actor)


def _enforce(actor: Any, over: threading.Event) -> None:
    if not over.wait(KILL_S):
        _kill(actor)


def _kill(actor: Any) -> None:
    ray = _ray()
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(actor, no_restart=True)


def _line(error: BaseException) -> str:
    """Ray's errors run over many lines; the reason is in the last one, before much advice."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return f"the actor failed: {type(cause).__name__}: {_last_line(str(cause))}"
    line = _last_line(str(error)) or type(error).__name__
    return line.partition(". ")[0] if line.startswith("The actor") else line


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
