"""Waiting for a job's end, and being told of it."""

import asyncio
import json
import threading

import pytest

from broll.jobs import keys
from broll.jobs.job import NewJob, Policy
from broll.jobs.store import Store
from broll.server.watch import Watch

LONG_S = 60  # nobody waits so long: the test would be cut off


@pytest.fixture
def waiting(database):
    """A job that is waiting, and stays so."""
    with database.write() as c:
        tenant = keys.create_tenant(c, "studio", credits=100)
    spec = json.dumps({"prompt": "a lake"})
    return Store(database, Policy()).submit(
        NewJob(tenant_id=tenant, key_id=None, spec=spec, model="nano", memory_mb=100, credits=10)
    )


async def looked(watch):
    """A look that is underway has a connection, and its thread outlives the loop."""
    await asyncio.wait_for(watch._task, 30)


def test_who_waits_is_woken_by_word_of_mouth_from_another_thread(database, waiting):
    """The database says that the job goes on: only what is told can end the waiting."""
    watch = Watch(database, threading.Event())

    async def wait():
        two = [asyncio.create_task(watch.done(waiting.id, LONG_S)) for _ in range(2)]
        other = asyncio.create_task(watch.done("another", LONG_S))
        await asyncio.sleep(0)
        teller = threading.Thread(target=watch.tell, args=(waiting.id,))
        teller.start()
        await asyncio.wait_for(asyncio.gather(*two), 30)
        other.cancel()
        teller.join()
        await looked(watch)

    asyncio.run(wait())


def test_a_job_that_is_gone_or_done_ends_the_waiting_by_itself(database, waiting):
    watch = Watch(database, threading.Event())

    async def wait():
        await asyncio.wait_for(watch.done("no-such-job", LONG_S), 30)
        Store(database, Policy()).cancel(waiting.tenant_id, waiting.id)
        await asyncio.wait_for(watch.done(waiting.id, LONG_S), 30)
        await looked(watch)

    asyncio.run(wait())


def test_telling_when_nobody_waits_or_the_loop_is_closed_does_no_harm(database, waiting):
    watch = Watch(database, threading.Event())
    watch.tell(waiting.id)

    async def wait():
        await watch.done(waiting.id, 0.01)
        await looked(watch)

    asyncio.run(wait())
    watch.tell(waiting.id)
