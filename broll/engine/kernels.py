"""Which kernel computes attention: the best one here or one by name, held to the definition in every clip's first step.

    use        a name to the attend seam of a whole model
    Checked    compares what a fast kernel made of the first step's own tensors with `reference`, and drops a kernel
               that fails: SDPA computes that call again, and all that follow. So a broken one costs time, no picture.

The known failures of fast kernels are whole (black or noisy clips, NaN on one kind of card: kijai's
ComfyUI-WanVideoWrapper#1554 and #1339, diffusers#12783), so a few queries of every head show them. What is compared is
16 queries spread over the clip, in all heads of all layers and both prompts, in fp32, a head at a time: memory of one
head's keys, and 16 / n of the attention's work. That nothing is NaN or infinite is looked at in all of the output.

SDPA and `reference` in fp32 on a CPU are not checked: one is what would be dropped to and is held to the other by
tests on this very kind of device. Left out: later steps, and queries between the 16.
"""

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from broll.engine.attention import BACKENDS, Attend, AttendCall, reference
from broll.engine.shapes import Heads, Keys
from broll.engine.transformer import Transformer
from broll.errors import BadOption

AUTO = "auto"
QUERIES = 16
# The relative error of a head that is let pass: some four times what right kernels were seen to make of sharp logits
# (docs/engine/attention.md), far below what broken ones do.
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
BOUND_8_BITS = 0.25


@dataclass(frozen=True)
class Here:
    """What a kernel would run on."""

    device: str  # cpu, cuda, mps
    dtype: torch.dtype
    capability: tuple[int, int] = (0, 0)
    packages: frozenset[str] = frozenset()

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> "Here":
        packages = frozenset(b.package for b in BACKENDS.values() if b.package and found(b.package))
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
        return cls(device.type, dtype, capability, packages)


