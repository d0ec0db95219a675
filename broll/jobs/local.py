"""A child process per device. It keeps its model warm, and can be killed without harm to anybody else.

    dispatcher  ── Work, Stop (stdin) ──▶  child
                ◀── events (stdout) ───

Asked to stop now, it gets 2 seconds, then SIGTERM, and SIGKILL after 5. When its stdin ends, because the
dispatcher died, the child ends itself. Passing files of a child that was killed are cleared away (scratch.py).
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from broll import scratch
from broll.events import FINAL, Event, Message, Stop, Work, pack, unpack
from broll.jobs.executor import ExecutorDied

TERM_S, KILL_S = 2.0, 5.0


@dataclass
class Attempt:
    """One run: whether its Work has been sent, what stop was asked for, whether it is over."""

    sent: bool = False
    asked: bool | None = None  # True: now
    over: threading.Event = field(default_factory=threading.Event)


class LocalExecutor:
    """`command` starts a child that speaks `broll.events` over its standard streams."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._command, self._env = list(command), dict(os.environ if env is None else env)
        self._child: subprocess.Popen[bytes] | None = None
        self._events: Iterator[Event] = iter(())
        self._sending = threading.Lock()
        self._attempt = Attempt()
        self._attempt.over.set()

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def ready(self) -> bool:
        return True

    def run(self, work: Work) -> Iterator[Event]:
        self._attempt = Attempt()  # now, so that a stop before the first event counts
        return self._run(self._attempt, work)

    def _run(self, attempt: Attempt, work: Work) -> Iterator[Event]:
        try:
            self._start()
            self._send(work, attempt.over)
            attempt.sent = True
            if attempt.asked is not None:
                self._send(Stop(now=attempt.asked), attempt.over)
            for event in self._events:
                yield event
                if isinstance(event, FINAL):
                    return
            raise ExecutorDied(f"the child process ended {self._how_it_ended()}")
        finally:
            attempt.over.set()

    def stop(self, *, now: bool) -> None:
        attempt, child = self._attempt, self._child
        if attempt.over.is_set():
            return
        attempt.asked = now or bool(attempt.asked)
        if attempt.sent:
            # by a thread: the pipe to a child that is frozen may be full, and a heartbeat cannot wait
            threading.Thread(target=self._ask, args=(Stop(now=now), attempt.over), daemon=True).start()
        if now and child is not None:
            threading.Thread(target=_enforce, args=(child, attempt.over), daemon=True).start()

    def kill(self) -> None:
        if self._child is not None:
            _signal(self._child, signal.SIGKILL)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(TERM_S)
        except subprocess.TimeoutExpired:
            _signal(child, signal.SIGKILL)
            child.wait()
        child.stdout.close()
        scratch.clear(child.pid)

    def _start(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        self.close()
        self._child = subprocess.Popen(  # noqa: S603  our own command
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._env,
            start_new_session=True,
        )
        assert self._child.stdout is not None
        self._events = unpack(self._child.stdout)  # type: ignore[arg-type]

    def _ask(self, stop: Stop, over: threading.Event) -> None:
        with contextlib.suppress(ExecutorDied):
            self._send(stop, over)

    def _send(self, message: Message, over: threading.Event) -> None:
        """Unless the work that it is about has ended meanwhile."""
        child = self._child
        try:
            assert child is not None
            assert child.stdin is not None
            with self._sending:
                if over.is_set():
                    return
                child.stdin.write(pack(message))
                child.stdin.flush()
        except (OSError, ValueError):
            raise ExecutorDied(f"the child process ended {self._how_it_ended()}") from None

    def _how_it_ended(self) -> str:
        child = self._child
        status = None if child is None else child.wait(KILL_S)
        if status is not None and status < 0:
            return f"by {signal.Signals(-status).name}"
        return f"with status {status}"


def _enforce(child: "subprocess.Popen[bytes]", over: threading.Event) -> None:
    for wait_s, number in ((TERM_S, signal.SIGTERM), (KILL_S - TERM_S, signal.SIGKILL)):
        if over.wait(wait_s):
            return
        _signal(child, number)


def _signal(child: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """To the child and whatever it started; SIGKILL also ends one that is stopped."""
    with contextlib.suppress(OSError):
        os.killpg(child.pid, number)
