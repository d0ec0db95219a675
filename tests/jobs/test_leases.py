"""Claims, leases and what ends a job, on both databases."""

import json
import threading

import pytest
import sqlalchemy as sa

from broll.errors import Conflict, KeyInFlight, KeyReused, LeaseLost, NoCredits, NotFound, TooMany
from broll.jobs import credits, keys
from broll.jobs.job import NewJob, Policy
from broll.jobs.leases import Device, Leases
from broll.jobs.states import NEXT, State, check_move
from broll.jobs.store import Store
from broll.jobs.tables import jobs

DEVICE = Device("gpu-0", ("nano", "wan"), 10_000)
POLICY = Policy(lease_s=1.0, backoff_s=0.0)


@pytest.fixture
def store(database):
    return Store(database, POLICY)


@pytest.fixture
def leases(database):
    return Leases(database, POLICY)


@pytest.fixture
def tenant(database):
    with database.write() as c:
        return keys.create_tenant(c, "studio", credits=1000)


def new(tenant, **fields):
    values = {"key_id": None, "spec": json.dumps({"prompt": "a lake"}), "model": "nano", "memory_mb": 100}
    return NewJob(tenant_id=tenant, **values | {"credits": 10} | fields)


def balance(database, tenant):
    with database.read() as c:
        assert credits.drift(c) == 0
        found = credits.balance(c, tenant)
        return found.available, found.held


def test_a_job_is_claimed_once_and_completed_once(database, store, leases, tenant):
    job = store.submit(new(tenant))
    assert balance(database, tenant) == (990, 10)
    lease = leases.claim(DEVICE)
    assert lease.job.id == job.id
    assert leases.claim(DEVICE) is None
    leases.stage(lease.token, "denoise")
    leases.write(lease.token, percent=50.0)
    done = leases.complete(lease.token, {"video": {}}, resumed_elsewhere=False)
    assert (done.state, done.charged, done.percent) == (State.COMPLETED, 10, 100.0)
    with pytest.raises(LeaseLost):
        leases.complete(lease.token, {}, resumed_elsewhere=False)
    assert balance(database, tenant) == (990, 0)
    kinds = [event["type"] for event in store.events(job.id)]
    assert kinds == ["video.queued", "video.running", "stage", "video.completed"]


def test_a_lost_lease_writes_nothing_and_the_job_goes_on_elsewhere(database, store, leases, tenant):
    job = store.submit(new(tenant))
    old = leases.claim(DEVICE)
    with database.write() as c:
        c.execute(sa.update(jobs).values(lease_until=0))
    assert leases.reap() == 1
    again = leases.claim(Device("gpu-1", ("nano",), 10_000))
    assert again.job.id == job.id
    assert again.job.attempt == 2
    assert leases.beat([old.token, again.token]).keys() == {again.token}
    for write in (
        lambda: leases.write(old.token, percent=1.0),
        lambda: leases.stage(old.token, "decode"),
        lambda: leases.fail(old.token, "x", "y"),
        lambda: leases.hand_back(old.token, "drain"),
    ):
        with pytest.raises(LeaseLost):
            write()


def test_a_poison_job_ends_failed_and_costs_nothing(database, store, leases, tenant):
    job = store.submit(new(tenant))
    for _ in range(POLICY.max_attempts):
        leases.retry(leases.claim(DEVICE).token, "executor_died", "killed")
    failed = store.get(tenant, job.id)
    assert (failed.state, failed.error_code, failed.charged) == (State.FAILED, "max_attempts", 0)
    assert "killed" in failed.error
    assert balance(database, tenant) == (1000, 0)


def test_drains_and_preemptions_are_not_held_against_a_job(store, leases, tenant):
    job = store.submit(new(tenant))
    for _ in range(POLICY.max_attempts + 2):
        leases.hand_back(leases.claim(DEVICE).token, "drain")
    assert store.get(tenant, job.id).failures == 0


def test_a_retry_waits_longer_each_time(database, store, tenant):
    slow = Leases(database, Policy(backoff_s=100.0))
    job = store.submit(new(tenant))
    slow.retry(slow.claim(DEVICE).token, "storage_error", "no space")
    assert slow.claim(DEVICE) is None
    waits = store.get(tenant, job.id)
    assert 90 < waits.not_before - waits.created_at < 110


def test_cancelling_a_waiting_job_is_free_and_a_running_one_costs_its_share(database, store, leases, tenant):
    first, second = store.submit(new(tenant)), store.submit(new(tenant))
    lease = leases.claim(DEVICE)
    assert lease.job.id == first.id
    assert store.cancel(tenant, second.id).charged == 0
    leases.write(lease.token, percent=40.0)
    assert store.cancel(tenant, first.id).state is State.RUNNING
    assert leases.beat([lease.token])[lease.token].cancel
    ended = leases.cancelled(lease.token)
    assert (ended.state, ended.charged) == (State.CANCELLED, 4)
    assert balance(database, tenant) == (996, 0)
    assert store.cancel(tenant, first.id).charged == 4


def test_priority_comes_first_then_the_smallest_running_share_then_age(database, store, leases, tenant):
    with database.write() as c:
        other = keys.create_tenant(c, "other", credits=1000)
    mine = [store.submit(new(tenant)) for _ in range(3)]
    theirs = store.submit(new(other))
    urgent = store.submit(new(tenant, priority=2))
    order = [leases.claim(DEVICE).job.id for _ in range(5)]
    assert order == [urgent.id, theirs.id, mine[0].id, mine[1].id, mine[2].id]


