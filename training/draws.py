"""What the next batches are: which clips, mirrored or not, and a fresh caption of each, as token ids.

Drawn ahead in processes of their own, since the grammar and the tokenizer take a CPU's time while a GPU waits.
"""

import multiprocessing
import random
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training import run
from training.captions import caption
from training.render import scene
from training.scenes import mirrored as mirror

Ids = list[list[int]]


@dataclass(frozen=True)
class Draw:
    places: list[int]  # in the pool
    mirrored: list[bool]
    frames: int  # latent frames of each
    ids: Ids


class Draws:
    """A queue of draws; `ask` for one from the clips of these indices, `next` gives the oldest."""

    def __init__(self, numbers: dict[str, Any], rng: random.Random, drop: float) -> None:
        self._rng, self._drop, self._seed = rng, drop, numbers["seed"]
        spawn = multiprocessing.get_context("spawn")  # a fork of a process that uses CUDA cannot use it
        folder = run.work_folder(numbers) / "tokenizer"
        self._pool = ProcessPoolExecutor(2, spawn, _open, (folder,))
        self._pool.submit(len, ())  # so that it starts now
        self._queue: deque[tuple[Draw, Future[Ids]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def ask(self, indices: list[int], count: int, frames: int) -> None:
        rng = self._rng
        places = [rng.randrange(len(indices)) for _ in range(count)]
        mirrored = [rng.random() < 0.5 for _ in places]
        wanted = [
            (indices[p], m, rng.random() < self._drop, rng.getrandbits(31))
            for p, m in zip(places, mirrored, strict=True)
        ]
        future = self._pool.submit(_ids, self._seed, wanted)
        self._queue.append((Draw(places, mirrored, frames, []), future))

    def next(self) -> Draw:
        draw, future = self._queue.popleft()
        return replace(draw, ids=future.result())


_tokenizer: list[PreTrainedTokenizerBase] = []  # of the process that draws


def _open(folder: Path) -> None:
    _tokenizer.append(AutoTokenizer.from_pretrained(folder))


def _ids(seed: int, wanted: list[tuple[int, bool, bool, int]]) -> Ids:
    captions = []
    for index, mirrored, dropped, luck in wanted:
        shown = mirror(scene(index, seed)) if mirrored else scene(index, seed)
        captions.append("" if dropped else caption(shown, random.Random(luck)))
    return list(_tokenizer[0](captions)["input_ids"])
