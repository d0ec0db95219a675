"""`broll serve` with BROLL_BATCH: small jobs of one shape run together, and die and go on together."""

import pytest
import sqlalchemy as sa

from broll.jobs.states import State
from broll.jobs.tables import attempts, devices
from tests import databases
from tests.faults.processes import until


@pytest.mark.parametrize("own", [databases.KINDS[0]], indirect=True)
def test_small_jobs_run_together_on_one_device_and_all_go_on_when_their_child_is_killed(own):
    (serve,) = own.crew.ensure(1, batch=3)
    until(serve.ready, "the dispatcher")
    ids = [own.submit(model="tiny", steps=400, seed=seed) for seed in range(3)]

    def together():
        found = [own.job(job_id) for job_id in ids]
        return all(job.state == State.RUNNING and job.stage == "denoise" for job in found) and found

    assert len({job.device for job in until(together, "three jobs at once")}) == 3
    for child in serve.children():
        child.kill()
    last = own.submit(
        model="tiny", steps=2, frames=5
    )  # of another shape: behind or before them, but not with them
    for job_id in (*ids, last):
        assert own.finished(job_id)[0].state == State.COMPLETED
    with own.database.read() as c:
        tried = dict(
            c.execute(sa.select(attempts.c.job_id, sa.func.count()).group_by(attempts.c.job_id)).all()
        )
        seen = c.execute(sa.select(devices.c.name)).scalars().all()
    assert [tried[job_id] for job_id in ids] == [2, 2, 2]
    assert len(seen) == 1  # forecasts count devices
