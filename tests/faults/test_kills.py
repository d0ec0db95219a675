"""SIGKILL and SIGSTOP of dispatcher and executor in every stage: the job ends once, with the same bits.

That a snapshot was used is seen in the job's row: after the death in the middle of denoising, the next attempt's
first snapshot is of a later step than the last one before it.
"""

import signal
import sqlite3
import time
from contextlib import closing, suppress

import psutil
import pytest

from tests import databases
from tests.faults.processes import until
from tests.faults.site import LONG

STAGES = ("encode", "denoise", "decode", "finish", "deliver")
ESSENTIAL = ("dispatcher", "SIGKILL", "denoise")  # an executor is killed in tests/jobs/test_local.py, too
CASES = [
    pytest.param(
        kind, *case, id="-".join((kind, *case)),
        marks=() if case == ESSENTIAL and kind == databases.KINDS[0] else pytest.mark.slow,
    )
    for kind in databases.KINDS
    for case in ((w, n, s) for w in ("dispatcher", "executor") for n in ("SIGKILL", "SIGSTOP") for s in STAGES)
]  # fmt: skip
HUNG_S = 45.0  # an executor silent so long is killed; more than it takes to start one on a busy machine
TRIES = 5  # finish and deliver last a moment; a job that was faster is no try


@pytest.fixture(autouse=True)
def dispatchers(shared):
    """Two that live, at the beginning of each test."""
    for serve in shared.crew.ensure(2, stage_timeout_s=HUNG_S):
        until(serve.ready, "a dispatcher")


def strike(site, stage, victim, number):
    """Hit the process that runs a job in this stage: the job, and who was hit."""
    for _ in range(TRIES):
        job_id = site.submit(**LONG)
        site.catch(job_id, stage)
        device = site.job(job_id).device
        if device is not None and not site.job(job_id).done:
            serve = site.crew.holder(device)
            targets = [serve.process] if victim == "dispatcher" else serve.children()
            for target in targets:
                target.send_signal(number)
            if number == signal.SIGSTOP and victim == "dispatcher":
                let_go_of_the_lock(site, serve)
            if site.job(job_id).attempt == 1 and not site.job(job_id).done:
                return job_id, serve, targets
            serve.send(signal.SIGCONT)
            if victim == "dispatcher" and number == signal.SIGKILL:
                serve.process.wait(10)
                site.crew.start(stage_timeout_s=HUNG_S)
        site.finished(job_id)
        site.check_completed_once(job_id)
    raise AssertionError(f"{TRIES} jobs were faster than their {stage} could be hit")


def let_go_of_the_lock(site, serve):
    """Who is frozen inside a write holds SQLite's only lock, and all wait for it: a limit of SQLite, not of leases."""
    while site.database.is_sqlite:
        with closing(sqlite3.connect(site.database.url.database, timeout=1.0, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                serve.send(signal.SIGCONT)
                time.sleep(0.002)
                serve.send(signal.SIGSTOP)
            else:
                other.execute("ROLLBACK")
                return


@pytest.mark.parametrize(("shared", "victim", "name", "stage"), CASES, indirect=["shared"], scope="module")
def test_whoever_dies_or_freezes_the_job_ends_once_with_the_same_bits(shared, victim, name, stage):
    number = signal.Signals[name]
    job_id, serve, targets = strike(shared, stage, victim, number)
    before = shared.job(job_id).snapshot
    _, seen = shared.finished(job_id)
    job = shared.check_completed_once(job_id)
    outcomes = shared.outcomes(job_id)
    if victim == "executor" and stage in ("finish", "deliver") and outcomes == ["completed"]:
        return  # it had handed its clip over, and was needed no more
    assert len(outcomes) >= 2, "the death went unnoticed"
    cause = (
        "lease_lost" if victim == "dispatcher" else {"SIGKILL": "executor_died"}.get(name, "stage_timeout")
    )
    assert outcomes[0] == cause
    if before is not None and stage in ("denoise", "decode", "finish", "deliver"):
        again = [step for attempt, step in seen if attempt >= 2]
        assert all(step > before["step"] for step in again), (before["step"], seen)
        last = job.spec["steps"] - 1
        assert again or before["step"] >= last - 1, f"no step was seen after {before['step']}: {seen}"
    if number == signal.SIGSTOP and victim == "dispatcher":
        a_zombie_writes_nothing(shared, job_id, serve)
    elif victim == "executor":
        _, left = psutil.wait_procs(targets, timeout=10)
        assert not left, "the frozen executor still lives"
    shared.check_ledger()


def a_zombie_writes_nothing(site, job_id, serve):
    """It wakes up with a job that has long been somebody else's."""
    rows = site.rows(job_id)
    device = next(row for row in rows[1] if row[5] == "lease_lost")[2]
    latents = site.latents(site.job(job_id))
    asleep = site.seen_at(device)
    serve.send(signal.SIGCONT)
    until(lambda: site.seen_at(device) > asleep, "the zombie's heartbeat")
    time.sleep(2.0)
    assert site.rows(job_id) == rows
    assert site.latents(site.job(job_id)) == latents
    assert serve.alive


@pytest.mark.slow
def test_an_orphaned_executor_ends_itself(shared):
    job_id = shared.submit(**LONG)
    shared.catch(job_id, "denoise")
    serve = shared.holder(job_id)
    children = serve.children()
    assert children
    serve.kill()
    _, left = psutil.wait_procs(children, timeout=10)
    for child in left:
        with suppress(psutil.Error):
            child.kill()
    assert not left
    shared.finished(job_id)
    shared.check_completed_once(job_id)