def test_a_device_takes_only_what_fits_and_prefers_the_loaded_model_for_a_while(
    database, store, leases, tenant
):
    large = store.submit(new(tenant, memory_mb=20_000))
    other = store.submit(new(tenant, model="wan"))
    loaded = store.submit(new(tenant))
    unknown = store.submit(new(tenant, model="missing"))
    warm = Device("gpu-0", ("nano", "wan"), 10_000, warm="nano")
    assert leases.claim(warm).job.id == loaded.id
    assert leases.claim(warm).job.id == other.id
    assert leases.claim(warm) is None
    assert store.get(tenant, large.id).state is store.get(tenant, unknown.id).state is State.QUEUED
    old, new_one = store.submit(new(tenant, model="wan")), store.submit(new(tenant))
    impatient = Leases(database, Policy(warm_age_s=-1.0))
    assert impatient.claim(warm).job.id == old.id
    assert impatient.claim(warm).job.id == new_one.id


def test_a_tenants_running_jobs_are_capped_and_so_are_waiting_ones(database, store, leases, tenant):
    with database.write() as c:
        keys.change_tenant(c, tenant, max_running=1, max_queued=2)
    store.submit(new(tenant))
    store.submit(new(tenant))
    with pytest.raises(TooMany, match="2 of your jobs"):
        store.submit(new(tenant))
    assert balance(database, tenant) == (980, 20)
    assert leases.claim(DEVICE) is not None
    assert leases.claim(DEVICE) is None


def test_one_urgent_job_preempts_one_less_urgent(store, leases, tenant):
    store.submit(new(tenant, priority=1))
    store.submit(new(tenant, priority=0))
    normal, low = leases.claim(DEVICE), leases.claim(Device("gpu-1", ("nano",), 10_000))
    both = [DEVICE, Device("gpu-1", ("nano",), 10_000)]
    tokens = [normal.token, low.token]
    assert not any(beat.preempt for beat in leases.beat(tokens, both).values())
    urgent = store.submit(new(tenant, priority=2))
    beats = leases.beat(tokens, both)
    assert beats[low.token].preempt
    assert not beats[normal.token].preempt
    leases.hand_back(low.token, "preempt")
    assert leases.claim(both[1]).job.id == urgent.id


def test_without_credits_nothing_is_left_behind(database, store, tenant):
    with pytest.raises(NoCredits, match="costs 1001 credits and 1000 are left"):
        store.submit(new(tenant, credits=1001))
    assert store.list(tenant) == ([], False)
    assert balance(database, tenant) == (1000, 0)


def test_two_dispatchers_never_get_the_same_job(database, store, tenant):
    for _ in range(40):
        store.submit(new(tenant, credits=0))
    taken, gate = [], threading.Barrier(4)

    def claim(name):
        own = Leases(database, POLICY)
        gate.wait()
        while (lease := own.claim(Device(name, ("nano",), 10_000))) is not None:
            taken.append(lease.job.id)

    threads = [threading.Thread(target=claim, args=(f"gpu-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 40


def test_fifty_requests_with_one_key_make_one_job(database, store, tenant):
    made, refused, gate = [], [], threading.Barrier(10)

    def submit():
        gate.wait()
        for _ in range(5):
            try:
                job = store.begin_key(tenant, "POST /x", "k1", "f")
                made.append((job or store.submit(new(tenant), key=("POST /x", "k1"))).id)
            except KeyInFlight:
                refused.append(1)

    threads = [threading.Thread(target=submit) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert len(made) + len(refused) == 50
    assert balance(database, tenant) == (990, 10)


def test_a_key_with_other_parameters_is_refused_and_one_of_a_dead_request_is_taken_over(database, tenant):
    store = Store(database, Policy(flight_s=0.0))
    assert store.begin_key(tenant, "POST /x", "k", "one") is None
    with pytest.raises(KeyReused):
        store.begin_key(tenant, "POST /x", "k", "two")
    assert store.begin_key(tenant, "POST /x", "k", "one") is None
    job = store.submit(new(tenant), key=("POST /x", "k"))
    assert store.begin_key(tenant, "POST /x", "k", "one").id == job.id
    assert store.begin_key(tenant, "POST /y", "k", "two") is None
    store.drop_key(tenant, "POST /y", "k")
    assert store.begin_key(tenant, "POST /y", "k", "three") is None


def test_another_tenants_job_is_not_there(database, store, tenant):
    with database.write() as c:
        other = keys.create_tenant(c, "other", credits=1000)
    job = store.submit(new(tenant))
    for ask in (store.get, store.cancel, store.delete):
        with pytest.raises(NotFound):
            ask(other, job.id)
    assert store.list(other) == ([], False)


def test_pages_of_jobs_follow_one_another(store, tenant):
    made = [store.submit(new(tenant)).id for _ in range(5)]
    page, more = store.list(tenant, limit=2)
    assert ([job.id for job in page], more) == ([made[4], made[3]], True)
    rest, more = store.list(tenant, after=page[-1].id, limit=10)
    assert ([job.id for job in rest], more) == ([made[2], made[1], made[0]], False)
    up, _ = store.list(tenant, ascending=True, limit=1)
    assert up[0].id == made[0]


@pytest.mark.parametrize("now", State)
@pytest.mark.parametrize("to", State)
def test_the_table_says_which_moves_are_possible(now, to):
    if to in NEXT[now]:
        assert check_move(now, to) is to
    else:
        with pytest.raises(Conflict):
            check_move(now, to)
