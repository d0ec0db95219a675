"""Disk full, storage gone and back, database gone and back: jobs end, and the service recovers by itself."""

import sqlite3
import subprocess
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import sqlalchemy as sa

from broll.jobs.states import State
from broll.jobs.tables import jobs
from tests.faults.processes import KEY, until
from tests.faults.site import LONG, ON_ONE, SHORT

HEADERS = {"Authorization": f"Bearer {KEY}"}


@contextmanager
def small_disk(folder, megabytes):
    """A file system of its own; only an administrator may make one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Write until nothing goes any more."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


@contextmanager
def away(folder):
    """The folder is not there, and nothing can be put in its place."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    try:
        yield
    finally:
        aside.rename(folder)


@contextmanager
def database_away(site):
    """PostgreSQL throws everybody out and lets nobody in; SQLite is locked by somebody else."""
    url = site.database.url
    if site.database.is_sqlite:
        with sqlite3.connect(url.database, isolation_level=None, timeout=30) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
            other.execute("ROLLBACK")
        other.close()
        return
    admin = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    site.database.engine.dispose()
    with admin.connect() as c:
        c.exec_driver_sql(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
        c.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                  {"name": url.database})  # fmt: skip
        try:
            yield
        finally:
            c.exec_driver_sql(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")
    admin.dispose()


def attempt_files(site, job_id):
    return [path for path in site.crew.artifacts.glob(f"jobs/{job_id}/*/*") if path.is_file()]


@pytest.mark.slow
def test_a_full_disk_fails_the_job_after_its_retries_and_the_next_one_works_once_there_is_room(own):
    with small_disk(own.crew.artifacts, 2):
        serve = own.crew.start(max_attempts=3)
        ballast = fill(own.crew.artifacts)
        job_id = own.submit(**SHORT)
        own.finished(job_id)
        job = own.check_failed_cleanly(job_id, "max_attempts")
        assert "no space left" in job.error
        assert own.outcomes(job_id) == ["storage_error"] * 3
        assert [path for path in attempt_files(own, job_id) if path.stat().st_size] == []
        ballast.unlink()
        again = own.submit(**SHORT)
        own.finished(again)
        own.check_completed_once(again)
        assert serve.alive
        serve.terminate()


@pytest.mark.slow
def test_a_job_waits_for_room_on_the_disk(own):
    with small_disk(own.crew.artifacts, 2):
        serve = own.crew.start()
        ballast = fill(own.crew.artifacts)
        job_id = own.submit(**SHORT)
        until(lambda: own.job(job_id).failures >= 2, "two attempts")
        ballast.unlink()
        own.finished(job_id)
        own.check_completed_once(job_id)
        assert set(own.outcomes(job_id)[:-1]) == {"storage_error"}
        serve.terminate()


@pytest.mark.slow
def test_artifacts_gone_in_the_middle_of_a_job_and_back(own):
    serve = own.crew.start()
    job_id = own.submit(**LONG)
    own.catch(job_id, "denoise")
    with away(own.crew.artifacts):
        until(lambda: own.job(job_id).failures >= 1, "a failed attempt")
        assert not own.crew.artifacts.exists(), "nothing is written where the storage is not"
        assert not own.job(job_id).done
    own.finished(job_id)
    own.check_completed_once(job_id)
    assert set(own.outcomes(job_id)[:-1]) == {"storage_error"}
    assert serve.alive


@pytest.mark.slow
def test_a_sweep_that_fails_stops_neither_heartbeats_nor_jobs_and_forgets_nothing(own):
    old = own.submit(**SHORT)
    with own.database.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == old).values(not_before=10**12))
    own.store.cancel(own.tenant, old)
    with own.database.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == old).values(expires_at=1.0))
    link = own.crew.artifacts / "jobs"
    (own.crew.folder / "elsewhere").mkdir()
    link.symlink_to(own.crew.folder / "elsewhere")  # refused by the storage: an error in the sweep
    serve = own.crew.start()
    time.sleep(3.0)
    link.unlink()
    assert own.job(old).state is State.CANCELLED
    job_id = own.submit(**LONG)
    own.catch(job_id, "denoise")
    device = own.job(job_id).device
    seen = until(lambda: own.seen_at(device), "a heartbeat", timeout_s=10)
    until(lambda: own.seen_at(device) > seen, "the next heartbeat", timeout_s=10)
    own.finished(job_id)
    assert own.check_completed_once(job_id).attempt == 1
    assert serve.alive


@pytest.mark.slow
def test_whoever_freezes_in_the_middle_of_a_write_does_not_hold_its_rows_for_long(own):
    if own.database.is_sqlite:
        pytest.skip("SQLite has one lock, and who is frozen with it keeps it")
    job_id = own.submit(**SHORT)
    row = sa.update(jobs).where(jobs.c.id == job_id)
    begin = time.monotonic()
    with pytest.raises(sa.exc.DBAPIError), own.database.write() as frozen:  # noqa: PT012  it is about time
        frozen.execute(row.values(percent=50.0))
        with own.database.write() as other:
            other.execute(row.values(percent=10.0))
        frozen.execute(row.values(percent=60.0))
    assert 5 < time.monotonic() - begin < 30
    assert own.job(job_id).percent == 10.0
    own.store.cancel(own.tenant, job_id)


@pytest.mark.parametrize("own", ON_ONE, indirect=True)
@pytest.mark.parametrize(
    "away_s", [pytest.param(4.0, id="briefly"), pytest.param(20.0, id="for long", marks=pytest.mark.slow)]
)
def test_the_database_gone_in_the_middle_of_a_job_and_back(own, away_s):
    serve = own.crew.start("all", max_seconds=10)
    answers, over = [], threading.Event()
    job_id = own.submit(**LONG)

    def poll():
        with httpx.Client(base_url=serve.url, headers=HEADERS, timeout=60, trust_env=False) as client:
            while not over.is_set():
                answers.append(client.get("/v1/jobs", params={"limit": 1}).status_code)
                time.sleep(0.2)

    poller = threading.Thread(target=poll)
    own.catch(job_id, "denoise")
    poller.start()
    try:
        with database_away(own):
            time.sleep(away_s)
        own.finished(job_id)
        own.check_completed_once(job_id)
        again = own.submit(**SHORT)
        own.finished(again)
        own.check_completed_once(again)
        until(lambda: answers and answers[-1] == 200, "a good answer", timeout_s=20)
    finally:
        over.set()
        poller.join(60)
    assert set(answers) <= {200, 503}, set(answers)
    assert serve.alive
