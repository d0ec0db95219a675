"""Several lanes to one child: jobs of one kind run together, all others alone and in their turn."""

import os
import sys
import threading
import time

import numpy as np
import pytest

from broll import catalog, clips, serving, wiring
from broll.engine import pipeline
from broll.errors import BadOption
from broll.events import Clip, Loaded, Progress, Stopped, Work
from broll.floor import Floor
from broll.jobs.executor import ExecutorDied
from broll.jobs.local import Child, LocalExecutor
from broll.media.video_file import read_frames
from broll.settings import Settings
from broll.spec import parse

COMMAND = [sys.executable, "-m", "broll.child"]


@pytest.fixture
def lanes(tiny_models):
    env = os.environ | {"BROLL_MODELS": str(tiny_models), "BROLL_THREADS": "1", "BROLL_BATCH": "3"}
    child = Child(COMMAND, env, 3)
    found = [LocalExecutor(child, lane) for lane in range(3)]
    yield found
    for lane in found:
        lane.close()


def work(models, **fields):
    config = wiring.describe(catalog.find(Settings(models=models), "tiny"))
    given = {"model": "tiny", "prompt": "a lake", "seed": 1, "steps": 30}
    spec = pipeline.resolve(parse(**given | fields), config)
    return Work("job_1", "tiny", spec.model_dump_json(exclude_none=True), {}, None, 30.0)


class Running:
    """A job on a lane, in a thread: what it told, and when."""

    def __init__(self, lane, work):
        self.told, self.at, self.error = [], [], None
        self._thread = threading.Thread(target=self._run, args=(lane.run(work),))
        self._thread.start()

    def _run(self, events):
        try:
            for event in events:
                self.told.append(event)
                self.at.append(time.monotonic())
        except ExecutorDied as error:
            self.error = error

    def until(self, kind):
        end = time.monotonic() + 120
        while not any(isinstance(event, kind) for event in self.told):
            assert time.monotonic() < end
            time.sleep(0.005)

    def end(self):
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.told[-1] if self.told else None

    def steps(self):
        """When the first one was done, and the last."""
        at = [
            t
            for t, e in zip(self.at, self.told, strict=True)
            if isinstance(e, Progress) and e.stage == "denoise"
        ]
        return at[0], at[-1]


def frames(clip, folder):
    assert isinstance(clip, Clip), clip
    file = folder / "clip.mp4"
    file.write_bytes(clip.files["video"])
    return np.stack(list(read_frames(file))).astype(int)


def conditions(clip):
    return clips.Record.model_validate_json(clip.record).conditions


def test_jobs_of_one_kind_run_together_and_give_the_clips_that_they_give_alone(lanes, tiny_models, tmp_path):
    works = [
        work(tiny_models, prompt=prompt, seed=seed)
        for seed, prompt in enumerate(("a lake", "a cat", "waves"))
    ]
    alone = [list(lanes[0].run(one))[-1] for one in works]
    runs = [Running(lane, one) for lane, one in zip(lanes, works, strict=True)]
    made = [run.end() for run in runs]
    for one, other in zip(alone, made, strict=True):
        assert np.abs(frames(one, tmp_path) - frames(other, tmp_path)).mean() < 0.5
        assert conditions(other)["batched"]
    assert all(run.told[0].shared for run in runs)
    assert max(run.steps()[0] for run in runs) < min(run.steps()[1] for run in runs)


def test_another_kind_waits_and_can_be_stopped_while_it_does(lanes, tiny_models):
    first = Running(lanes[0], work(tiny_models, steps=400))
    first.until(Progress)
    other = Running(lanes[1], work(tiny_models, frames=5))
    time.sleep(0.5)
    assert other.told == []
    third = Running(lanes[2], work(tiny_models))  # of the first one's kind, but behind the other
    lanes[1].stop(now=True)
    assert isinstance(other.end(), Stopped)
    third.until(Progress)
    lanes[0].stop(now=False)
    assert isinstance(first.end(), Stopped)
    assert isinstance(third.end(), Clip)


def test_when_the_child_dies_every_lane_hears_of_it_and_the_next_job_starts_another(lanes, tiny_models):
    runs = [Running(lane, work(tiny_models, steps=900)) for lane in lanes[:2]]
    for run in runs:
        run.until(Progress)
    lanes[1].close()
    for run in runs:
        run.end()
        assert isinstance(run.error, ExecutorDied)
    again = Running(lanes[1], work(tiny_models))
    again.until(Loaded)
    lanes[0].close()  # of the one that died: no other's
    assert isinstance(again.end(), Clip)


def test_a_further_lane_claims_only_what_may_join_a_job_that_runs_and_one_lane_at_a_time():
    child, models = Child(COMMAND, {}, 3), ("tiny", "other")
    assert child.ready(0, models) == models
    assert child.ready(1, models) == ()
    child.begins(0)
    assert child.ready(1, models) == ()  # whether it may be joined is not known yet
    child.loaded(0, Loaded("tiny", 0.1, shared=True))
    assert child.ready(1, models) == ("tiny",)
    assert child.ready(2, models) == ()
    child.begins(1)
    assert child.ready(2, models) == ()
    child.loaded(1, Loaded("tiny", 0.1, shared=True))
    assert child.ready(2, models) == ("tiny",)
    child.ends(0)
    assert child.ready(0, models) == ()  # the other lane is claiming
    child.begins(2)
    child.loaded(2, Loaded("tiny", 0.1, shared=True))
    assert child.ready(0, models) == ("tiny",)
    child.ends(1)
    child.ends(2)
    assert child.ready(0, models) == models
    child.begins(0)
    child.loaded(0, Loaded("other", 0.1))
    assert child.ready(1, models) == ()


def test_nobody_overtakes_one_who_waits_alone():
    floor, order = Floor(), []
    inside, leave = threading.Barrier(2), threading.Event()

    def use(kind, name):
        with floor.entered(kind, lambda: None):
            order.append(name)
            if name == "first":
                inside.wait(10)
                leave.wait(10)

    threads = [threading.Thread(target=use, args=(("a",), "first"))]
    threads[0].start()
    inside.wait(10)
    floor.shared = "theirs"
    for kind, name in ((("a",), "with it"), (None, "alone"), (("a",), "behind")):
        threads.append(threading.Thread(target=use, args=(kind, name)))
        threads[-1].start()
        time.sleep(0.15)
    assert order == ["first", "with it"]
    assert floor.shared == "theirs"
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "with it", "alone", "behind"]
    assert floor.shared is None

    def refuse():
        raise KeyError

    with floor.entered(None, lambda: None), pytest.raises(KeyError), floor.entered(None, refuse):
        pass
    with floor.entered(None, refuse):  # whoever gave up is gone
        pass


def test_a_device_has_so_many_slots_of_which_one_is_for_anything(tiny_models, tmp_path):
    settings = Settings(models=tiny_models, data=tmp_path, threads=1, batch=3, devices=2)
    slots = serving.slots(settings, ("tiny",))
    assert [slot.beside for slot in slots] == [False, True, True] * 2
    assert len({slot.device.name for slot in slots}) == 6
    assert len({id(slot.executor._child) for slot in slots}) == 2
    for other in ({"group": 2}, {"executor": "ray", "ray_address": "127.0.0.1:1"}):
        with pytest.raises(
            BadOption, match="batch is 3; it is for the executor local, and goes with no group"
        ):
            serving.slots(settings.model_copy(update=other), ("tiny",))
