"""What runs a job: one device, one job at a time, or one of several that run there together.

Two of them: `local` (a killable child process on this machine) and `ray` (an actor on a Ray cluster).
"""

from collections.abc import Iterator
from typing import Protocol

from broll.errors import BrollError
from broll.events import Event, Work


class ExecutorDied(BrollError):
    """The process that ran the job is gone."""

    code = "executor_died"
    exit_status = 7


class Executor(Protocol):
    def run(self, work: Work) -> Iterator[Event]:
        """What happens, until one of Clip, Stopped, Failed; ExecutorDied if it cannot say."""

    def ready(self, models: tuple[str, ...]) -> tuple[str, ...]:
        """Those of which it can run a job now; none where it has no device, and asks for one."""

    def stop(self, *, now: bool) -> None:
        """From another thread: end the running work, between two blocks or at the next step.

        `now` takes effect within a second, and is enforced by killing if it does not.
        """

    def close(self) -> None:
        """Let the device go."""
