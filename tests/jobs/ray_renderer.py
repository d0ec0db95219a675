"""A renderer that needs no model: a chain of hashes, slow enough to be stopped. Actors import it by name."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from broll.events import Clip, Event, Loaded, Preview, Progress, Snapshot, Stage, Stopped, Work

FACTORY = "tests.jobs.ray_renderer:chain"
STEPS = 12
STEP_S = 0.15


@dataclass
class Flag:
    soon: bool = False
    now: bool = False


class Chain:
    """`work.model` says how it behaves: plain, deaf (never stops), raises, or dies."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, work: Work, flag: Flag) -> Iterator[Event]:
        self.runs += 1
        yield Loaded(f"{os.environ.get('TEST_BROLL_NODE')}:{os.getpid()}", float(self.runs))
        yield Stage("denoise")
        step, state = 0, work.spec
        if work.snapshot is not None:
            step, state = json.loads(work.snapshot)
        while step < STEPS:
            if flag.now and work.model != "deaf":
                yield Stopped()
                return
            time.sleep(STEP_S)
            step, state = step + 1, hashlib.sha256(state.encode()).hexdigest()
            yield Progress("denoise", step, STEPS, 100.0 * step / STEPS)
            yield from between(work.model, step)
            if flag.soon or step % 3 == 0:
                yield Snapshot.of(step, json.dumps([step, state]).encode())
            if flag.soon and work.model != "deaf":
                yield Stopped()
                return
        yield Clip({"video": state.encode() * 10_000, "thumbnail": state.encode()}, record="{}")


def between(model: str, step: int) -> Iterator[Event]:
    yield Preview(b"webp")
    if step == 2 and model == "raises":
        raise ValueError("two lines\nof which this is the last")
    if step == 2 and model == "dies":
        os._exit(70)


def chain() -> tuple[Chain, type[Flag]]:
    return Chain(), Flag


def broken() -> tuple[Chain, type[Flag]]:
    raise OSError("no model on this machine")
