"""The local executor with a real child: the renderer on a tiny model."""

import os
import signal
import sys
import tempfile
import threading
import time

import pytest

from broll import catalog, clips, scratch, wiring
from broll.engine import pipeline
from broll.events import Clip, Failed, Loaded, Progress, Snapshot, Stage, Stopped, Work, pack, unpack
from broll.jobs.executor import ExecutorDied
from broll.jobs.local import Child, LocalExecutor
from broll.settings import Settings
from broll.spec import parse


@pytest.fixture(scope="module")
def models(tiny_models):
    return tiny_models


@pytest.fixture(scope="module")
def executor(models):
    env = os.environ | {"BROLL_MODELS": str(models), "BROLL_THREADS": "1"}
    child = LocalExecutor(Child([sys.executable, "-m", "broll.child"], env))
    yield child
    child.close()


def work(models, *, snapshot=None, snapshot_s=30.0, **fields):
    settings = Settings(models=models)
    config = wiring.describe(catalog.find(settings, "tiny"))
    spec = pipeline.resolve(parse(**{"model": "tiny", "prompt": "a lake", "seed": 1} | fields), config)
    return Work("job_1", "tiny", spec.model_dump_json(exclude_none=True), {}, snapshot, snapshot_s)


def latents(event):
    return clips.Record.model_validate_json(event.record).latents_sha256


def test_a_job_tells_its_stages_in_order_and_ends_with_a_clip(executor, models):
    told = list(executor.run(work(models)))
    assert isinstance(told[0], Loaded)
    assert [e.name for e in told if isinstance(e, Stage)] == ["encode", "denoise", "decode", "finish"]
    percents = [e.percent for e in told if isinstance(e, Progress)]
    assert percents == sorted(percents)
    assert sum(isinstance(e, Snapshot) for e in told) == 1  # the one behind the last step
    clip = told[-1]
    assert isinstance(clip, Clip)
    assert clip.files.keys() == {"video", "thumbnail", "spritesheet"}


def test_continued_from_a_snapshot_it_has_the_same_bits_and_fewer_steps(executor, models):
    told = list(executor.run(work(models, steps=6, snapshot_s=0.0)))
    snapshots = [e for e in told if isinstance(e, Snapshot)]
    assert [s.step for s in snapshots] == [0, 1, 2, 3, 4, 5]
    for snapshot, left in ((snapshots[2], 3), (snapshots[5], 0)):
        again = list(executor.run(work(models, steps=6, snapshot=snapshot.data)))
        assert sum(isinstance(e, Progress) and e.stage == "denoise" for e in again) == left
        assert latents(again[-1]) == latents(told[-1])
        assert not again[-1].resumed_elsewhere


def test_of_several_takes_each_has_its_stages_and_a_snapshot_knows_which_is_next(executor, models):
    asked = work(models, takes=2, pick="sharp", snapshot_s=0.0)
    told = list(executor.run(asked))
    stages = ["encode", "denoise", "decode"]
    assert [e.name for e in told if isinstance(e, Stage)] == [*stages, *stages, "finish"]
    percents = [e.percent for e in told if isinstance(e, Progress)]
    assert percents == sorted(percents)
    record = clips.Record.model_validate_json(told[-1].record)
    assert [take.seed for take in record.takes] == [1, 2]
    snapshots = [e for e in told if isinstance(e, Snapshot)]
    again = list(executor.run(work(models, takes=2, pick="sharp", snapshot=snapshots[-2].data)))
    assert sum(isinstance(e, Progress) and e.stage == "denoise" for e in again) in (1, 4)  # 4: the first won
    assert clips.Record.model_validate_json(again[-1].record) == record.model_copy(
        update={"seconds": clips.Record.model_validate_json(again[-1].record).seconds}
    )
    other = work(models, takes=3, pick="sharp", snapshot=snapshots[-2].data)
    assert sum(isinstance(e, Progress) and e.stage == "denoise" for e in executor.run(other)) == 9


def test_a_damaged_snapshot_starts_the_job_anew(executor, models):
    *_, clip = executor.run(work(models, snapshot=b"rubbish"))
    assert isinstance(clip, Clip)
    assert clip.steps == 3


