"""Whether the parts behind the API answer.

Load balancers ask, and anyone may, often: so the parts are asked every few seconds at most, and never for longer.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from broll.errors import BrollError

FRESH_S = 5.0
PATIENCE_S = 5.0


@dataclass
class Readiness:
    """`probe` raises when something does not answer. One probe at a time; a slow one counts as no answer."""

    probe: Callable[[], None]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: threading.Thread | None = None
    _at: float = -FRESH_S
    _trouble: str = ""

    def trouble(self) -> str:
        """What is wrong, in a word; nothing if all is well."""
        with self._lock:
            fresh = time.monotonic() - self._at < FRESH_S
            if not fresh and (self._running is None or not self._running.is_alive()):
                self._running = threading.Thread(target=self._ask, daemon=True)
                self._running.start()
            running = self._running
        if fresh:
            return self._trouble
        assert running is not None
        running.join(PATIENCE_S)
        return "no answer" if running.is_alive() else self._trouble

    def _ask(self) -> None:
        trouble = ""
        try:
            self.probe()
        except BrollError as error:
            trouble = error.code
        except Exception as error:  # noqa: BLE001  whatever it is, the service is not ready
            trouble = type(error).__name__
        self._trouble, self._at = trouble, time.monotonic()
