"""Server-sent events: bytes to events.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

Lines end with CR, LF or both, and with nothing else: `str.splitlines` would also cut at U+2028, which a prompt
may contain. An event is what stands before an empty line; what a broken connection cut off is no event.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from broll.client import job as jobs
from broll.client.job import Job

END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a CR at the very end may be half of a CR LF


@dataclass(frozen=True)
class Event:
    kind: str  # status, stage, progress, preview or done; a newer server may have more
    data: dict[str, Any] = field(default_factory=dict, hash=False)
    id: str = ""

    @property
    def job(self) -> Job | None:
        """Of status and done."""
        return jobs.parse(self.data) if "job_id" in self.data else None

    @property
    def preview(self) -> bytes | None:
        """A small WebP."""
        try:
            return base64.b64decode(self.data.get("webp") or "") or None
        except (binascii.Error, TypeError):
            return None


class Parser:
    """Of one connection. `last_id` is what the next one should ask for."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self._rest = b""
        self._kind, self._data = "", list[str]()

    def feed(self, chunk: bytes) -> Iterator[Event]:
        *lines, self._rest = END.split(self._rest + chunk)
        for line in lines:
            event = self._line(line.decode("utf-8", "replace").removeprefix("\ufeff"))
            if event:
                yield event

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self.last_id = value
        return None

    def _dispatch(self) -> Event | None:
        kind, text = self._kind or "message", "\n".join(self._data)
        self._kind, self._data = "", []
        if not text:
            return None
        try:
            data = json.loads(text)
        except ValueError:
            return None
        return Event(kind, data if isinstance(data, dict) else {"value": data}, self.last_id)
