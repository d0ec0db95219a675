"""A job's life, as a table.

    queued ──claim──▶ running ──clip──▶ completed
      │  ▲               ├──error──▶ failed
      │  └──lease lost, drain, preemption, retryable error
      └──────cancel──────┴──────▶ cancelled

Terminal is final: a retry is a new job, with `retry_of` and a hold of its own.
"""

from enum import StrEnum

from broll.errors import Conflict


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


NEXT: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.FAILED}),
    State.RUNNING: frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.QUEUED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
TERMINAL = tuple(state for state, following in NEXT.items() if not following)


def check_move(now: State, to: State) -> State:
    if to not in NEXT[now]:
        raise Conflict(f"a {now} job cannot become {to}")
    return to