def test_asked_to_stop_at_the_next_step_it_leaves_a_snapshot(executor, models):
    told = []
    for event in executor.run(work(models, steps=500)):
        told.append(event)
        if isinstance(event, Progress):
            executor.stop(now=False)
    assert isinstance(told[-1], Stopped)
    assert isinstance(told[-2], Snapshot)


def test_a_stop_before_the_work_begins_is_not_lost(executor, models):
    events = executor.run(work(models, steps=500))
    executor.stop(now=True)
    begin = time.monotonic()
    assert isinstance(list(events)[-1], Stopped)
    assert time.monotonic() - begin < 10


def test_a_stop_in_the_middle_of_a_long_forward_takes_effect_between_two_blocks(executor, models):
    # one forward over these tokens takes seconds
    long = work(models, width=64, height=64, frames=4 * 300 + 1, steps=50)
    threading.Timer(6.0, lambda: executor.stop(now=True)).start()
    begin = time.monotonic()
    last = list(executor.run(long))[-1]
    assert isinstance(last, Stopped)
    assert time.monotonic() - begin < 6.0 + 5.0  # before it would be killed


def test_a_child_that_is_killed_or_frozen_is_noticed_and_replaced(executor, models):
    def disturb(*numbers, stop=False):
        for event in executor.run(work(models, steps=500)):
            if isinstance(event, Progress):
                for number in numbers:
                    os.kill(executor.pid, number)
                if stop:
                    executor.stop(now=True)

    with pytest.raises(ExecutorDied, match="SIGKILL"):
        disturb(signal.SIGKILL)
    with pytest.raises(ExecutorDied, match="SIGKILL"):
        disturb(signal.SIGSTOP, stop=True)  # it cannot answer
    assert isinstance(list(executor.run(work(models)))[-1], Clip)


def test_what_cannot_be_made_is_a_failure_with_a_code(executor, models):
    (failed,) = [
        e for e in executor.run(Work("job_1", "missing", work(models).spec)) if isinstance(e, Failed)
    ]
    assert (failed.code, failed.retryable) == ("unknown_model", False)
    assert isinstance(list(executor.run(work(models)))[-1], Clip)


def test_when_the_dispatcher_dies_the_child_ends_itself(models):
    env = os.environ | {"BROLL_MODELS": str(models), "BROLL_THREADS": "1"}
    lonely = LocalExecutor(Child([sys.executable, "-m", "broll.child"], env))
    events = lonely.run(work(models, steps=500))
    assert any(isinstance(event, Progress) for event in events)
    child = lonely._started.process
    child.stdin.close()
    assert child.wait(10) == 0
    events.close()
    lonely.close()


LEAVES = """
import os, sys, time
from broll import scratch
made = scratch.folder()
open(os.path.join(made.name, "video.mp4"), "w").close()
print(made.name, file=sys.stderr, flush=True)
if "die" in sys.argv:
    os.kill(os.getpid(), 9)
"""


def test_what_a_child_that_was_killed_leaves_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = os.environ | {"TMPDIR": str(tmp_path)}
    (tmp_path / scratch.prefix(os.getpid())).mkdir()  # another process's
    child = LocalExecutor(Child([sys.executable, "-c", LEAVES, "die"], env))
    with pytest.raises(ExecutorDied, match="by SIGKILL"):
        list(child.run(Work("job_1", "tiny", "{}", {}, None, 30.0)))
    assert len(list(tmp_path.glob(f"{scratch.prefix(child.pid)}*/video.mp4"))) == 1
    child.close()
    assert [path.name for path in tmp_path.iterdir()] == [scratch.prefix(os.getpid())]


def test_messages_survive_the_pipe_and_half_of_one_is_none(tmp_path):
    messages = [
        Work("j", "m", "{}", {"a": b"\0\1"}, b"snap"),
        Stage("encode"),
        Clip({"video": b"x" * 1000}, "{}"),
    ]
    data = b"".join(pack(message) for message in messages)
    path = tmp_path / "pipe"
    for cut in (0, 1, 500):
        path.write_bytes(data[: len(data) - cut])
        with path.open("rb") as stream:
            assert list(unpack(stream)) == messages[: 3 if cut == 0 else 2]
