"""A real Ray cluster of three nodes on this machine, tokens and all."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from broll.errors import BadOption
from broll.events import Clip, Event, Loaded, Progress, Snapshot, Stage, Stopped, Work
from broll.jobs import ray_cluster
from broll.jobs.executor import ExecutorDied
from broll.jobs.ray_cluster import ClusterUnreachable, InsecureCluster, RayExecutor
from tests.jobs.ray_nodes import AUTH, ROOT, Nodes, free_port, running
from tests.jobs.ray_renderer import FACTORY, STEP_S, STEPS

pytestmark = [
    pytest.mark.slow,
    # Not imported yet: Ray reads its environment when it is
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='pip install "broll[cluster]"'),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes, a and b, with one CPU and (so they say) two GPUs each, and this process joined to them."""
    with pytest.MonkeyPatch.context() as patch, running() as cluster:
        for name, value in AUTH.items():
            patch.setenv(name, value)
        cluster.add("a")
        cluster.add("b")
        ray_cluster.connect(cluster.address)
        try:
            wait_until(lambda: ray_cluster.places("cpu", 1, 1) == 2, 60)
            yield cluster
        finally:
            ray_cluster.disconnect()


@pytest.fixture
def executor(nodes: Nodes) -> Iterator[RayExecutor]:
    executor = RayExecutor(FACTORY)
    yield executor
    executor.close()


def work(model: str = "plain", snapshot: bytes | None = None) -> Work:
    return Work("job", model, "spec", {}, snapshot)


