"""Numbers for Prometheus. Those of one process are counted as it works; those of all are read from the database.

Labels are few on purpose: routes are templates, models are known ones, and no tenant is named.
"""

from collections.abc import Iterable, Iterator

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broll.jobs import credits, webhooks
from broll.jobs.database import Database, now
from broll.jobs.states import State
from broll.jobs.tables import attempts, devices, events, jobs

BUCKETS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Metrics:
    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "broll_http_requests", "Answered requests", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "broll_http_seconds", "Time to answer", ["route"], buckets=BUCKETS, registry=self.registry
        )
        self.registry.register(FromDatabase(database))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class FromDatabase(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is asked of the database when the registry is made

    def collect(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("broll_jobs", "Jobs by model and state", labels=["model", "state"])
        oldest = GaugeMetricFamily(
            "broll_queue_oldest_seconds", "Age of the oldest waiting job", labels=["model"]
        )
        ends = GaugeMetricFamily("broll_attempts", "Attempts by their outcome", labels=["outcome"])
        stages = GaugeMetricFamily(
            "broll_stage_seconds", "Mean time in a stage, last 1000 events", labels=["stage"]
        )
        with self._database.read() as c:
            for row in c.execute(
                sa.select(jobs.c.model, jobs.c.state, sa.func.count().label("n")).group_by(
                    jobs.c.model, jobs.c.state
                )
            ):
                depth.add_metric([row.model, row.state], row.n)
            waiting = sa.select(jobs.c.model, (now() - sa.func.min(jobs.c.created_at)).label("age"))
            for row in c.execute(waiting.where(jobs.c.state == State.QUEUED).group_by(jobs.c.model)):
                oldest.add_metric([row.model], row.age)
            outcome = sa.func.coalesce(attempts.c.outcome, "running")
            for row in c.execute(sa.select(outcome.label("o"), sa.func.count().label("n")).group_by(outcome)):
                ends.add_metric([row.o], row.n)
            for stage, seconds in stage_seconds(c).items():
                stages.add_metric([stage], seconds)
            alive = sa.select(sa.func.count()).select_from(devices).where(devices.c.seen_at > now() - 60)
            yield GaugeMetricFamily(
                "broll_devices", "Devices heard of in the last minute", c.execute(alive).scalar()
            )
            yield GaugeMetricFamily(
                "broll_ledger_drift", "Credits by which the books differ", credits.drift(c)
            )
            yield GaugeMetricFamily(
                "broll_webhook_lag_seconds", "Age of the oldest due delivery", webhooks.lag(c)
            )
        yield from (depth, oldest, ends, stages)


def stage_seconds(c: sa.Connection) -> dict[str, float]:
    """Mean seconds from a stage's beginning to the job's next event."""
    following = sa.func.lead(events.c.at).over(partition_by=events.c.job_id, order_by=events.c.id)
    recent = (
        sa.select(events.c.type, events.c.data, events.c.at, following.label("next"))
        .where(
            events.c.id > sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0) - 1000).scalar_subquery()
        )
        .subquery()
    )
    found: dict[str, list[float]] = {}
    for row in c.execute(sa.select(recent).where(recent.c.type == "stage", recent.c.next.is_not(None))):
        found.setdefault(row.data.split('"')[3], []).append(row.next - row.at)
    return {stage: sum(values) / len(values) for stage, values in found.items()}
