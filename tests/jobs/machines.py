"""What the state machines of jobs and of the ledger share."""

from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from broll.jobs.tables import metadata

QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck)}
SHORT = settings(max_examples=10, stateful_step_count=30, **QUICK)
LONG = settings(max_examples=100, stateful_step_count=60, **QUICK)
PROFILES = [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.slow)]
any_number = st.integers(0, 10**6)


def emptied(database):
    with database.write() as c:
        for table in reversed(metadata.sorted_tables):
            c.execute(sa.delete(table))


@dataclass
class Money:
    available: int
    held: int = 0
    spent: dict[str, int] = field(default_factory=dict)  # by key
