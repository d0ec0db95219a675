"""A process that helps another to make clips: it does what it is told (group.py), and writes and decides nothing.

`python -m broll.follower` is what a leader starts; under torchrun it is every process but the first. It ends when it is
told so, when its leader is gone, or with the first error, of which it says one line: then the whole group ends.

Signals are for the leader, who may still want to keep what was done; if this process is there 5 s later, it ends.
"""
# ruff: noqa: PLC0415  signals are blocked before torch starts its threads, which inherit that

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from broll import group, loras, wiring
from broll.errors import BrollError, GroupLost
from broll.group import Load, Make, Merge, Wear
from broll.settings import Settings

if TYPE_CHECKING:
    from broll.engine.load import Parts
    from broll.engine.mesh import Team

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_S = 5.0
END_S = 0.2


class Halted(Exception):
    """All stop this clip."""


class Follower:
    """The model as its leader has it."""

    def __init__(self, team: "Team", settings: Settings) -> None:
        self._team, self._settings = team, settings
        self._whole: Parts | None = None  # as it was loaded
        self._worn: Parts | None = None  # with the LoRAs of a clip

    def follow(self) -> None:
        """Until there is nothing more to do."""
        while True:
            with group.known():
                order = self._team.hear()
            if order is None:
                return
            with group.known():
                self._do(order)

    def _do(self, order: object) -> None:
        if isinstance(order, Load | Merge):
            self._whole = self._worn = None
            wiring.free()
            self._whole = self._worn = self._loaded(order)
        elif isinstance(order, Wear):
            assert self._whole is not None
            self._worn = loras.on(self._whole, order.spec, self._settings, order.places)[0]
        else:
            assert isinstance(order, Make)
            self._make(order)

    def _loaded(self, order: Load | Merge) -> "Parts":
        config = wiring.describe(order.model)
        wiring.use_threads(self._settings)
        if isinstance(order, Load):
            wiring.prepare_compiler(self._settings)
            return wiring.load(order.model, config, order.loading, prompts=order.prompts, team=self._team)
        return loras.merged(
            order.model, config, order.spec, self._settings, order.loading, order.places, team=self._team
        )[0]

    def _make(self, order: Make) -> None:
        from broll.engine import kernels, pipeline
        from broll.engine.interrupt import Interruptible

        parts = self._worn
        assert parts is not None
        model = parts.transformer
        model.stack = Interruptible(model, self._halt) if order.asked else model.run_blocks
        events = pipeline.generate(order.spec, parts, order.pictures, order.resume)
        before = kernels.as_before(model, order.attention)
        with before, contextlib.closing(events), contextlib.suppress(Halted):  # type: ignore[type-var]
            for _ in events:
                self._halt()
        gc.collect()

    def _halt(self) -> None:
        if not self._team.go():
            raise Halted


def serve(settings: Settings) -> int:
    """Join and follow; gives the exit status."""
    patient()
    try:
        with group.known():
            team = group.joined(settings)
        Follower(team, settings).follow()
    except GroupLost:
        return group.LOST  # the leader knows why
    except BrollError as error:
        said(f"error [{error.code}]: {error}")
        return error.exit_status
    except Exception as error:  # noqa: BLE001  whatever it was, the others must not wait
        said(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return group.LOST
    return 0


def said(text: str) -> None:
    sys.stderr.write(f"broll: process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: {text}\n")
    sys.stderr.flush()


def patient() -> None:
    """Signals reach a thread that waits, whatever the main thread waits for."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait() -> None:
        number = signal.sigwait(SIGNALS)
        time.sleep(PATIENCE_S)
        os._exit(128 + number)

    threading.Thread(target=wait, daemon=True).start()


def bound() -> None:
    """To a leader that holds the other end of stdin: when it is gone, so is this."""

    def wait() -> None:
        sys.stdin.buffer.read()
        time.sleep(END_S)  # told to end, it does so by itself
        os._exit(group.LOST)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    patient()
    bound()
    status = serve(Settings())
    sys.stderr.flush()
    os._exit(status)  # taking torch apart would cost a second
