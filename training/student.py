"""Teach a student four steps without guidance: `python -m training.student`.

The student is a LoRA on nano's transformer. Between two of its levels the teacher takes several guided steps; the
student learns the mean velocity of that way, first from where the teacher passes, then from where it arrives itself.

    progressive distillation    https://arxiv.org/abs/2202.00512
    of guidance                 https://arxiv.org/abs/2210.03142
    on the student's own way    https://arxiv.org/abs/2306.13649
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broll.engine.conditioning import Text
from broll.engine.schedule import schedule
from broll.engine.text_encoder import TextEncoder
from broll.engine.transformer import Transformer
from training import run, text, transformer
from training.draws import Draws
from training.latents import Latents
from training.sampling import encode, guided, velocity


class Adapted(nn.Module):
    """A frozen Linear and, while `on`, a trained product of two narrow matrices beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.on = base.requires_grad_(requires_grad=False), True
        self.down = nn.Parameter(
            torch.randn(rank, base.in_features, device=base.weight.device) / base.in_features**0.5
        )
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + F.linear(F.linear(x, self.down), self.up) if self.on else y


def adapt(model: Transformer, rank: int) -> dict[str, Adapted]:
    """Put an adapter round every Linear of the blocks; by the Linear's own name."""
    model.requires_grad_(requires_grad=False)
    found = [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name.startswith("blocks.")
    ]
    adapters = {}
    for name, linear in found:
        adapters[name] = Adapted(linear, rank)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, adapters[name])
    return adapters


@contextmanager
def teacher(adapters: dict[str, Adapted]) -> Iterator[None]:
    """Within, the model is what it was before."""
    for adapter in adapters.values():
        adapter.on = False
    try:
        yield
    finally:
        for adapter in adapters.values():
            adapter.on = True


class Lesson:
    """One batch: texts, what is given, and the teacher's guidance."""

    def __init__(
        self,
        numbers: dict[str, Any],
        model: Transformer,
        prompts: tuple[Text, Text],
        x0: Tensor,
        given: Tensor,
    ) -> None:
        own = numbers["student"]
        self.model, self.prompts, self.inner = model, prompts, own["inner"]
        self.guidance = numbers["defaults"]["guidance"]
        levels = schedule(own["steps"], shift=numbers["defaults"]["shift"], grid="distilled", sampler="euler")
        self.sigmas = torch.tensor(levels.sigmas, device=x0.device)
        self.shift = numbers["defaults"]["shift"]
        self.x0, self.given = x0, given[:, None, :, None, None]

    def times(self, sigma: Tensor) -> Tensor:
        """[b, f]: 1000 sigma, but 0 where a frame is given."""
        return 1000 * sigma[:, None] * ~self.given[:, 0, :, 0, 0]

    def put(self, x: Tensor) -> Tensor:
        return torch.where(self.given, self.x0, x)

    def student(self, x: Tensor, place: Tensor) -> Tensor:
        """Velocity of the student at level `place` [b]."""
        return velocity(self.model, self.put(x), self.times(self.sigmas[place]), self.prompts[0])

    @torch.no_grad()
    def teach(self, x: Tensor, place: Tensor) -> Tensor:
        """Where the teacher gets from level `place` to the next one, by small guided steps."""
        parts = torch.linspace(0, 1, self.inner + 1, device=x.device)[:, None]
        plain = [
            s / (self.shift - (self.shift - 1) * s) for s in (self.sigmas[place], self.sigmas[place + 1])
        ]
        even = plain[0] + parts * (plain[1] - plain[0])  # evenly spaced before the shift, as sampling is
        levels = self.shift * even / (1 + (self.shift - 1) * even)
        for s, t in zip(levels, levels[1:], strict=False):
            v = guided(self.model, self.put(x), self.times(s), self.prompts, self.guidance)
            x = x + (t - s)[:, None, None, None, None] * v
        return x

    @torch.no_grad()
    def walk(self, noise: Tensor) -> Tensor:
        """The student's own states at every level but the last, [steps, b, c, f, h, w]."""
        states = [noise]
        for place in range(len(self.sigmas) - 2):
            v = self.student(states[-1], torch.full((len(noise),), place, device=noise.device))
            states.append(states[-1] + (self.sigmas[place + 1] - self.sigmas[place]) * v)
        return torch.stack(states)

    def loss(self, x: Tensor, place: Tensor, end: Tensor) -> Tensor:
        way = (self.sigmas[place + 1] - self.sigmas[place])[:, None, None, None, None]
        wrong = (self.student(x, place) - (end - x) / way) * ~self.given
        return wrong.square().mean()