def found(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# --- the choice -------------------------------------------------------------------------------------------


def best(here: Here) -> str:
    """Without a rounding of its own: 8 bits are only for who asks for them.

    FlashAttention 2 is not chosen: torch's SDPA has it inside.
    """
    if here.device == "cuda":
        return "sdpa" if refusal("flash3", here) else "flash3"
    return "blocked" if here.device == "cpu" and here.dtype == torch.bfloat16 else "sdpa"


def refusal(name: str, here: Here) -> str:
    """Why this kernel cannot compute here; nothing if it can."""
    backend = BACKENDS[name]
    if backend.capability is not None:
        least, below = backend.capability
        if here.device != "cuda":
            return f"it needs an NVIDIA GPU; the device here is {here.device}"
        if not least <= here.capability < below:
            have, need = ".".join(map(str, here.capability)), ".".join(map(str, least))
            upto = f", below {below[0]}.{below[1]}" if below[0] < 100 else ""
            return f"it needs a GPU of compute capability {need} or more{upto}; this one has {have}"
    if backend.package and backend.package not in here.packages:
        return f"the package {backend.package} is not installed ({backend.install})"
    if backend.halves and here.dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bf16 or fp16; this model computes in {str(here.dtype).removeprefix('torch.')}"
    return ""


def chosen(name: str, here: Here) -> str:
    """The name of a kernel that can compute here, or one line that says why it cannot."""
    if name == AUTO:
        return best(here)
    possible = [other for other in BACKENDS if not refusal(other, here)]
    if name not in BACKENDS:
        raise BadOption(f"attention is {name!r}; possible here are {', '.join([AUTO, *possible])}")
    why = refusal(name, here)
    if why:
        raise BadOption(
            f"attention {name} is not possible here: {why}. Possible are {', '.join([AUTO, *possible])}"
        )
    return name


def use(model: Transformer, name: str, device: torch.device) -> None:
    """Compute all attention of this model by this kernel, or by the best one here."""
    here = Here.of(device, model.compute_dtype)
    name = chosen(name, here)
    backend = BACKENDS[name]
    if name == "reference" or (name == "sdpa" and here.device == "cpu" and here.dtype == torch.float32):
        model.use(backend.attend)
        return
    bound = BOUND_8_BITS if backend.eight_bits else BOUNDS[here.dtype]
    model.use(Checked(name, backend.attend, bound))


# --- the check --------------------------------------------------------------------------------------------


class Checked:
    """A kernel that is compared with the definition when it first sees each layer of a clip; dropped if it fails."""

    def __init__(self, name: str, kernel: Attend, bound: float) -> None:
        self.__name__ = self.kernel_name = name
        self.other = "blocked" if name == "sdpa" else "sdpa"
        self._kernel, self._bound = kernel, bound
        self._seen: set[tuple[str, int, str]] = set()
        self._worst, self._news = 0.0, ""
        self.dropped = ""  # why

    def begin(self) -> None:
        """A new clip: its first step is checked too."""
        self._seen.clear()
        self._worst = 0.0

    def __call__(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads:
        seen = (call.kind, call.layer, call.branch)
        if seen in self._seen:
            return self._kernel(q, k, v, call)
        out = None if self.dropped else self._tried(q, k, v, call)
        if out is None:
            return BACKENDS[self.other].attend(q, k, v, call)
        self._seen.add(seen)
        return out

    def _tried(self, q: Heads, k: Keys, v: Keys, call: AttendCall) -> Heads | None:
        """What the kernel makes of it, if that is right."""
        place = f"in {call.kind} attention of layer {call.layer + 1}, step {call.step + 1}"
        try:
            out = self._kernel(q, k, v, call)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  kernels raise whatever the libraries below them raise
            self.drop(f"{(str(error).splitlines() or [type(error).__name__])[0][:200]} ({place})")
            return None
        off = distance(out, q, k, v, call)
        self._worst = max(self._worst, off)
        if off <= self._bound:
            return out
        what = "it gave NaN or infinity" if math.isnan(off) else f"it was off by {off:.1e} of the result"
        self.drop(f"{what} {place}; {self._bound:g} is allowed")
        return None

    def drop(self, why: str) -> None:
        """For good: what a loaded model's kernel got wrong once, it is not asked again."""
        self.dropped = why
        self.__name__ = f"{self.other} after {self.kernel_name}"
        self._seen.clear()
        self._news = f"attention {self.kernel_name} was dropped, {self.other} goes on: {why}"

    def restore(self) -> None:
        """Nothing was wrong with it here."""
        self.dropped, self.__name__ = "", self.kernel_name
        self._seen.clear()

    def news(self) -> str:
        """What has to be told, once."""
        told, self._news = self._news, ""
        return told

    @property
    def verdict(self) -> str:
        if self.dropped:
            return f"{self.kernel_name} dropped, {self.other} used: {self.dropped}"
        if not self._seen:
            return ""
        return f"{self.kernel_name}: first step within {self._worst:.1e} of the definition; {self._bound:g} allowed"


def distance(out: Heads, q: Heads, k: Keys, v: Keys, call: AttendCall) -> float:
    """The largest relative error of a head, by a few queries; NaN if anything in the output is not finite."""
    n, worst = q.shape[2], torch.zeros((), device=q.device)
    rows = torch.linspace(0, n - 1, min(n, QUERIES), device=q.device).round().long()
    for head in range(q.shape[1]):
        one = slice(head, head + 1)
        truth = reference(q[:, one, rows].float(), k[:, one], v[:, one], call)
        error = (out[:, one, rows].float() - truth).norm() / truth.norm().clamp(min=1e-20)
        worst = torch.maximum(worst, error)
    return float(worst + 0 * out.sum(dtype=torch.float32))  # 0 * inf is NaN


def checks(model: Transformer) -> Iterator[Checked]:
    for attend in model.attends:
        if isinstance(attend, Checked):
            yield attend


def begin(model: Transformer) -> None:
    for check in checks(model):
        check.begin()


def news(model: Transformer) -> list[str]:
    return [told for check in checks(model) if (told := check.news())]


def verdict(model: Transformer) -> str:
    return "; ".join(filter(None, (check.verdict for check in checks(model))))


@contextmanager
def as_before(model: Transformer, attention: str) -> Iterator[None]:
    """For one clip, go on as its snapshot's conditions say: without a kernel that was dropped before."""
    aside = [
        check
        for check in checks(model)
        if attention == f"{check.other} after {check.kernel_name}" and not check.dropped
    ]
    for check in aside:
        check.drop("it was dropped before the snapshot was made")
        check.news()
    try:
        yield
    finally:
        for check in aside:
            check.restore()
