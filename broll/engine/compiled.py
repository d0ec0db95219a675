"""What torch's compiler makes of a function, tried beside the function itself: what fails is dropped, with a warning.

    run    the fast way of something; the first time in a clip both ways, and what the slow one gives decides

A compiler may be missing half, refuse a shape or be wrong, as a kernel of attention may (kernels.py). So the first
result of each function in a clip is compared with its slow twin's: all its numbers together, by the size of the truth.
Then `Dropped` is raised, whoever called goes the slow way, and this model asks for it no more.

Only the sizes that are said to vary are compiled for all.
"""

import functools
import importlib.util
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from broll.errors import BadOption

AUTO, ON, OFF = "auto", "on", "off"
TRITON = (7, 0)  # compute capability from which it makes kernels: https://github.com/triton-lang/triton
BOUND_FP32, BOUND = 1e-4, 2e-2  # relative; numbers of 16 and 8 bits may round to their neighbours
SHAPES = 64  # that a function may be compiled for; torch's own 8 are fewer than a service is asked for
FOLDER, THREADS, OWN = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS", "torchinductor_"
Backend = str | Callable[..., Any]  # of torch.compile


class Dropped(Exception):
    """The slow way has to be taken."""


class Compiler:
    """What is compiled for one loaded model. `backend` None takes the functions as they are: the algebra alone."""

    def __init__(self, how: str = OFF, backend: Backend | None = "inductor") -> None:
        self.how, self._backend = how, backend
        self.dropped: dict[str, str] = {}  # feature: why
        self._seen: set[tuple[str, str]] = set()
        self._news: list[str] = []

    def begin(self) -> None:
        """A new clip: first results are compared again."""
        self._seen.clear()

    def makes(self, feature: str) -> bool:
        return self.how != OFF and feature not in self.dropped

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self._backend is None else compiled(function, self._backend)

    def run(self, feature: str, name: str, fast: Callable[[], Any], slow: Callable[[], Any]) -> Any:
        """`name`: which of the feature's functions it is."""
        try:
            out = fast()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  compilers raise whatever the libraries below them raise
            raise self._drop(feature, f"{name}: {' '.join(str(error).split())[:300]}") from None
        if (feature, name) in self._seen:
            return out
        off, bound = distance(out, slow())
        if not off <= bound:  # NaN too
            raise self._drop(feature, f"{name} was off by {off:.1e} of the result; {bound:g} is allowed")
        self._seen.add((feature, name))
        return out

    def _drop(self, feature: str, why: str) -> Dropped:
        self.dropped[feature] = why
        self._news.append(f"compile: {feature} dropped, the plain way goes on: {why}")
        return Dropped(why)

    def news(self) -> list[str]:
        """What has to be told, once."""
        told, self._news = self._news, []
        return told


@functools.cache
def compiled(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    """Once a process; models of one shape share it. Whole or not at all: half of it could need n x n numbers."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, SHAPES)
    plain = inspect.unwrap(function)  # tests check what each function is given
    return torch.compile(plain, dynamic=False, fullgraph=True, backend=backend)


def keep(folder: Path) -> None:
    """Where the compiler keeps what it made, unless somebody has said where, or by how many processes.

    When transformers is imported, torch already says that it is the folder of temporary files; that is nobody's wish.
    """
    given = Path(os.environ.get(FOLDER, ""))
    if given.name == "" or (given.parent == Path(tempfile.gettempdir()) and given.name.startswith(OWN)):
        os.environ[FOLDER] = str(folder)
    if THREADS not in os.environ:
        from torch._inductor import config  # noqa: PLC0415  only for who asks

        config.compile_threads = 1  # a dozen kernels: starting other processes for them costs more


def varied(*values: Any) -> None:
    """Say that these may have any number of tokens, which is the last dimension but one."""
    for value in values:
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[-2] > 1:
            torch._dynamo.maybe_mark_dynamic(value, value.dim() - 2)


def distance(out: Any, truth: Any) -> tuple[float, float]:
    """The largest relative error of these tensors, and the bound of that one."""
    outs, truths = ((given,) if isinstance(given, Tensor) else given for given in (out, truth))
    found = []
    for one, wanted in zip(outs, truths, strict=True):
        off = float((one.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-20))
        found.append((off, BOUND_FP32 if one.dtype == torch.float32 else BOUND))
    return max(found, key=lambda pair: pair[0] / pair[1] if pair[0] == pair[0] else torch.inf)


# --- the choice -------------------------------------------------------------------------------------------


def refusal(device: torch.device) -> str:
    """Why nothing can be compiled for this device; empty if it can."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed (pip install triton)"
        capability = torch.cuda.get_device_capability(device)
        have, need = (".".join(map(str, pair)) for pair in (capability, TRITON))
        return "" if capability >= TRITON else f"it needs compute capability {need}; this GPU has {have}"
    if device.type != "cpu":
        return f"it needs a CUDA GPU or a CPU; the device here is {device.type}"
    from torch._inductor import config  # noqa: PLC0415  only for who asks

    compiler = config.cpp.cxx[1]
    return "" if shutil.which(compiler) else f"it needs a C++ compiler, and there is no {compiler} here"


def chosen(how: str, device: torch.device) -> str:
    """auto, where the clip decides, on or off; or one line that says why not. On a CPU only for who asks."""
    if how not in (AUTO, ON, OFF):
        raise BadOption(f"compile is {how!r}; possible are auto, on and off")
    if how == OFF or (how == AUTO and device.type != "cuda"):
        return OFF
    why = refusal(device)
    if why and how == ON:
        raise BadOption(f"compile on is not possible here: {why}. Possible are auto and off")
    return OFF if why else how
