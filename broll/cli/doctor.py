"""`broll doctor`: what will work here, and what to do about the rest.

ok      works
warn    works worse than it could, or a part is missing that not everyone needs
fail    nothing can be generated; the exit status is 1
"""

import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broll import __version__
from broll.cli.output import duration, gigabytes, speeds

if TYPE_CHECKING:
    from broll.settings import Settings

ENGINE = (
    "torch",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "av",
    "cv2",
    "ftfy",
    "sentencepiece",
    "jaxtyping",
)
ENCODERS = {"libx264": "mp4", "libvpx-vp9": "webm", "gif": "gif"}
GET_ENGINE = 'pip install "broll[engine]"'


@dataclass(frozen=True)
class Check:
    name: str
    status: str  # ok, warn or fail
    detail: str
    advice: str = ""


def checks(settings: "Settings") -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield Check("broll", "ok", __version__)
    missing = [name for name in ENGINE if importlib.util.find_spec(name) is None]
    if missing:
        yield Check("engine", "fail", f"{', '.join(missing)} not installed", GET_ENGINE)
    else:
        yield Check("engine", "ok", "installed")
    if "torch" not in missing:
        yield from device_checks(settings)
    yield from memory_checks(settings)
    yield weights_check(settings)
    if not missing:
        yield from plan_checks(settings)
    if "av" not in missing:
        yield from codec_checks()


def device_checks(settings: "Settings") -> Iterator[Check]:
    import torch

    from broll import wiring

    yield Check("torch", "ok", torch.__version__)
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield Check("gpu", "ok", f"{facts.name}, {gigabytes(facts.total_memory)}")
    if not torch.cuda.is_available():
        yield Check(
            "gpu", "warn", "none", "nano runs well without; the WAN models want a GPU with 16 GB or more"
        )
    wiring.use_threads(settings)
    features = torch.backends.cpu.get_cpu_capability()
    fast = wiring.fast_bf16()
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    detail = f"{features}, {threads}, bf16 {'fast' if fast else 'slow'}"
    advice = "" if fast else "the WAN models compute in fp32 on this CPU, which takes longer"
    yield Check("cpu", "ok" if fast else "warn", detail, advice)


def memory_checks(settings: "Settings") -> Iterator[Check]:
    from broll.catalog import free_main_memory

    free = free_main_memory()
    status = "ok" if free > 1e9 else "warn"
    yield Check(
        "memory", status, f"{gigabytes(free)} free", "" if status == "ok" else "nano needs about 0.7 GB"
    )
    for name, folder in (("models", settings.models), ("data", settings.data)):
        there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
        space, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        detail = f"{folder}, {gigabytes(space)} free on disk"
        if not writable:
            yield Check(
                name, "warn", f"{detail}, not writable", f"set BROLL_{name.upper()} to another folder"
            )
        else:
            low = space < 1e9
            yield Check(name, "warn" if low else "ok", detail, "make room on this disk" if low else "")


def weights_check(settings: "Settings") -> Check:
    from broll import catalog

    here = catalog.installed(settings)
    if here:
        return Check("weights", "ok", ", ".join(here))
    return Check(
        "weights",
        "fail",
        "no model is here",
        f"{catalog.how_to_get('nano')}, or see broll models list",
    )


def plan_checks(settings: "Settings") -> Iterator[Check]:
    """Each model's default clip, by the measured rates of this machine."""
    from broll import catalog, nearest
    from broll import plan as plans
    from broll.errors import BrollError
    from broll.spec import parse

    for name, model in catalog.installed(settings).items():
        try:
            _, config = plans.wanted(settings, name)
            spec = plans.whole(parse(model=name, prompt="a clip"), config)
            made = plans.local(spec, config, settings, model)
        except BrollError as error:
            yield Check("plan", "warn", f"{name}: {error}")
            continue
        rates, precision = speeds(made.target.rates), plans.words(made.target.precision)
        yield Check("rate", "ok", f"{name}: {rates} in {precision}")
        clip = f"{name}: {nearest.shown(spec)} in {duration(made.total_s)}, {gigabytes(made.estimate.memory_bytes)}"
        switched = "".join(f", {lever.words}" for lever in made.on)
        advice = "" if made.fits else nearest.sentence(made, config)
        yield Check("plan", "ok" if made.fits else "warn", clip + switched, advice)


def codec_checks() -> Iterator[Check]:
    import av

    there = [codec for codec in ENCODERS if codec in av.codecs_available]
    for codec, form in ENCODERS.items():
        if codec in there:
            yield Check("codec", "ok", f"{codec}, for {form}")
            continue
        status = "warn" if there else "fail"
        yield Check(
            "codec", status, f"{codec} is missing: no {form} files", "pip install --force-reinstall av"
        )


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Check what will work on this machine, and say what to do about the rest."""
    from broll.settings import Settings

    found = list(checks(Settings()))
    works = not any(check.status == "fail" for check in found)
    if as_json:
        print(json.dumps({"works": works, "checks": [asdict(check) for check in found]}))
        return 0 if works else 1
    colours = {"ok": "\33[32m", "warn": "\33[33m", "fail": "\33[31m"} if sys.stdout.isatty() else {}
    for check in found:
        mark = f"{colours.get(check.status, '')}{check.status:<5}{chr(27) + '[0m' if colours else ''}"
        print(
            f"{mark} {check.name:<8} {check.detail}" + (f"\n{'':<15}{check.advice}" if check.advice else "")
        )
    return 0 if works else 1
