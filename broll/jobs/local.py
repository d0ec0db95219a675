"""A child process per device. It keeps its model warm, and can be killed without harm to anybody else.

    dispatcher  ── Work, Stop (stdin) ──▶  child
                ◀── events (stdout) ───

Asked to stop now, it gets 2 seconds, then SIGTERM, and SIGKILL after 5. When its stdin ends, because the
dispatcher died, the child ends itself. Passing files of a child that was killed are cleared away (scratch.py).

A child may have several lanes, each with a job: jobs of one kind, which run together (engine/batching.py), or one.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from broll import scratch
from broll.events import FINAL, Event, Loaded, Message, Stop, Work, pack, unpack
from broll.jobs.executor import ExecutorDied

TERM_S, KILL_S = 2.0, 5.0
CLAIM_S = 1.0  # that a lane has to claim a job before another may


@dataclass
class Attempt:
    """One run: whether its Work has been sent, what stop was asked for, whether it is over."""

    sent: bool = False
    asked: bool | None = None  # True: now
    over: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class Started:
    """A process, and for each lane what it is told by and what it says."""

    process: "subprocess.Popen[bytes]"
    lanes: list[tuple[BinaryIO, BinaryIO]]
    events: list[Iterator[Event]] = field(init=False)

    def __post_init__(self) -> None:
        self.events = [unpack(source) for _, source in self.lanes]

    def how_it_ended(self) -> str:
        status = self.process.wait(KILL_S)
        return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"


class Child:
    """`command` starts a process that speaks `broll.events` over its standard streams, and over a socket for each
    further lane. Whoever finds it dead starts another; whoever closes it takes the jobs of the other lanes with it, and
    they go on from their snapshots.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None, lanes: int = 1) -> None:
        self._command, self._env = list(command), dict(os.environ if env is None else env)
        self._lanes, self._lock = lanes, threading.Lock()
        self._started: Started | None = None
        self._model = ""
        self._shared: dict[int, bool] = {}  # of the lanes with a job: whether others may be made with it
        self._claiming: tuple[int, float] | None = None  # a further lane, and until when

    def started(self) -> Started:
        with self._lock:
            if self._started is None or self._started.process.poll() is not None:
                self._end(self._started)
                self._started = self._start()
            return self._started

    def close(self, started: Started) -> None:
        with self._lock:
            self._end(started)
            if self._started is started:
                self._started = None

    def ready(self, lane: int, models: tuple[str, ...]) -> tuple[str, ...]:
        """The first lane is for anything; a further one for what may be made with a job that runs, one at a time."""
        with self._lock:
            others = [shared for other, shared in self._shared.items() if other != lane]
            if not all(others):
                return ()
            if lane == 0 and not others:
                return models
            now = time.monotonic()
            if not others or (self._claiming and self._claiming[0] != lane and now < self._claiming[1]):
                return ()
            self._claiming = lane, now + CLAIM_S
            return tuple(model for model in models if model == self._model)

    def begins(self, lane: int) -> None:
        with self._lock:
            self._shared[lane], self._claiming = False, None

    def loaded(self, lane: int, event: Loaded) -> None:
        with self._lock:
            self._shared[lane], self._model = event.shared, event.model

    def ends(self, lane: int) -> None:
        with self._lock:
            self._shared.pop(lane, None)

    def _start(self) -> Started:
        pairs = [socket.socketpair() for _ in range(self._lanes - 1)]
        theirs = [there.fileno() for _, there in pairs]
        process = subprocess.Popen(  # noqa: S603  our own command
            [*self._command, *map(str, theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._env,
            start_new_session=True,
            pass_fds=theirs,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        ends: list[tuple[BinaryIO, BinaryIO]] = [(process.stdin, process.stdout)]  # type: ignore[list-item]
        for here, there in pairs:
            there.close()
            ends.append((here.makefile("wb"), here.makefile("rb")))
            here.close()  # when both files are
        return Started(process, ends)

    def _end(self, started: Started | None) -> None:
        if started is None:
            return
        process = started.process
        for to, _ in started.lanes:
            with contextlib.suppress(OSError, ValueError):
                to.close()
        try:
            process.wait(TERM_S)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()
        for _, source in started.lanes:
            source.close()
        scratch.clear(process.pid)


class LocalExecutor:
    """A lane of a child."""

    def __init__(self, child: Child, lane: int = 0) -> None:
        self._child, self._lane = child, lane
        self._started: Started | None = None
        self._sending = threading.Lock()
        self._attempt = Attempt()
        self._attempt.over.set()

    @property
    def pid(self) -> int | None:
        return None if self._started is None else self._started.process.pid

    def ready(self, models: tuple[str, ...]) -> tuple[str, ...]:
        return self._child.ready(self._lane, models)

    def run(self, work: Work) -> Iterator[Event]:
        self._attempt = Attempt()  # now, so that a stop before the first event counts
        return self._run(self._attempt, work)

    def _run(self, attempt: Attempt, work: Work) -> Iterator[Event]:
        self._child.begins(self._lane)
        try:
            started = self._started = self._child.started()
            self._send(work, attempt.over)
            attempt.sent = True
            if attempt.asked is not None:
                self._send(Stop(now=attempt.asked), attempt.over)
            with contextlib.suppress(ValueError):  # of a file that another lane has closed
                for event in started.events[self._lane]:
                    if isinstance(event, Loaded):
                        self._child.loaded(self._lane, event)
                    yield event
                    if isinstance(event, FINAL):
                        return
            raise ExecutorDied(f"the child process ended {started.how_it_ended()}")
        finally:
            self._child.ends(self._lane)
            attempt.over.set()

    def stop(self, *, now: bool) -> None:
        attempt, started = self._attempt, self._started
        if attempt.over.is_set():
            return
        attempt.asked = now or bool(attempt.asked)
        if attempt.sent:
            # by a thread: the pipe to a child that is frozen may be full, and a heartbeat cannot wait
            threading.Thread(target=self._ask, args=(Stop(now=now), attempt.over), daemon=True).start()
        if now and started is not None:
            threading.Thread(target=_enforce, args=(started.process, attempt.over), daemon=True).start()

    def kill(self) -> None:
        if self._started is not None:
            _signal(self._started.process, signal.SIGKILL)

    def close(self) -> None:
        started, self._started = self._started, None
        if started is not None:
            self._child.close(started)

    def _ask(self, stop: Stop, over: threading.Event) -> None:
        with contextlib.suppress(ExecutorDied):
            self._send(stop, over)

    def _send(self, message: Message, over: threading.Event) -> None:
        """Unless the work that it is about has ended meanwhile."""
        started = self._started
        if started is None:
            raise ExecutorDied("the child process was closed")
        to = started.lanes[self._lane][0]
        try:
            with self._sending:
                if over.is_set():
                    return
                to.write(pack(message))
                to.flush()
        except (OSError, ValueError):
            raise ExecutorDied(f"the child process ended {started.how_it_ended()}") from None


def _enforce(child: "subprocess.Popen[bytes]", over: threading.Event) -> None:
    for wait_s, number in ((TERM_S, signal.SIGTERM), (KILL_S - TERM_S, signal.SIGKILL)):
        if over.wait(wait_s):
            return
        _signal(child, number)


def _signal(child: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """To the child and whatever it started; SIGKILL also ends one that is stopped."""
    with contextlib.suppress(OSError):
        os.killpg(child.pid, number)
