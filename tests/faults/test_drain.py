"""Leaving in good order: SIGTERM under load, a device given up to a more urgent job, a cancel in mid-forward."""

import signal
import threading
import time

import httpx
import pytest

from broll.jobs.states import State
from tests.faults.processes import KEY, until
from tests.faults.site import ENDLESS, LONG, ON_ONE, SHORT

HEADERS = {"Authorization": f"Bearer {KEY}"}


class Poller(threading.Thread):
    """A client that looks at jobs all the time; what it was answered, until nobody answers any more."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.statuses, self.over = url, [], threading.Event()

    def run(self):
        with httpx.Client(base_url=self.url, headers=HEADERS, timeout=30, trust_env=False) as client:
            while not self.over.is_set():
                try:
                    self.statuses.append(client.get("/v1/jobs").status_code)
                    wait = {"Prefer": "wait=2"}
                    made = client.get("/v1/jobs", params={"limit": 1}).json()["data"]
                    for job in made:
                        self.statuses.append(
                            client.get(f"/v1/jobs/{job['job_id']}", headers=wait).status_code
                        )
                except httpx.TransportError:
                    return  # nobody listens any more
                time.sleep(0.02)


def post(url, **fields):
    with httpx.Client(base_url=url, headers=HEADERS, timeout=60, trust_env=False) as client:
        made = client.post("/v1/video/generate", json={"prompt": "a lake at sunset", "seed": 1} | fields)
        return made.raise_for_status().json()["job_id"]


@pytest.mark.parametrize("own", ON_ONE, indirect=True)
def test_sigterm_hands_the_running_job_back_and_the_next_process_ends_it(own):
    first = own.crew.start("all", max_seconds=10)
    running = post(first.url, model="slow", steps=40, frames=81)
    waiting = post(first.url, model="tiny", steps=2)
    own.catch(running, "denoise")
    pollers = [Poller(first.url) for _ in range(4)]
    for poller in pollers:
        poller.start()
    until(lambda: all(len(poller.statuses) > 0 for poller in pollers), "the pollers")
    children = first.children()
    first.terminate(timeout_s=40)
    for poller in pollers:
        poller.over.set()
        poller.join(40)
        assert set(poller.statuses) == {200}
    assert not any(child.is_running() for child in children)
    job = own.job(running)
    assert own.outcomes(running) == ["drain"]
    assert (job.state, job.failures) == (State.QUEUED, 0)
    step = job.snapshot["step"]
    own.crew.start("dispatcher")
    _, seen = own.finished(running)
    assert all(after > step for attempt, after in seen if attempt == 2)
    done = own.job(running)
    assert (done.state, done.attempt, done.failures) == (State.COMPLETED, 2, 0)
    assert own.outcomes(running) == ["drain", "completed"]
    assert own.finished(waiting)[0].state is State.COMPLETED


@pytest.mark.slow
def test_sigterm_of_a_dispatcher_hands_back_too(own):
    first = own.crew.start()
    job_id = own.submit(**LONG)
    own.catch(job_id, "denoise")
    assert first.terminate(timeout_s=40) == 0
    assert own.outcomes(job_id) == ["drain"]
    own.crew.start()
    own.finished(job_id)
    assert own.check_completed_once(job_id).failures == 0


@pytest.mark.slow
def test_an_urgent_job_takes_the_device_and_the_other_goes_on_from_its_snapshot(own):
    own.crew.start()
    low = own.submit(**LONG | {"steps": 30}, priority="low")
    own.catch(low, "denoise")
    high = own.submit(**SHORT, priority="high")
    until(lambda: own.outcomes(low)[:1] == ["preempt"], "the preemption")
    step = own.job(low).snapshot["step"]
    assert step < 29
    _, seen = own.finished(low)
    urgent, other = own.check_completed_once(high), own.check_completed_once(low)
    assert urgent.finished_at < other.finished_at
    assert own.outcomes(low) == ["preempt", "completed"]
    assert (other.failures, other.attempt) == (0, 2)
    again = [after for attempt, after in seen if attempt == 2]
    assert again
    assert min(again) > step


@pytest.mark.slow
def test_a_cancel_in_the_middle_of_a_long_forward_stops_the_child_and_does_not_kill_it(own):
    serve = own.crew.start()
    warm = own.submit(**LONG | {"steps": 1, "frames": 9})
    own.finished(warm)
    job_id = own.submit(**ENDLESS)
    own.catch(job_id, "encode")
    time.sleep(1.0)  # it is in its first forward, which takes many seconds
    assert own.job(job_id).snapshot is None
    children = serve.children()
    begin = time.monotonic()
    own.store.cancel(own.tenant, job_id)
    job, _ = own.finished(job_id)
    took = time.monotonic() - begin
    assert (job.state, job.charged) == (State.CANCELLED, 0)
    assert took < 2.5, f"{took:.1f} s"  # a heartbeat of 0.4 s, and a block on a busy machine
    assert [child.pid for child in serve.children()] == [child.pid for child in children]
    assert own.transfers(job_id) == {"hold": 2, "void": 2}
    next_id = own.submit(**SHORT)
    own.finished(next_id)
    own.check_completed_once(next_id)
    assert [child.pid for child in serve.children()] == [child.pid for child in children]


@pytest.mark.slow
def test_a_frozen_executor_that_reads_nothing_holds_up_neither_heartbeat_nor_drain(own):
    """Its order, larger than a pipe, is never read; the leases of the dispatcher's other device stand."""
    serve = own.crew.start(devices=2, stage_timeout_s=25)
    big = LONG | {"frames": 801}  # a snapshot of more than 64 kB
    job_id = own.submit(**big)
    own.catch(job_id, "denoise")
    assert (own.crew.artifacts / own.job(job_id).snapshot["path"]).stat().st_size > 65536
    for child in serve.children():
        child.kill()
    until(lambda: own.job(job_id).attempt == 2, "the second attempt")
    fresh = until(serve.children, "the new child")
    for child in fresh:
        child.send_signal(signal.SIGSTOP)
    device = own.job(job_id).device
    own.store.cancel(own.tenant, job_id)
    seen = own.seen_at(device)
    own.finished(job_id, timeout_s=15)
    until(lambda: own.seen_at(device) > seen + 1.0, "the heartbeat", timeout_s=15)
    assert own.job(job_id).state is State.CANCELLED
    other = own.submit(**SHORT)
    own.finished(other)
    own.check_completed_once(other)
    assert serve.terminate(timeout_s=40) == 0