def train(numbers: dict[str, Any], device: str = "cpu") -> None:
    own, folder = numbers["student"], run.work_folder(numbers)
    rng = random.Random()  # unseeded: after a restart, other batches
    draws = Draws(numbers, rng, drop=0.0)
    model, encoder, pool = transformer.average(numbers, device), text.load(numbers), Latents(numbers, device)
    encoder.model.to(device)
    adapters = adapt(model, own["rank"])
    parameters = [p for a in adapters.values() for p in (a.down, a.up)]
    optimizer = torch.optim.AdamW(parameters, own["lr"], (0.9, 0.98), weight_decay=0.0)
    kept = Kept(folder / "student.pt", adapters, optimizer, transformer.steps(numbers))
    clock = run.Clock(numbers["minutes"][device]["student"], kept.spent)
    log = run.Log(folder / "student.jsonl")
    losses: list[Tensor] = []
    with draws:
        for step in clock.steps(0):
            lesson = prepare(numbers, model, encoder, pool, draws, rng)
            for x, place, end in examples(lesson, adapters, own, alone=clock.spent > clock.minutes / 2):
                value = lesson.loss(x, place, end)
                value.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.param_groups[0]["lr"] = own["lr"] * clock.rate(step, warmup=5)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(value.detach())
            if step % 10 == 0:
                mean = float(torch.stack(losses[-40:]).mean())
                log(step=step, minutes=clock.spent, updates=kept.updates + len(losses), loss=mean)
            if step % own["checkpoint"] == own["checkpoint"] - 1:
                kept.save(len(losses), clock.spent)
    kept.save(len(losses), clock.spent)


class Kept:
    """A student's checkpoint. Of another teacher's, or of the same one's before it was trained on, only the weights."""

    def __init__(
        self, path: Path, adapters: dict[str, Adapted], optimizer: torch.optim.Optimizer, teacher: int
    ) -> None:
        self.path, self.adapters, self.optimizer, self.teacher = path, adapters, optimizer, teacher
        self.updates, self.spent = 0, 0.0
        state = run.load(path)
        if state is None:
            return
        with torch.no_grad():
            for name, (down, up) in state["adapters"].items():
                adapters[name].down.copy_(down)
                adapters[name].up.copy_(up)
        if state.get("teacher") != teacher:
            return
        self.updates, self.spent = state["updates"], state["spent"]
        if "optimizer" in state:  # a restored student (training/export.py) has none
            optimizer.load_state_dict(state["optimizer"])

    def save(self, updates: int, spent: float) -> None:
        pairs = {name: (a.down.detach().cpu(), a.up.detach().cpu()) for name, a in self.adapters.items()}
        progress = {"teacher": self.teacher, "updates": self.updates + updates, "spent": spent}
        run.save(self.path, {"adapters": pairs, "optimizer": self.optimizer.state_dict()} | progress)


def prepare(
    numbers: dict[str, Any],
    model: Transformer,
    encoder: TextEncoder,
    pool: Latents,
    draws: Draws,
    rng: random.Random,
) -> Lesson:
    device, count = pool.device, numbers["student"]["batch"][pool.device]
    frames = (numbers["clip"]["frames"] - 1) // 4 + 1
    while draws.waiting < 3:
        draws.ask(pool.indices, count, frames)
    draw = draws.next()
    x0 = pool.pick(draw.places, draw.mirrored, draw.frames)
    given = transformer.given_frames(count, frames, numbers["transformer"]["given"], rng).to(device)
    empty = encode(encoder, [encoder.token_ids("")] * count)
    return Lesson(numbers, model, (encode(encoder, draw.ids), empty), x0, given)


def examples(
    lesson: Lesson, adapters: dict[str, Adapted], own: dict[str, Any], *, alone: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of states, their levels, and where the teacher ends from there. `alone`: states of the student's own."""
    count, steps, device = len(lesson.x0), own["steps"], lesson.x0.device
    noise, each = torch.randn_like(lesson.x0), torch.arange(count, device=device)
    if alone:
        place = torch.randint(steps, (count,), device=device)
        x = lesson.walk(noise)[place, each]
        with teacher(adapters):
            end = lesson.teach(x, place)
        yield x, place, end
        return
    states = [noise]
    with teacher(adapters):
        for level in range(steps):
            states.append(lesson.teach(states[-1], torch.full((count,), level, device=device)))
    way = torch.stack(states)
    for _ in range(own["reuse"]):
        place = torch.randint(steps, (count,), device=device)
        yield way[place, each], place, way[place + 1, each]


if __name__ == "__main__":
    run.command(__doc__, train)
