"""Any order of events: jobs walk at random beside a model in plain Python, on both databases.

What may never be seen is checked after every step: a credit that appears or disappears, a finished job that still
holds some, two ends of one job, two leases of one job, a move that the table of states does not have.
"""

import json
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broll.errors import Conflict, LeaseLost, NoCredits, NotFound, TooMany
from broll.jobs import credits, keys
from broll.jobs.job import NewJob, Policy
from broll.jobs.leases import Device, Leases
from broll.jobs.states import NEXT, TERMINAL, State
from broll.jobs.store import Store
from broll.jobs.tables import api_keys, attempts, entries, events, jobs
from tests.jobs.machines import PROFILES, Money, any_number, emptied

POLICY = Policy(lease_s=1000.0, backoff_s=1000.0, warm_age_s=10_000.0, max_attempts=3)
DEVICES = (
    Device("gpu-0", ("nano", "wan"), 1000, warm="wan"),
    Device("gpu-1", ("nano",), 1000),
    Device("gpu-2", ("nano", "wan"), 100),
)
ENDS = ("video.completed", "video.failed", "video.cancelled")
MAX_RUNNING, MAX_QUEUED = 2, 5
ACTS = ("retry", "hand_back", "complete", "stop_as_cancelled", "fail", "progress", "stage")
orders = st.fixed_dictionaries(
    {
        "who": st.integers(0, 1),
        "keyed": st.booleans(),
        "price": st.integers(0, 25),
        "priority": st.integers(0, 2),
        "model": st.sampled_from(["nano", "wan"]),
        "memory_mb": st.sampled_from([50, 500]),
    }
)


@pytest.mark.parametrize("profile", PROFILES)
def test_whatever_happens_to_jobs_each_ends_once_and_is_billed_once(database, profile):
    run_state_machine_as_test(lambda: Jobs(database), settings=profile)


@dataclass
class Known:
    """What the model holds of a job."""

    id: str
    seq: int
    tenant: str
    key: str | None
    price: int
    priority: int
    model: str
    memory_mb: int
    state: State = State.QUEUED
    token: str | None = None
    waits: bool = False  # for its backoff
    late: bool = False  # its lease is over
    cancel: bool = False
    failures: int = 0
    attempt: int = 0
    percent: float = 0.0
    charged: int | None = None
    code: str | None = None


