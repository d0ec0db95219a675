"""Clips of one shape in one forward, where a clip alone does not fill the device.

Each clip is made as always, by a thread of its own, but for the transformer: there it takes a seat at the meeting, and
whoever has called waits until the others at the table have called too, or for as long as a forward takes. Then one of
them computes all of it, and each gets its own.

    x        one under the other
    time     each clip its own: they need not be at the same step, nor under the same branch of guidance
    text     the shorter prompts are padded by zeros, as all are in training; those are what the last token of each
             stands for (conditioning.collapsed), which then stands for so many fewer

The slow twin is the transformer, called by each alone: the same numbers but for the last bits, since products of other
sizes are summed in another order. So a clip says that it was made so (snapshot.conditions).
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from broll.engine import counts, shapes, step_cache
from broll.engine.config import ModelConfig
from broll.engine.shapes import Grid, Latent
from broll.engine.transformer import Context
from broll.spec import VideoSpec

# Operations of a forward up to which a clip leaves a device idle: on an H200 eight clips of nano (1.5e10 each) take 1.3
# times as long as one, and a clip of the 1.3B at 480p (2.8e14) runs at half of the peak (docs/performance.md). 1e12 are
# 2 ms of that card at the 548 TFLOP/s measured there; launching nano's 9 blocks took it 6.
SMALL = 1e12
TEXT = 64  # tokens of a prompt, about
Model = Callable[[Latent, Tensor, Context, int], Latent]


def kind(spec: VideoSpec, config: ModelConfig) -> tuple[object, ...] | None:
    """What clips must have in common to be made together; None: this one is made alone."""
    assert spec.frames and spec.width and spec.height
    grid = Grid(spec.frames, spec.height, spec.width)
    tokens = shapes.token_grid(
        shapes.latent_grid(grid, config.vae.spatial_stride), config.transformer.patch_size
    )
    alone = (
        config.task not in ("t2v", "ti2v")
        or spec.image is not None
        or spec.sparsity
        or step_cache.skips_any(spec)
        or any(lora.first is not None for lora in spec.loras)  # switched on and off in the model itself
        or counts.forward(config.transformer, tokens.size, TEXT).total > SMALL
    )
    return None if alone else (config.name, grid, spec.loras)


@dataclass(eq=False)
class Call:
    x: Latent
    time: Tensor
    context: Context
    step: int
    out: Latent | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.out is not None or self.error is not None


@dataclass(eq=False)
class Seat:
    """The transformer of one clip, as long as it has it."""

    meeting: "Meeting"
    call: Call | None = None

    def __call__(self, x: Latent, time: Tensor, context: Context, step: int) -> Latent:
        return self.meeting.forward(self, Call(x, time, context, step))


@dataclass
class Meeting:
    model: Model  # a Transformer
    at_once: list[int] = field(default_factory=list)  # clips in each forward, for tests and logs
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _seats: list[Seat] = field(default_factory=list)
    _running: bool = False
    _took_s: float = 0.0  # by the last forward
    _contexts: dict[tuple[int, ...], tuple[Sequence[Context], Context]] = field(default_factory=dict)

    @contextmanager
    def seat(self) -> Iterator[Seat]:
        seat = Seat(self)
        with self._changed:
            self._seats.append(seat)
        try:
            yield seat
        finally:
            with self._changed:
                self._seats.remove(seat)
                self._contexts.clear()
                self._changed.notify_all()

    def forward(self, seat: Seat, call: Call) -> Latent:
        with self._changed:
            seat.call = call
            self._changed.notify_all()
            patience = time.monotonic() + self._took_s
            while not call.done:
                late = time.monotonic() >= patience
                if self._running or not (late or all(other.call for other in self._seats)):
                    self._changed.wait(None if self._running else max(0.0, patience - time.monotonic()))
                else:
                    self._lead()
        if call.error is not None:
            raise call.error
        assert call.out is not None
        return call.out

    def _lead(self) -> None:
        """Compute what has been called, without the lock; every seat may call again afterwards."""
        calls = [seat.call for seat in self._seats if seat.call is not None]
        for seat in self._seats:
            seat.call = None
        self._running = True
        self._changed.release()
        begin = time.monotonic()
        try:
            self._compute(calls)
        finally:
            self._changed.acquire()
            self._running, self._took_s = False, time.monotonic() - begin
            self._changed.notify_all()

    def _compute(self, calls: list[Call]) -> None:
        """All at once; one after the other where that cannot be, or goes wrong."""
        try:
            outs = self._together(calls) if len(calls) > 1 and alike(calls) else []
        except Exception:  # noqa: BLE001  whose it is will show
            outs = []
        for call, out in zip(calls, outs, strict=False):
            call.out = out
        for call in calls[len(outs) :]:
            try:
                self.at_once.append(1)
                call.out = self.model(call.x, call.time, call.context, call.step)
            except Exception as error:  # noqa: BLE001  it is raised where the call was made
                call.error = error

    def _together(self, calls: list[Call]) -> list[Latent]:
        """`step` is only told in messages here: what depends on it is made alone (`kind`)."""
        context = self._context([call.context for call in calls])
        x, times = torch.cat([call.x for call in calls]), torch.cat([call.time for call in calls])
        outs = self.model(x, times, context, calls[0].step).split(1)
        self.at_once.append(len(calls))
        return list(outs)

    def _context(self, contexts: Sequence[Context]) -> Context:
        """Once for the same clips, so that keys and values of their texts are computed once."""
        key = tuple(map(id, contexts))
        if key not in self._contexts:
            self._contexts[key] = contexts, merged(contexts)
        return self._contexts[key][1]


def alike(calls: Sequence[Call]) -> bool:
    """Whether they can be one under the other. A prompt that fills the text encoder has no padding."""
    shapes_ = {(call.x.shape, call.time.shape, call.context.text_bias is None) for call in calls}
    return len(shapes_) == 1 and calls[0].context.text_bias is not None


def merged(contexts: Sequence[Context]) -> Context:
    """Of several prompts; each one's last token stands for its padding."""
    longest = max(contexts, key=lambda context: context.text.shape[1])
    width = longest.text.shape[1]
    texts = [torch.cat([c.text, c.text[:, -1:].expand(-1, width - c.text.shape[1], -1)], 1) for c in contexts]
    assert longest.text_bias is not None
    return replace(longest, text=torch.cat(texts), memory={})
