"""Many jobs, four dispatchers, random kills of dispatchers and executors: every job ends exactly once.

FAULT_JOBS lowers the number for a quick look, FAULT_SEED changes the chances.
"""

import json
import os
import random
import signal
import time
from contextlib import suppress

import psutil
import pytest
import sqlalchemy as sa

from broll import catalog
from broll.jobs.states import State
from broll.jobs.tables import attempts, entries, events, jobs
from tests.faults.processes import until
from tests.faults.site import PRICE, SHORT, undisturbed

pytestmark = pytest.mark.slow
JOBS = int(os.environ.get("FAULT_JOBS", "500"))
SEED = int(os.environ.get("FAULT_SEED", "1"))
SEEDS = 5  # clips that differ, so that the reference is cheap


def ended(site):
    with site.database.read() as c:
        count = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state.in_(("completed", "failed")))
        return c.execute(count).scalar_one()


def torment(site, count, dice, *, pause_s, timeout_s):
    """Kill a dispatcher or an executor every now and then, until all jobs have ended; how many of each."""
    kills = {"dispatcher": 0, "executor": 0}
    end = time.monotonic() + timeout_s
    while (done := ended(site)) < count:
        assert time.monotonic() < end, f"{done} of {count} jobs ended in {timeout_s} s; {kills}"
        time.sleep(dice.uniform(*pause_s))
        living = site.crew.ensure(4)
        victim = dice.choice(living)
        if dice.random() < 0.4:
            victim.kill()
            kills["dispatcher"] += 1
        else:
            for child in victim.children():
                with suppress(psutil.Error):
                    child.send_signal(signal.SIGKILL)
                    kills["executor"] += 1
        site.crew.ensure(4)
    return kills


def check_all(site, ids):
    """Every job completed, charged and told once; the ledger sums to zero; the bits are right."""
    found = [site.job(job_id) for job_id in ids]
    assert {job.state for job in found} == {State.COMPLETED}
    for job in found:
        assert (job.charged, job.resumed_elsewhere) == (PRICE, False)
        assert site.latents(job) == undisturbed(site.crew.models, json.dumps(job.spec))
    with site.database.read() as c:
        told = sa.select(events.c.job_id, sa.func.count()).where(events.c.type == "video.completed")
        assert dict(c.execute(told.group_by(events.c.job_id)).all()) == dict.fromkeys(ids, 1)
        won = sa.select(attempts.c.job_id, sa.func.count()).where(attempts.c.outcome == "completed")
        assert dict(c.execute(won.group_by(attempts.c.job_id)).all()) == dict.fromkeys(ids, 1)
        for kind, rows in (("hold", 2), ("capture", 2)):
            of = sa.select(entries.c.job_id, sa.func.count()).where(entries.c.kind == kind)
            of = of.where(entries.c.job_id.is_not(None)).group_by(entries.c.job_id)
            assert dict(c.execute(of).all()) == dict.fromkeys(ids, rows)
        voided = c.execute(sa.select(sa.func.count()).where(entries.c.kind == "void")).scalar_one()
        open_ = c.execute(sa.select(sa.func.count()).where(attempts.c.ended_at.is_(None))).scalar_one()
    assert (voided, open_) == (0, 0)
    site.check_ledger()


def test_every_job_ends_exactly_once_whatever_is_killed(own):
    dice = random.Random(SEED)
    ids = [own.submit(**SHORT, seed=i % SEEDS) for i in range(JOBS)]
    for serve in own.crew.ensure(4):
        until(serve.ready, "a dispatcher")
    began = time.monotonic()
    kills = torment(own, JOBS, dice, pause_s=(5.0, 30.0), timeout_s=60 + 30 * JOBS)
    check_all(own, ids)
    with own.database.read() as c:
        lost = c.execute(sa.select(sa.func.count()).where(attempts.c.outcome != "completed")).scalar_one()
    print(f"{JOBS} jobs in {time.monotonic() - began:.0f} s; killed {kills}; {lost} attempts were lost")
    assert sum(kills.values()) >= 1


def test_nano_survives_too(own):
    """The installed model, with its trained weights; short clips, each of which meets a death."""
    nano = catalog.embedded_nano()
    if nano is None:
        pytest.skip("broll-nano is not installed")
    dice = random.Random(SEED)
    ids = [own.submit(model="nano", frames=17, steps=8, seed=i) for i in range(3)]
    for serve in own.crew.ensure(2):
        until(serve.ready, "a dispatcher")
    for job_id in ids:
        until(lambda j=job_id: own.at(j, "denoise") or own.job(j).done, "a step", every_s=0.002)
        device = own.job(job_id).device
        serve = own.crew.holder(device)
        if dice.random() < 0.5:
            serve.kill()
        else:
            for child in serve.children():
                child.kill()
        own.crew.ensure(2)
    for job_id in ids:
        own.finished(job_id, timeout_s=900)
    check_all(own, ids)
    assert any(len(own.outcomes(job_id)) > 1 for job_id in ids)