class Jobs(RuleBasedStateMachine):
    """Clients, dispatchers and time, one at a time."""

    def __init__(self, database):
        super().__init__()
        emptied(database)
        self.database = database
        self.store, self.leases = Store(database, POLICY), Leases(database, POLICY)
        self.known: dict[str, Known] = {}
        self.gone: list[str] = []
        self.lost: list[str] = []  # tokens that count no more
        self.moves: dict[str, State] = {}  # where each job was last seen
        self.money, self.caps = {}, {}
        with database.write() as c:
            for name, given, cap in (("one", 200, None), ("two", 60, 40)):
                tenant = keys.create_tenant(
                    c, name, credits=given, max_running=MAX_RUNNING, max_queued=MAX_QUEUED
                )
                key, _ = keys.create_key(c, b"pepper", tenant, "key", cap=cap)
                self.money[tenant] = Money(given, spent={key: 0})
                self.caps[key] = cap

    # --- the model's side ---------------------------------------------------------------------------------

    def those(self, *states):
        return [job for job in self.known.values() if job.state in states]

    def pick(self, number, *states):
        found = self.those(*states)
        return found[number % len(found)] if found else None

    def ended(self, job, state, charge=0, code=None):
        job.state, job.token, job.charged, job.code = state, None, charge, code
        money = self.money[job.tenant]
        money.held -= job.price
        money.available += job.price - charge
        if job.key is not None:
            money.spent[job.key] -= job.price - charge

    def left(self, job):
        """The device no longer has it."""
        self.lost.append(job.token)
        job.token, job.late = None, False

    def failed_attempt(self, job, *, waits):
        job.failures += 1
        if job.cancel:
            self.ended(job, State.CANCELLED, code="cancelled")
        elif job.failures == POLICY.max_attempts:
            self.ended(job, State.FAILED, code="max_attempts")
        else:
            job.state, job.waits = State.QUEUED, waits

    def first_in_line(self, device):
        running = dict.fromkeys(self.money, 0)
        for job in self.those(State.RUNNING):
            running[job.tenant] += 1
        fit = [
            job
            for job in self.those(State.QUEUED)
            if not job.waits
            and job.model in device.models
            and job.memory_mb <= device.memory_mb
            and running[job.tenant] < MAX_RUNNING
        ]
        return min(
            fit, default=None, key=lambda j: (-j.priority, j.model != device.warm, running[j.tenant], j.seq)
        )

    # --- clients ------------------------------------------------------------------------------------------

    @initialize(wanted=st.lists(orders, min_size=4, max_size=8))
    def a_busy_morning(self, wanted):
        for order in wanted:
            self._submit(**order)
        for device in DEVICES:
            self.claim(device)

    @rule(order=orders)
    def submit(self, order):
        self._submit(**order)

    def _submit(self, who, keyed, price, priority, model, memory_mb):
        tenant, money = list(self.money.items())[who]
        key = next(iter(money.spent)) if keyed else None
        new = NewJob(tenant, key, json.dumps({"prompt": "x"}), model, memory_mb, price, priority)
        waiting = sum(job.tenant == tenant for job in self.those(State.QUEUED))
        capped = key is not None and self.caps[key] is not None and money.spent[key] + price > self.caps[key]
        if price and (price > money.available or capped):
            with pytest.raises(NoCredits):
                self.store.submit(new)
        elif waiting >= MAX_QUEUED:
            with pytest.raises(TooMany):
                self.store.submit(new)
        else:
            job = self.store.submit(new)
            self.known[job.id] = Known(job.id, job.seq, tenant, key, price, priority, model, memory_mb)
            money.available -= price
            money.held += price
            if key is not None:
                money.spent[key] += price

    @rule(number=any_number, what=st.sampled_from(["cancel", "delete", "spy"]))
    @precondition(lambda self: self.known)
    def a_client_asks(self, number, what):
        getattr(self, what)(list(self.known.values())[number % len(self.known)])

    def cancel(self, job):
        if job.state in (State.COMPLETED, State.FAILED):
            with pytest.raises(Conflict):
                self.store.cancel(job.tenant, job.id)
            return
        self.store.cancel(job.tenant, job.id)
        if job.state is State.QUEUED:
            self.ended(job, State.CANCELLED, code="cancelled")
        elif job.state is State.RUNNING:
            job.cancel = True

    def delete(self, job):
        if job.state not in TERMINAL:
            with pytest.raises(Conflict):
                self.store.delete(job.tenant, job.id)
            return
        self.store.delete(job.tenant, job.id)
        del self.known[job.id]
        self.gone.append(job.id)
        with pytest.raises(NotFound):
            self.store.get(job.tenant, job.id)

    def spy(self, job):
        other = next(tenant for tenant in self.money if tenant != job.tenant)
        for ask in (self.store.get, self.store.cancel, self.store.delete):
            with pytest.raises(NotFound):
                ask(other, job.id)

    # --- dispatchers --------------------------------------------------------------------------------------

    @rule(device=st.sampled_from(DEVICES))
    def claim(self, device):
        expected, lease = self.first_in_line(device), self.leases.claim(device)
        assert (lease and lease.job.id) == (expected and expected.id)
        if lease is not None:
            expected.state, expected.token, expected.late = State.RUNNING, lease.token, False
            expected.attempt += 1
            assert lease.job.attempt == expected.attempt

    @rule(number=any_number, act=st.integers(0, 6))
    def beat(self, number, act):
        """Leases that stand are kept; one that is lost is told so, and whatever it writes is refused."""
        running = {job.token: job for job in self.those(State.RUNNING)}
        beats = self.leases.beat([*running, *self.lost])
        assert {token: beat.cancel for token, beat in beats.items()} == {
            token: job.cancel for token, job in running.items()
        }
        for job in running.values():
            job.late = False
        if not self.lost:
            return
        token = self.lost[number % len(self.lost)]
        writes = (
            lambda: self.leases.write(token, percent=1.0, state=State.COMPLETED),
            lambda: self.leases.stage(token, "decode"),
            lambda: self.leases.complete(token, {}, resumed_elsewhere=False),
            lambda: self.leases.fail(token, "x", "y"),
            lambda: self.leases.retry(token, "x", "y"),
            lambda: self.leases.cancelled(token),
            lambda: self.leases.hand_back(token, "drain"),
        )
        with pytest.raises(LeaseLost):
            writes[act]()

    @rule(number=any_number, act=st.sampled_from(ACTS), percent=st.floats(0, 120))
    @precondition(lambda self: self.those(State.RUNNING))
    def a_device_works(self, number, act, percent):
        job = self.pick(number, State.RUNNING)
        token = job.token
        if act == "progress":
            self.leases.write(token, percent=percent)
            job.percent = percent
        elif act == "stage":
            self.leases.stage(token, "denoise")
        else:
            self.left(job)
            getattr(self, act)(job, token)

    def complete(self, job, token):
        self.leases.complete(token, {"video": {}}, resumed_elsewhere=False)
        self.ended(job, State.COMPLETED, charge=job.price)

    def fail(self, job, token):
        self.leases.fail(token, "bad_image", "no picture")
        self.ended(job, State.FAILED, code="bad_image")

    def retry(self, job, token):
        self.leases.retry(token, "executor_died", "killed")
        self.failed_attempt(job, waits=True)

    def stop_as_cancelled(self, job, token):
        self.leases.cancelled(token)
        self.ended(job, State.CANCELLED, self.used(job), "cancelled")

    def hand_back(self, job, token):
        self.leases.hand_back(token, "drain")
        if job.cancel:  # whoever cancelled it need not wait for the next device to hear of it
            self.ended(job, State.CANCELLED, self.used(job), "cancelled")
        else:
            job.state, job.waits = State.QUEUED, False

    def used(self, job):
        return int(job.price * (min(100.0, job.percent) / 100))

    # --- time ---------------------------------------------------------------------------------------------

    @rule(number=any_number, what=st.sampled_from(["reap", "wait", "freeze"]))
    def time_passes(self, number, what):
        getattr(self, what)(number)

    def freeze(self, number):
        job = self.pick(number, State.RUNNING)
        if job is not None:
            with self.database.write() as c:
                c.execute(sa.update(jobs).where(jobs.c.id == job.id).values(lease_until=0.0))
            job.late = True

    def reap(self, _number):
        late = [job for job in self.those(State.RUNNING) if job.late]
        assert self.leases.reap() == len(late)
        for job in late:
            self.left(job)
            self.failed_attempt(job, waits=False)

    def wait(self, _number):
        with self.database.write() as c:
            c.execute(sa.update(jobs).values(not_before=0.0))
        for job in self.known.values():
            job.waits = False

    # --- what must be true after each of these ------------------------------------------------------------

    @invariant()
    def the_books_agree(self):
        with self.database.read() as c:
            assert credits.drift(c) == 0
            for tenant, money in self.money.items():
                own = credits.balance(c, tenant)
                assert (own.available, own.held) == (money.available, money.held)
                assert own.available >= 0 and own.held >= 0
            spent = dict(c.execute(sa.select(api_keys.c.id, api_keys.c.spent)).all())
            assert spent == {key: n for money in self.money.values() for key, n in money.spent.items()}
            account = sa.func.sum(entries.c.amount).filter(entries.c.account.like("%:held"))
            held = dict(c.execute(sa.select(entries.c.job_id, account).group_by(entries.c.job_id)).all())
        for job in self.known.values():
            assert (held.get(job.id) or 0) == (0 if job.state in TERMINAL else job.price)
        assert not any(held.get(job_id) for job_id in self.gone)

    @invariant()
    def every_row_is_as_the_model_has_it(self):
        with self.database.read() as c:
            rows = c.execute(sa.select(jobs)).mappings().all()
        assert {row["id"] for row in rows} == self.known.keys()
        for row in rows:
            job = self.known[row["id"]]
            seen = {n: row[n] for n in ("state", "charged", "failures", "attempt", "error_code")}
            assert seen == {
                "state": job.state, "charged": job.charged, "failures": job.failures,
                "attempt": job.attempt, "error_code": job.code,
            }  # fmt: skip
            assert row["lease_token"] == job.token
            assert (row["lease_token"] is not None) == (row["state"] == State.RUNNING)
            assert (row["charged"] is not None) == (row["state"] in TERMINAL)
            assert 0 <= (row["charged"] or 0) <= row["credits"] == job.price
            self.moved(row["id"], State(row["state"]))
        tokens = [row["lease_token"] for row in rows if row["lease_token"]]
        assert len(tokens) == len(set(tokens))

    def moved(self, job_id, state):
        """No step makes more than one move of a job."""
        before = self.moves.get(job_id, State.QUEUED)
        assert state is before or state in NEXT[before]
        self.moves[job_id] = state

    @invariant()
    def every_end_is_told_once_and_every_attempt_too(self):
        with self.database.read() as c:
            told = c.execute(sa.select(events.c.job_id, events.c.type).where(events.c.type.in_(ENDS))).all()
            tried = c.execute(sa.select(attempts.c.job_id, attempts.c.ended_at)).all()
        assert sorted(map(tuple, told)) == sorted(
            (job.id, f"video.{job.state}") for job in self.those(*TERMINAL)
        )
        for job in self.known.values():
            own = [row.ended_at for row in tried if row.job_id == job.id]
            assert len(own) == job.attempt
            assert own.count(None) == (job.state is State.RUNNING)
