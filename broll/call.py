"""From words to a file in one call: `broll.clip`."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broll import catalog, group, loras, ready, takes, wiring
from broll import plan as plans
from broll.clips import Clip
from broll.engine.config import frames_of
from broll.errors import BadOption
from broll.settings import Settings
from broll.spec import parse


def clip(
    prompt: str,
    out: str | Path,
    *,
    model: str | None = None,
    image: str | Path | None = None,
    last_image: str | Path | None = None,
    seconds: float | None = None,
    lora: Sequence[str] = (),
    **fields: Any,
) -> Clip:
    """A clip of the prompt, as a file. Without `model`, the best one here.

    `image`, `last_image`: pictures to start and to end with. `seconds`: to the nearest length there is. `lora`: each as
    NAME[:WEIGHT[:FIRST-LAST]], a name or a path. `fields`: the others of VideoSpec, such as width, height, seed, steps,
    takes. The settings (BROLL_..., broll.toml) hold as for the command. Raises BrollError.
    """
    # ruff: noqa: PLC0415  torch is loaded when a clip is made
    from broll.engine import pipeline
    from broll.media.video_file import check_output

    settings, path = Settings(), Path(out)
    if group.started() > 1:
        raise BadOption("under torchrun clips are made by the command; in Python, set BROLL_GROUP instead")
    ending = check_output(path)
    wiring.use_threads(settings)
    if seconds is not None and "frames" in fields:
        raise BadOption("seconds and frames say the same thing: give one of them")
    files = {"image": image, "last_image": last_image}
    pictures = {name: wiring.read_picture(Path(file)) for name, file in files.items() if file is not None}
    found = catalog.find(settings, model) if model else catalog.best(settings, catalog.task_for(pictures))
    config = wiring.describe(found)
    artifacts = {name: picture.artifact for name, picture in pictures.items()}
    uses, places = loras.wanted(settings, map(loras.parse, lora), paths=True)
    given = artifacts | fields | ({"loras": uses} if uses else {})
    asked = parse(model=found.name, prompt=prompt, **given)
    if seconds is not None:
        frames = frames_of(seconds, asked.fps or config.defaults.fps)
        asked = parse(**asked.model_dump() | {"frames": frames})
    asked, _ = loras.fitted(takes.retaken(asked), settings, places)
    takes.check(asked)
    spec = pipeline.resolve(asked, config, picture=pictures["image"].image if "image" in pictures else None)
    ready.check(spec, config, settings)
    merging = loras.merges(found, spec, settings)
    plan = plans.local(spec, config, settings, found, merging=merging)
    for picture in pictures.values():
        wiring.keep_picture(settings, picture)
    with group.leading() as lead:
        team = lead.begin(settings)
        parts, _ = ready.load(found, plan, config, settings, merging=merging, places=places, team=team)
        events = takes.make(spec, parts, path, format=ending, pictures=tuple(pictures.values()))
        (made,) = deque(events, maxlen=1)  # all steps and frames would be gigabytes
    assert isinstance(made, Clip)
    return made
