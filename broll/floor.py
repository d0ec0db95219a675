"""Who uses a loaded model: one alone, or several whose clips are made together (engine/batching.py)."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Kind = tuple[object, ...] | None  # None: alone
LOOK_S = 0.1


@dataclass
class Floor:
    shared: Any = None  # what those inside have in common; nothing when the first of them comes
    _inside: list[Kind] = field(default_factory=list)
    _waiting: deque[object] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def entered(self, kind: Kind, check: Callable[[], None]) -> Iterator[None]:
        """In the order in which they come, so that nobody waits for ever; `check` may raise meanwhile."""
        me = object()
        with self._changed:
            self._waiting.append(me)
            try:
                while self._waiting[0] is not me or not self._open(kind):
                    self._changed.wait(LOOK_S)
                    check()
                if not self._inside:
                    self.shared = None
                self._inside.append(kind)
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside.remove(kind)
                self._changed.notify_all()

    def _open(self, kind: Kind) -> bool:
        return not self._inside or (kind is not None and all(other == kind for other in self._inside))
