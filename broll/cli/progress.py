"""One display of what is going on: a bar on a terminal, a few plain lines elsewhere, nothing when quiet."""

import sys
import time
from typing import Any, Protocol

from broll.cli.output import duration, say


class Display(Protocol):
    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins."""

    def at(self, done: int, left_s: float) -> None:
        """So much of it is done."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Quiet:
    def stage(self, name: str, total: int | None = None) -> None: ...

    def at(self, done: int, left_s: float) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A line when a stage begins, and then at each tenth of it or after ten seconds."""

    def __init__(self) -> None:
        self._name, self._total, self._tenth, self._said = "", 0, 0, 0.0

    def stage(self, name: str, total: int | None = None) -> None:
        self._name, self._total, self._tenth, self._said = name, total or 0, 0, time.monotonic()
        if total is None:
            say(name)

    def at(self, done: int, left_s: float) -> None:
        tenth, now = done * 10 // max(1, self._total), time.monotonic()
        if tenth > self._tenth or now - self._said > 10 or done == 1:
            self._tenth, self._said = tenth, now
            say(f"{self._name} {done}/{self._total}, {duration(left_s)} left")

    def close(self) -> None: ...


class Bar:
    """stage, bar, step, time so far, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.fields[count]:>9}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: Any = self._progress.add_task("", total=None, count="", left="")
        self._total: int | None = None
        self._progress.start()

    def stage(self, name: str, total: int | None = None) -> None:
        self._total = total
        count = f"0/{total}" if total else ""
        self._progress.update(self._task, description=name, total=total, completed=0, count=count)

    def at(self, done: int, left_s: float) -> None:
        left = f"{duration(left_s)} left"
        self._progress.update(self._task, completed=done, count=f"{done}/{self._total}", left=left)

    def close(self) -> None:
        self._progress.stop()


def display(*, quiet: bool) -> Display:
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()