def wait_until(true, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


def finished(events: list[Event]) -> Clip:
    assert isinstance(events[-1], Clip), events[-1]
    return events[-1]


def node_and_pid(event: Event) -> tuple[str, int]:
    assert isinstance(event, Loaded)
    name, pid = event.model.split(":")
    return name, int(pid)


def test_events_come_in_order_and_the_second_run_finds_the_actor_warm(executor):
    first, second = list(executor.run(work())), list(executor.run(work()))
    assert [type(event) for event in first[:2]] == [Loaded, Stage]
    assert [event.done for event in first if isinstance(event, Progress)] == list(range(1, STEPS + 1))
    assert sum(isinstance(event, Clip) for event in first) == 1
    assert finished(first) == finished(second)
    assert len(finished(first).files["video"]) == 640_000  # too large to travel inline
    assert node_and_pid(first[0]) == node_and_pid(second[0])
    assert [first[0].seconds, second[0].seconds] == [1.0, 2.0]


def test_events_arrive_while_the_work_goes_on(executor):
    begin = time.monotonic()
    seen = [time.monotonic() - begin for event in executor.run(work()) if isinstance(event, Progress)]
    assert seen[-1] - seen[0] > STEP_S * (STEPS - 2)


def test_stop_now_ends_the_work_within_a_second(executor):
    events = executor.run(work())
    while not isinstance(next(events), Progress):
        pass
    asked = time.monotonic()
    executor.stop(now=True)
    rest = list(events)
    assert time.monotonic() - asked < 1.0
    assert rest[-1] == Stopped()
    assert finished(list(executor.run(work())))  # the actor is as good as before


def test_stop_soon_ends_the_work_with_a_snapshot_from_which_it_goes_on(executor):
    whole = finished(list(executor.run(work())))
    seen = []
    for event in executor.run(work()):
        seen.append(event)
        if isinstance(event, Progress) and event.done == 4:
            executor.stop(now=False)
    snapshot = seen[-2]
    assert isinstance(snapshot, Snapshot) and seen[-1] == Stopped()
    assert 4 <= snapshot.step < STEPS
    rest = list(executor.run(work(snapshot=snapshot.data)))
    assert finished(rest) == whole
    assert sum(isinstance(event, Progress) for event in rest) == STEPS - snapshot.step


def test_a_stop_before_the_first_event_counts(executor):
    events = executor.run(work())
    executor.stop(now=True)
    assert list(events) == [Stopped()]


def test_a_stop_after_the_end_does_not_hit_the_next_run(executor):
    list(executor.run(work()))
    executor.stop(now=True)
    assert finished(list(executor.run(work())))


def test_whoever_does_not_stop_is_killed_and_the_next_run_has_a_new_actor(executor):
    events = executor.run(work("deaf", snapshot=b'[-1000, ""]'))
    first = node_and_pid(next(events))
    asked = time.monotonic()
    executor.stop(now=True)
    with pytest.raises(ExecutorDied):
        list(events)
    assert 4 < time.monotonic() - asked < 8
    wait_until(lambda: not psutil.pid_exists(first[1]), 10)
    assert node_and_pid(next(executor.run(work())))[1] != first[1]


def test_an_actor_that_stands_still_is_killed_too(executor):
    events = executor.run(work())
    pid = node_and_pid(next(events))[1]
    os.kill(pid, signal.SIGSTOP)
    executor.stop(now=True)
    with pytest.raises(ExecutorDied):
        list(events)
    wait_until(lambda: not psutil.pid_exists(pid), 30)


def test_a_failing_renderer_is_told_of_in_one_line(executor):
    with pytest.raises(ExecutorDied) as error:
        list(executor.run(work("raises")))
    assert str(error.value) == "the actor failed: ValueError: of which this is the last"


def test_a_dead_process_is_told_of_in_one_line(executor):
    with pytest.raises(ExecutorDied) as error:
        list(executor.run(work("dies")))
    assert str(error.value) == "The actor is dead because its worker process has died"


def test_an_actor_that_cannot_start_says_why(nodes):
    for factory, said in (("tests.jobs.ray_renderer:broken", "no model"), ("tests.none:such", "tests.none")):
        executor = RayExecutor(factory)
        with pytest.raises(ExecutorDied, match=said) as error:
            list(executor.run(work()))
        assert "\n" not in str(error.value)
        executor.close()


def test_an_actor_lost_while_idle_is_replaced_before_the_next_run(executor):
    events = list(executor.run(work()))
    pid = node_and_pid(events[0])[1]
    os.kill(pid, signal.SIGKILL)
    events = list(executor.run(work()))
    assert finished(events) and node_and_pid(events[0])[1] != pid


def test_work_abandoned_in_its_middle_does_not_go_on(executor):
    events = executor.run(work())
    pid = node_and_pid(next(events))[1]
    events.close()
    wait_until(lambda: not psutil.pid_exists(pid), 10)


def test_close_lets_the_device_go(nodes):
    first = RayExecutor(FACTORY, gpus=2)  # in a placement group
    pid = node_and_pid(next(first.run(work())))[1]
    first.close()
    wait_until(lambda: not psutil.pid_exists(pid), 10)
    others = [RayExecutor(FACTORY, gpus=2) for _ in range(2)]
    for executor in others:
        wait_until(lambda executor=executor: executor.ready(("tiny",)), 30)
    for executor in others:
        executor.close()


def test_without_a_free_device_nothing_is_ready_and_a_run_says_what_is_missing(nodes):
    executor = RayExecutor(FACTORY, gpus=3, start_s=1.0)
    assert executor.ready(("tiny",)) == ()
    with pytest.raises(ExecutorDied, match="no node of the cluster had 3 GPUs and 1 CPUs free within 1 s"):
        list(executor.run(work()))
    executor.close()


def test_a_run_that_waits_for_a_device_can_be_stopped(nodes):
    executor = RayExecutor(FACTORY, gpus=3)
    threading.Timer(0.5, executor.stop, kwargs={"now": True}).start()
    assert list(executor.run(work())) == [Stopped()]
    executor.close()


def test_places_are_counted_by_node(nodes):
    places = ray_cluster.places
    assert [places("cpu", 1, 1), places("cpu", 1, 2)] == [2, 0]
    assert [places("gpu", 1, 0), places("gpu", 2, 1), places("gpu", 3, 0)] == [4, 2, 0]


def test_when_a_node_is_lost_another_one_goes_on_from_the_snapshot_to_the_same_bytes(nodes, executor):
    whole = finished(list(executor.run(work())))
    events = executor.run(work())
    seen = [next(events)]
    lost = node_and_pid(seen[0])[0]
    while not isinstance(seen[-1], Progress) or seen[-1].done < 8:
        seen.append(next(events))
    nodes.lose(lost)
    with pytest.raises(ExecutorDied, match=r"^The actor .* is unavailable|^The actor is dead") as error:
        list(events)
    assert "\n" not in str(error.value)
    snapshot = [event for event in seen if isinstance(event, Snapshot)][-1]
    assert snapshot.step == 6
    rest = list(executor.run(work(snapshot=snapshot.data)))
    assert node_and_pid(rest[0])[0] != lost
    assert finished(rest) == whole
    assert sum(isinstance(event, Progress) for event in rest) == STEPS - 6
    nodes.add(lost)
    wait_until(lambda: ray_cluster.places("cpu", 1, 1) == 2, 60)


def test_when_the_dispatcher_dies_its_actor_does(nodes):
    code = (
        "import sys; from broll.jobs import ray_cluster; from tests.jobs.test_ray_cluster import work\n"
        f"ray_cluster.connect({nodes.address!r}, trusted=True)\n"
        f"events = ray_cluster.RayExecutor({FACTORY!r}).run(work('deaf', b'[-1000, \"\"]'))\n"
        "print(next(events).model, flush=True); list(events)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True) as child:
        pid = int(child.stdout.readline().split(":")[1])
        child.kill()
    wait_until(lambda: not psutil.pid_exists(pid), 30)


def test_sigterm_stays_the_servers(nodes):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- what is refused --------------------------------------------------------------------------------------


def test_without_a_token_nothing_is_joined(nodes, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in AUTH:
        monkeypatch.delenv(name)
    with pytest.raises(InsecureCluster, match="set RAY_AUTH_MODE=token"):
        ray_cluster.connect(nodes.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(InsecureCluster, match=r"no token in .*/\.ray/auth_token"):
        ray_cluster.connect(nodes.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InsecureCluster, match=r"no token in .*/none"):
        ray_cluster.connect(nodes.address)


def test_a_cluster_that_answers_without_a_token_is_refused(monkeypatch):
    for name, value in AUTH.items():
        monkeypatch.setenv(name, value)
    with running(auth={"RAY_AUTH_MODE": "disabled"}) as cluster:
        with pytest.raises(InsecureCluster, match="answers without a token") as error:
            ray_cluster.connect(cluster.address)
        assert error.value.code == "insecure_cluster"


def test_a_wrong_token_is_one_clear_line(nodes):
    code = (
        "from broll.jobs import ray_cluster\n"
        f"try: ray_cluster.connect({nodes.address!r})\n"
        "except ray_cluster.ClusterUnreachable as error: print('REFUSED', error)"
    )
    env = os.environ | AUTH | {"RAY_AUTH_TOKEN": "f" * 64}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    line = f"REFUSED the Ray cluster at {nodes.address} cannot be joined: it has another token\n"
    assert said.stdout == line, said


@pytest.mark.parametrize("address", ["", "auto", "ray://127.0.0.1:1", "host", "host:", "host:port"])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(BadOption, match="host:port"):
        ray_cluster.connect(address)


def test_nobody_at_the_address_is_said_at_once():
    begin = time.monotonic()
    with pytest.raises(ClusterUnreachable, match="no Ray head node answers"):
        ray_cluster.connect(f"127.0.0.1:{free_port()}")
    assert time.monotonic() - begin < 5


def test_without_ray_the_error_names_the_command_that_installs_it():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from broll.errors import MissingExtra; from broll.jobs import ray_cluster\n"
        "try: ray_cluster.connect('127.0.0.1:1')\n"
        "except MissingExtra as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'pip install "broll[cluster]"' in said.stdout


def test_importing_it_loads_no_ray():
    code = "import sys; from broll.jobs import ray_cluster; print('ray' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
