"""What a step-distilled LoRA was made for: few steps, no guidance, its own shift.

The first that is there says it: FILE.toml beside the file, `broll.steps` and the like in its header, its name.

    # style.toml                   all optional
    steps = 4
    guidance = 1
    shift = 5
    sampler = "euler"
    grid = "distilled"
    weight = 1.0
    source = "where these numbers come from"

Names know LightX2V, CausVid, AccVideo and FusionX. Not FastWan and other DMD models, whose sampler draws fresh
noise between steps, which none here does; and nothing of WAN 2.2, whose LoRAs come in pairs for two transformers.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from broll.engine.lora_files import Lora
from broll.errors import BadCheckpoint, BadRequest
from broll.spec import parse


@dataclass(frozen=True)
class Recommended:
    """Options that a LoRA wants; None where it does not care. `weight` is for who gives none."""

    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    sampler: str | None = None
    grid: str | None = None
    weight: float = 1.0
    source: str = ""

    @property
    def distilled(self) -> bool:
        """Made for one forward a step: a negative prompt has no effect, and a step cache nothing to skip."""
        return self.guidance == 1


KNOWN: tuple[tuple[str, Recommended], ...] = (
    (
        r"fusioni?x",
        Recommended(8, 1.0, 2.0, source="https://github.com/deepbeepmeep/Wan2GP docs/LORAS.md"),
    ),
    (
        r"causvid",
        Recommended(12, 1.0, 7.0, weight=0.3, source="https://github.com/deepbeepmeep/Wan2GP docs/LORAS.md"),
    ),
    (
        r"accvid",  # of AccVideo
        Recommended(10, 1.0, 5.0, "unipc", source="https://github.com/aejion/AccVideo README.md"),
    ),
    (
        r"lightx2v|cfg_?step_?distill|step_?distill_?cfg",  # denoising_step_list 1000, 750, 500, 250
        Recommended(
            4,
            1.0,
            5.0,
            "euler",
            "distilled",
            source="https://github.com/ModelTC/LightX2V configs/distill/wan21",
        ),
    ),
)
OTHER_MODELS = re.compile(r"wan[_.-]?2[_.-]?2|a14b|high_?noise|low_?noise", re.IGNORECASE)
NUMBERS = ("steps", "guidance", "shift", "sampler", "grid")
HEADER = "broll."


def facts(lora: Lora) -> Recommended | None:
    """What this LoRA says about how it is used; None if nothing is known."""
    beside = lora.path.with_suffix(".toml")
    if beside.is_file():
        return checked(declared(beside), str(beside))
    header = {key.removeprefix(HEADER): v for key, v in lora.metadata.items() if key.startswith(HEADER)}
    if header:
        return checked(header, f"the header of {lora.path}")
    return named(f"{lora.path.stem} {lora.name}")


def named(text: str) -> Recommended | None:
    """What the published name of a LoRA or a checkpoint says."""
    if OTHER_MODELS.search(text):
        return None
    found = (made for pattern, made in KNOWN if re.search(pattern, text, re.IGNORECASE))
    return next(found, None)


def declared(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path} cannot be read: {error}") from error


def checked(values: Mapping[str, object], source: str) -> Recommended:
    """Numbers that a spec would accept too."""
    possible = [field.name for field in fields(Recommended)]
    odd = next((key for key in values if key not in possible), None)
    if odd is not None:
        raise BadCheckpoint(f"{source} says {odd!r}; it can say {', '.join(possible)}")
    try:
        weight = float(str(values.get("weight", 1.0)))
        if not -10 <= weight <= 10:
            raise BadCheckpoint(f"{source}: weight is {weight:g}; it can be -10 to 10")
        spec = parse(model="lora", prompt="-", **{key: values[key] for key in NUMBERS if key in values})
    except (BadRequest, ValueError) as error:
        raise BadCheckpoint(f"{source}: {error}") from None
    return Recommended(
        steps=spec.steps,
        guidance=spec.guidance,
        shift=spec.shift,
        sampler=spec.sampler,
        grid=spec.grid,
        weight=weight,
        source=str(values.get("source", source)),
    )
