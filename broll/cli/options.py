"""Options that several commands have, with one name, one type and one help."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None, typer.Option(help="A model's name, or its folder. Without it, the best one here.")
]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, such as 832x480.", metavar="WxH")]
Seconds = Annotated[float | None, typer.Option(help="Length, to the nearest possible.")]
Start = Annotated[Path | None, typer.Option(help="The picture to start from.")]
Frames = Annotated[int | None, typer.Option(help="Length in frames, 4k+1: 17, 33, 49, 81 ...")]
