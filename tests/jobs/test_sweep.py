"""What has expired goes, and nothing else."""

import json

import pytest
import sqlalchemy as sa

from broll.errors import NotFound
from broll.jobs import keys
from broll.jobs.artifacts import Artifacts
from broll.jobs.dispatcher import picture_path
from broll.jobs.job import NewJob, Policy
from broll.jobs.leases import Device, Leases
from broll.jobs.store import Store
from broll.jobs.sweep import Sweeper
from broll.jobs.tables import idempotency, jobs, uploads

POLICY = Policy(retention_s=1000.0)


@pytest.fixture
def place(database, tmp_path):
    with database.write() as c:
        tenants = {
            "patient": keys.create_tenant(c, "patient", credits=100),
            "brief": keys.create_tenant(c, "brief", credits=100, retention_s=-1.0),
        }
    artifacts = Artifacts.open(str(tmp_path / "clips"))
    return Store(database, POLICY), artifacts, Sweeper(database, artifacts, POLICY), tenants


def finished(store, artifacts, tenant, spec=None):
    new = NewJob(tenant, None, json.dumps(spec or {"prompt": "x"}), "nano", 1, 1)
    job = store.submit(new)
    leases = Leases(store.database, POLICY)
    lease = leases.claim(Device("d", ("nano",), 10))
    artifacts.put(f"jobs/{job.id}/{lease.token}/video.mp4", b"clip")
    leases.complete(lease.token, {}, resumed_elsewhere=False)
    return job.id


def test_a_clip_goes_with_its_row_when_its_tenants_time_is_over(place):
    store, artifacts, sweeper, tenants = place
    kept = finished(store, artifacts, tenants["patient"])
    gone = finished(store, artifacts, tenants["brief"])
    waiting = store.submit(NewJob(tenants["brief"], None, "{}", "nano", 1, 1)).id
    assert sweeper.sweep() == 1
    assert artifacts.list_below(f"jobs/{kept}")
    assert not artifacts.list_below(f"jobs/{gone}")
    with pytest.raises(NotFound):
        store.get(None, gone)
    assert store.get(None, kept).done
    assert not store.get(None, waiting).done
    assert sweeper.sweep() == 0


def test_an_upload_stays_while_a_job_that_is_not_done_needs_its_picture(place):
    store, artifacts, sweeper, tenants = place
    tenant, digest = tenants["patient"], "a" * 64
    path = picture_path(tenant, digest)
    artifacts.put(path, b"png")
    row = {"tenant_id": tenant, "sha256": digest, "width": 1, "height": 1, "bytes": 3, "created_at": 0}
    with store.database.write() as c:
        c.execute(sa.insert(uploads).values(id="upl_1", **row, expires_at=1))
    spec = {"prompt": "x", "image": {"id": "a" * 16, "sha256": digest}}
    job = store.submit(NewJob(tenant, None, json.dumps(spec), "nano", 1, 1))
    sweeper.sweep()
    assert artifacts.exists(path)
    store.cancel(tenant, job.id)
    assert sweeper.sweep() == 1
    assert not artifacts.exists(path)


def test_two_uploads_of_one_picture_share_it_until_the_last_goes(place):
    store, artifacts, sweeper, tenants = place
    tenant, digest = tenants["patient"], "b" * 64
    artifacts.put(picture_path(tenant, digest), b"png")
    row = {"tenant_id": tenant, "sha256": digest, "width": 1, "height": 1, "bytes": 3, "created_at": 0}
    with store.database.write() as c:
        c.execute(sa.insert(uploads).values(id="upl_1", **row, expires_at=1))
        c.execute(sa.insert(uploads).values(id="upl_2", **row, expires_at=10**11))
    assert sweeper.sweep() == 1
    assert artifacts.exists(picture_path(tenant, digest))
    with store.database.write() as c:
        c.execute(sa.update(uploads).values(expires_at=1))
    assert sweeper.sweep() == 1
    assert not artifacts.exists(picture_path(tenant, digest))


def test_old_idempotency_keys_go(place):
    store, _, sweeper, tenants = place
    store.begin_key(tenants["patient"], "POST /x", "k", "f")
    with store.database.write() as c:
        c.execute(sa.update(idempotency).values(at=idempotency.c.at - POLICY.idempotency_s - 1))
    sweeper.sweep()
    with store.database.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(idempotency)).scalar_one() == 0
        assert c.execute(sa.select(sa.func.count()).select_from(jobs)).scalar_one() == 0
