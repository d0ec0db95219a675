"""What has happened so far in a run of `broll generate`, how fast, and so how long it will still take."""

import time
from typing import TYPE_CHECKING, Any

from broll.cli.output import say

if TYPE_CHECKING:
    from broll.cli.progress import Display
    from broll.cli.request import Job
    from broll.clips import Clip
    from broll.engine.sampler import Step
    from broll.plan import Plan
    from broll.settings import Settings
    from broll.takes import Take


class Watch:
    def __init__(self, job: "Job", expected: "Plan", show: "Display") -> None:
        self.job, self.expected, self.show = job, expected, show
        self.step: Step | None = None
        self.take: Take | None = None  # that the step belongs to
        self._new: Take | None = None
        self.clip: Clip | None = None
        self.times = [time.perf_counter()]  # of the start and of each step
        self.decoding_s = self.decoded = 0.0

    def saw(self, event: Any) -> None:
        from broll.clips import Clip
        from broll.engine.pipeline import Decoded, Frames, Warned
        from broll.takes import Take

        if isinstance(event, Clip):
            self.clip = event
        elif isinstance(event, Take):
            self._begin(event)
        elif isinstance(event, Decoded):
            self._frames(event.done / event.total)
        elif isinstance(event, Frames):
            self._frames((event.first + event.frames.shape[1]) / (self.job.spec.frames or 1))
        elif isinstance(event, Warned):
            say(f"warning: {event.text}")
        else:
            self._step(event)

    def _begin(self, take: "Take") -> None:
        self._new = take
        self.times, self.decoding_s, self.decoded = [time.perf_counter()], 0.0, 0.0
        self.show.stage(self._named("text, first step"))

    def _named(self, stage: str) -> str:
        take = self._new
        return stage if take is None or take.count == 1 else f"take {take.index + 1}/{take.count}: {stage}"

    def _step(self, step: "Step") -> None:
        steps = self.job.spec.steps or 1
        if len(self.times) == 1:
            self.show.stage(self._named("denoise"), steps)
        if step.resumable:
            self.step, self.take = step, self._new
        self.times.append(time.perf_counter())
        left = (steps - step.index - 1) * self.step_s() + self.expected.decode_s
        self.show.at(step.index + 1, left)

    def _frames(self, share: float) -> None:
        """So much of it is decoded. In tiles, frames come when all is."""
        frames = self.job.spec.frames or 1
        if self.decoding_s == 0:
            self.show.stage(self._named("decode"), frames)
        self.decoded = max(self.decoded, share)
        self.decoding_s = time.perf_counter() - self.times[-1]
        self.show.at(round(frames * self.decoded), self.decoding_s / self.decoded * (1 - self.decoded))

    def step_s(self) -> float:
        """Mean seconds of a step; the first one also reads the prompt, and counts only if it is alone."""
        times = self.times[1:] if len(self.times) > 2 else self.times
        return (times[-1] - times[0]) / (len(times) - 1)

    def remember(self, settings: "Settings") -> None:
        from broll.pace import remember
        from broll.plan import STREAMING

        if len(self.times) > 2:
            denoise_s = self.step_s() * (self.job.spec.steps or 1)
            cost, streamed = self.expected.estimate, self.expected.switched_on(STREAMING)
            remember(settings, self.job.config.name, cost, denoise_s, self.decoding_s, streamed=streamed)
