"""SIGKILL and SIGSTOP of the API: what it accepted is there, what it did not is not, and nothing twice."""

import random
import signal
import threading
import time

import httpx
import pytest

from broll.jobs.states import State
from tests.faults.processes import KEY, until
from tests.faults.site import LONG, SHORT

HEADERS = {"Authorization": f"Bearer {KEY}"}


def client(serve, key=KEY):
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=serve.url, headers=headers, timeout=30, trust_env=False)


def studio_key(site, serve):
    """A key of the site's own, metered tenant."""
    with client(serve) as admin:
        path = f"/v1/admin/tenants/{site.tenant}/api-keys"
        return admin.post(path, json={"name": "test"}).raise_for_status().json()["key"]


@pytest.mark.slow
def test_a_killed_api_has_taken_each_order_once_or_not_at_all(own):
    """A client repeats with its Idempotency-Key until it is answered, while the API is killed at random."""
    api = own.crew.start("api")
    key, dice, answered = studio_key(own, api), random.Random(4), {}
    for wave in range(4):
        wanted = [f"{wave}-{i}" for i in range(8)]
        threads = [threading.Thread(target=order, args=(api, key, name, answered)) for name in wanted]
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(0.0, 0.6))
        api.kill()
        for thread in threads:
            thread.join(60)
        api = own.crew.start("api")
        for name in wanted:  # what was not answered is asked again; what was, is replayed
            before = answered.get(name)
            order(api, key, name, answered)
            assert before in (None, answered[name])
    assert len(set(answered.values())) == 32
    found, _ = own.store.list(own.tenant, limit=100)
    assert {job.id for job in found} == set(answered.values())
    own.check_ledger()
    for job in found:
        own.store.cancel(own.tenant, job.id)


def order(api, key, name, answered):
    body = {"prompt": "a lake at sunset", "model": "tiny", "steps": 2, "seed": 1}
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        try:
            with client(api, key) as c:
                got = c.post("/v1/video/generate", json=body, headers={"Idempotency-Key": name})
        except httpx.TransportError:
            return
        if got.status_code == 202:
            answered[name] = got.json()["job_id"]
            return
        assert got.status_code in (409, 503), got.text
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_jobs_go_on_while_the_api_is_dead_or_frozen(own, name):
    api, _ = own.crew.start("api"), own.crew.start()
    key = studio_key(own, api)
    job_id = own.submit(**LONG)
    own.catch(job_id, "denoise")
    api.send(signal.Signals[name])
    own.finished(job_id)
    assert own.check_completed_once(job_id).attempt == 1
    if name == "SIGSTOP":
        api.send(signal.SIGCONT)
    else:
        api.process.wait(10)
        api = own.crew.start("api")
    with client(api, key) as c:
        shown = c.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        assert shown["status"] == "completed"
        assert httpx.get(shown["output_url"], trust_env=False).status_code == 200


@pytest.mark.slow
def test_a_killed_service_in_one_process_goes_on_from_the_snapshot_when_it_is_started_again(own):
    both = own.crew.start("all")
    job_id = own.submit(**LONG)
    own.catch(job_id, "denoise")
    both.kill()
    step = own.job(job_id).snapshot["step"]
    own.crew.start("all")
    _, seen = own.finished(job_id)
    own.check_completed_once(job_id)
    assert own.outcomes(job_id) == ["lease_lost", "completed"]
    assert all(after > step for attempt, after in seen if attempt == 2)
    short = own.submit(**SHORT)
    assert until(lambda: own.job(short).done, "the next job")
    assert own.job(short).state is State.COMPLETED
