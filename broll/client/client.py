"""The client that waits in place.

    with Client() as broll:
        broll.generate("a lighthouse at dusk, the camera circles it", "lighthouse.mp4")

`async_client.py` has the same methods. Both only send what `calls` and `flows` describe.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from broll.client import calls, flows
from broll.client.calls import Call, Image, Object
from broll.client.connection import Connection, answer
from broll.client.errors import ApiError, ConnectionFailed, refusal
from broll.client.event_stream import Event, Parser
from broll.client.flows import Answer, Flow
from broll.client.job import Job
from broll.client.part_file import PartFile
from broll.client.retries import Attempts, Retries

T = TypeVar("T")


class Client:
    """Jobs on a `broll serve`: base_url, else BROLL_SERVER, else this machine; api_key, else BROLL_KEY."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retries: Retries | None = None,
    ) -> None:
        self._connection = Connection.of(base_url, api_key, timeout_s, retries)
        self._http = httpx.Client(**self._connection.options())

    @property
    def base_url(self) -> str:
        return self._connection.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- a clip -------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str,
        path: str | Path | None = None,
        *,
        image: Image | None = None,
        timeout_s: float = 3600.0,
        **fields: Any,
    ) -> Job:
        """Submit, wait, and download to `path` if there is one; GenerationFailed if there is no clip."""
        job = self.submit(prompt, image=image, **fields)
        job = self.wait(job.id, timeout_s).checked()
        if path is not None:
            self.download(job.id, path)
        return job

    def submit(
        self,
        prompt: str,
        *,
        image: Image | None = None,
        last_image: Image | None = None,
        duration: float | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Job:
        """Ask for a clip. `fields` are those of POST /v1/video/generate: size, seed, model, steps ..."""
        return self._send(
            calls.submit(
                prompt,
                image=image,
                last_image=last_image,
                idempotency_key=idempotency_key,
                duration=duration,
                **fields,
            )
        )

    def estimate(self, prompt: str, *, image: Image | None = None, **fields: Any) -> Object:
        """What it would cost, in credits, seconds and memory."""
        return self._send(calls.estimate(prompt, image=image, **fields))

    def check_prompt(self, prompt: str, **fields: Any) -> Object:
        """What a prompt lacks, where, and how to mend it; `fields` say what it is for (model, seconds, preset ...)."""
        return self._send(calls.prompt("check", prompt, fields))

    def rewrite_prompt(self, prompt: str, **fields: Any) -> Object:
        """The prompt in order and with what it lacks, each addition with an id; `without` leaves some out."""
        return self._send(calls.prompt("rewrite", prompt, fields))

    def upload(self, image: str | Path | bytes) -> Object:
        """Keep a picture there; its "id" can be given as `image`."""
        return self._send(calls.upload(image))

    # --- jobs ---------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        return self._send(calls.job(job_id))

    def jobs(
        self, *, status: str | None = None, order: str = "desc", limit: int | None = None
    ) -> Iterator[Job]:
        """All of them, newest first, or the first `limit`; pages are asked for as they are needed."""
        after, left = None, limit
        while left is None or left > 0:
            size = min(100, left or 100)
            page = self._send(calls.job_page(limit=size, after=after, order=order, status=status))
            yield from page.items[:left]
            after, left = page.after, None if left is None else left - len(page.items)
            if after is None:
                return

    def wait(self, job_id: str, timeout_s: float = 3600.0) -> Job:
        """The job once it is done, completed or failed; WaitTimeout if it takes longer."""
        return self._run(flows.wait(job_id, timeout_s, self._connection.retries))

    def stream(self, job_id: str) -> Iterator[Event]:
        """What happens, as it happens, until `done`; a broken connection is taken up where it broke."""
        attempts, last_id = Attempts(self._connection.retries), ""
        while True:
            failure: ApiError | ConnectionFailed
            failure = ConnectionFailed(f"{self.base_url} ended the events of {job_id} before it was done")
            try:
                with self._open(calls.events(job_id, last_id)) as response:
                    parser = Parser(last_id)
                    for chunk in response.iter_bytes():
                        for event in parser.feed(chunk):
                            attempts.worked()
                            last_id = event.id
                            yield event
                            if event.kind == "done":
                                return
            except (ApiError, ConnectionFailed) as broken:
                failure = broken
            time.sleep(attempts.pause_s(failure))

    def cancel(self, job_id: str) -> Job:
        return self._send(calls.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """A new job like a failed one."""
        return self._send(calls.retry(job_id))

    def delete(self, job_id: str) -> None:
        self._send(calls.delete(job_id))

    def download(self, job_id: str, path: str | Path, variant: str = "video") -> Path:
        """The finished file: video, thumbnail, spritesheet, gif or preview. Whole, or not there."""
        attempts = Attempts(self._connection.retries)
        with PartFile(calls.place(job_id, path, variant)) as part:
            while True:
                try:
                    with self._open(calls.content(job_id, variant, part.headers())) as response:
                        part.begin(response.status_code, response.headers)
                        for chunk in response.iter_raw():
                            if part.write(chunk):
                                attempts.worked()
                    return part.finish()
                except (ApiError, ConnectionFailed) as failure:
                    time.sleep(attempts.pause_s(failure))

    # --- models, credits, keys ----------------------------------------------------------------------------

    def models(self) -> list[Object]:
        return self._send(calls.models())

    def credits(self) -> Object:
        return self._send(calls.credit())

    def ledger(self) -> Iterator[Object]:
        """Every movement of credits."""
        page = self._send(calls.ledger_page())
        yield from page.items
        while page.after is not None:
            page = self._send(calls.ledger_page(after=page.after))
            yield from page.items

    def keys(self) -> list[Object]:
        return self._send(calls.keys())

    def create_key(self, name: str, **fields: Any) -> Object:
        """`fields`: scopes, expires_in_s, cap. Its "key" is shown this once."""
        return self._send(calls.create_key(name, **fields))

    def rotate_key(self, key_id: str, *, overlap_s: int | None = None) -> Object:
        return self._send(calls.rotate_key(key_id, overlap_s=overlap_s))

    def revoke_key(self, key_id: str) -> None:
        self._send(calls.revoke_key(key_id))

    # --- sending ------------------------------------------------------------------------------------------

    def _send(self, call: Call[T]) -> T:
        return self._run(flows.exchange(call, self._connection.retries))

    def _run(self, flow: Flow[T]) -> T:
        try:
            ask = next(flow)
            while True:
                try:
                    told = self._do(ask)
                except ConnectionFailed as failure:
                    ask = flow.throw(failure)
                else:
                    ask = flow.send(told)
        except StopIteration as end:
            return end.value

    def _do(self, ask: Call[Any] | float) -> Answer:
        if isinstance(ask, float):
            time.sleep(ask)
            return Answer()
        with self._connection.reaching():
            return answer(self._http.send(self._connection.request(self._http, ask)))

    @contextmanager
    def _open(self, call: Call[Any]) -> Iterator[httpx.Response]:
        """An answer whose body is read as it comes."""
        with self._connection.reaching():
            request = self._connection.request(self._http, call)
            response = self._http.send(request, stream=True, follow_redirects=True)
            try:
                if response.status_code >= 300:
                    raise refusal(response.status_code, response.headers, response.read())
                yield response
            finally:
                response.close()
