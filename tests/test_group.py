"""Groups of processes from the outside: the command under torchrun, a service's child and a Ray actor with helpers.

That they make the clip of one process is in tests/engine/test_parallel.py; here, who writes, and how they end.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from broll import catalog, clips, group, wiring
from broll.engine import pipeline
from broll.errors import BadOption
from broll.events import Clip, Failed, Progress, Stopped, Work
from broll.jobs import ray_cluster
from broll.jobs.executor import ExecutorDied
from broll.jobs.local import Child, LocalExecutor
from broll.settings import Settings
from broll.spec import parse
from tests.jobs.ray_nodes import AUTH, running

ROOT = Path(__file__).parents[1]
GENERATE = ["generate", "a lake", "--model", "tiny", "--seed", "4", "--json"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "broll"]


def environment(**more: object) -> dict[str, str]:
    return (
        os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in more.items()}
    )


def command(*words: str, start=("-m", "broll"), **env: object) -> subprocess.CompletedProcess:
    line = [sys.executable, *start, *words]
    return subprocess.run(
        line, env=environment(**env), capture_output=True, text=True, timeout=200, check=False
    )


def work(models: Path, **fields: object) -> Work:
    config = wiring.describe(catalog.find(Settings(models=models), "tiny"))
    spec = pipeline.resolve(parse(**{"model": "tiny", "prompt": "a lake", "seed": 4} | fields), config)
    return Work("job_1", "tiny", spec.model_dump_json(exclude_none=True), {}, None, 30.0)


def latents(event) -> str:
    assert isinstance(event, Clip), event
    return clips.Record.model_validate_json(event.record).latents_sha256


def helpers(pid: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(pid).children(recursive=True) if "broll.follower" in p.cmdline()]


# --- asked for wrongly ------------------------------------------------------------------------------------


def test_a_layout_for_more_processes_than_there_are_is_refused_with_how_to_start_them(place, tiny_models):
    found = catalog.find(Settings(), "tiny")
    config = wiring.describe(found)
    spec = pipeline.resolve(parse(model="tiny", prompt="a lake", seed=4), config)
    with pytest.raises(BadOption, match="torchrun --nproc-per-node 4 -m broll, or set BROLL_GROUP=4"):
        group.check(Settings(parallel="cfg=2,ulysses=2"), spec, config)
    with pytest.raises(BadOption, match="is for 4 processes, and here are 2"):
        group.check(Settings(parallel="cfg=2,ulysses=2", group=2), spec, config)
    assert group.check(Settings(), spec, config) == ""
    assert group.check(Settings(group=2), spec, config) == "2 processes make it together: cfg=2"


def test_a_service_refuses_a_layout_that_its_groups_cannot_have(place):
    group.check_words(Settings(group=4, parallel="cfg=2,ulysses=2"))
    group.check_words(Settings(group=4))
    with pytest.raises(BadOption, match="4 processes, and group is 1"):
        group.check_words(Settings(parallel="ulysses=4"))


# --- the command ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_makes_the_clip_of_one_process_and_one_file(place):
    alone = command(*GENERATE, "--out", "alone.mp4")
    assert alone.returncode == 0, alone.stderr
    ran = command(*GENERATE, "--out", "together.mp4", start=TORCHRUN)
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in place.iterdir()) == ["alone.mp4", "together.mp4"]
    one, two = (
        json.loads(alone.stdout),
        json.loads(ran.stdout),
    )  # stdout is one object: only one process prints
    assert one["latents_sha256"] == two["latents_sha256"]
    assert ran.stderr.count("2 processes make it together: cfg=2") == 1
    assert clips.read_record(place / "together.mp4").conditions["parallel"] == "cfg=2"


@pytest.mark.slow
def test_the_command_starts_its_helpers_itself_and_leaves_none_behind(place):
    alone = json.loads(command(*GENERATE, "--out", "alone.mp4").stdout)
    ran = command(*GENERATE, "--out", "together.mp4", "--takes", "2", "--pick", "sharp", BROLL_GROUP=2)
    assert ran.returncode == 0, ran.stderr
    made = json.loads(ran.stdout)
    assert [take["seed"] for take in made["takes"]] == [4, 5]
    if made["seed"] == 4:
        assert made["latents_sha256"] == alone["latents_sha256"]
    assert [p for p in psutil.process_iter(["environ"]) if owned(p, place)] == []


def owned(process: psutil.Process, place: Path) -> bool:
    return (process.info["environ"] or {}).get("BROLL_DATA") == str(place.parent / "data")


@pytest.mark.slow
def test_a_stop_ends_all_keeps_a_snapshot_and_the_clip_goes_on_alone_or_together(place):
    line = [sys.executable, "-m", "broll", *GENERATE, "--steps", "150", "--out", "clip.mp4"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env=environment(BROLL_GROUP=2), **streams) as process:
        assert process.stderr is not None
        for told in process.stderr:
            if "denoise" in told:
                break
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(20) == 143, said
    assert time.monotonic() - begin < 8
    assert "continue with: broll generate --resume" in said
    assert [p for p in psutil.process_iter(["environ"]) if owned(p, place)] == []
    ran = command("generate", "--resume", "clip.mp4.snapshot", "--json", "--out", "clip.mp4", BROLL_GROUP=2)
    assert ran.returncode == 0, ran.stderr
    assert not json.loads(ran.stdout)["resumed_elsewhere"]


# --- a service's child ------------------------------------------------------------------------------------


@pytest.fixture
def executor(tiny_models):
    env = environment(BROLL_MODELS=tiny_models, BROLL_THREADS=1, BROLL_GROUP=2)
    child = LocalExecutor(Child([sys.executable, "-m", "broll.child"], env))
    yield child
    child.close()


@pytest.mark.slow
def test_a_job_is_made_by_a_group_that_stays_warm_after_a_cancel_and_ends_with_its_leader(
    executor, tiny_models
):
    env = environment(BROLL_MODELS=tiny_models, BROLL_THREADS=1)
    alone = LocalExecutor(Child([sys.executable, "-m", "broll.child"], env))
    try:
        expected = latents(list(alone.run(work(tiny_models)))[-1])
    finally:
        alone.close()
    assert latents(list(executor.run(work(tiny_models)))[-1]) == expected
    pid, helping = executor.pid, helpers(executor.pid)
    assert len(helping) == 1
    for now in (True, False):
        last = None
        for event in executor.run(work(tiny_models, steps=900)):
            if isinstance(event, Progress) and event.done == 2:
                executor.stop(now=now)
            last = event
        assert isinstance(last, Stopped), last
    assert latents(list(executor.run(work(tiny_models)))[-1]) == expected
    assert executor.pid == pid
    assert helpers(pid) == helping
    executor.kill()
    assert psutil.wait_procs(helping, timeout=10)[1] == []


@pytest.mark.slow
def test_a_helper_that_dies_ends_the_work_within_seconds_and_the_next_work_gets_a_new_group(
    executor, tiny_models
):
    expected = latents(list(executor.run(work(tiny_models)))[-1])
    (helper,) = helpers(executor.pid)
    begin, last = None, None
    for event in executor.run(work(tiny_models, steps=900)):
        if isinstance(event, Progress) and begin is None:
            begin = time.monotonic()
            helper.kill()
        last = event
    assert isinstance(last, Failed), last
    assert (last.code, last.retryable) == ("group_lost", True)
    assert begin is not None
    assert time.monotonic() - begin < 12
    try:
        again = list(executor.run(work(tiny_models)))
    except ExecutorDied:  # the old child was still on its way out; a dispatcher tries again too
        again = list(executor.run(work(tiny_models)))
    assert latents(again[-1]) == expected


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='pip install "broll[cluster]"')
def test_a_ray_actor_starts_its_helpers_on_its_node(tiny_models, monkeypatch):
    for name, value in (AUTH | {"BROLL_MODELS": str(tiny_models), "BROLL_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    with running() as cluster:
        cluster.add("a", gpus=0)
        ray_cluster.connect(cluster.address)
        executor = ray_cluster.RayExecutor("broll.renderer:actor", env={"BROLL_GROUP": "2"})
        try:
            told = list(executor.run(work(tiny_models)))
            record = clips.Record.model_validate_json(told[-1].record)
            assert record.conditions["parallel"] == "cfg=2"
            again = list(executor.run(work(tiny_models, guidance=1)))
            record = clips.Record.model_validate_json(again[-1].record)
            assert record.conditions["parallel"] == "ulysses=2"
        finally:
            executor.close()
            ray_cluster.disconnect()
