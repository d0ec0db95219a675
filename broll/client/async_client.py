"""The client for asyncio: the methods of `client.py`, awaited.

    async with AsyncClient() as broll:
        await broll.generate("a lighthouse at dusk, the camera circles it", "lighthouse.mp4")

Pictures are read in a thread; a download is written where it arrives, some kilobytes at a time.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
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


class AsyncClient:
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
        self._http = httpx.AsyncClient(**self._connection.options())

    @property
    def base_url(self) -> str:
        return self._connection.base_url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # --- a clip -------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: str,
        path: str | Path | None = None,
        *,
        image: Image | None = None,
        timeout_s: float = 3600.0,
        **fields: Any,
    ) -> Job:
        """Submit, wait, and download to `path` if there is one; GenerationFailed if there is no clip."""
        job = await self.submit(prompt, image=image, **fields)
        job = (await self.wait(job.id, timeout_s)).checked()
        if path is not None:
            await self.download(job.id, path)
        return job

    async def submit(
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
        call = await asyncio.to_thread(
            calls.submit,
            prompt,
            image=image,
            last_image=last_image,
            idempotency_key=idempotency_key,
            duration=duration,
            **fields,
        )
        return await self._send(call)

    async def estimate(self, prompt: str, *, image: Image | None = None, **fields: Any) -> Object:
        """What it would cost, in credits, seconds and memory."""
        return await self._send(await asyncio.to_thread(calls.estimate, prompt, image=image, **fields))

    async def check_prompt(self, prompt: str, **fields: Any) -> Object:
        """What a prompt lacks, where, and how to mend it; `fields` say what it is for (model, seconds, preset ...)."""
        return await self._send(calls.prompt("check", prompt, fields))

    async def rewrite_prompt(self, prompt: str, **fields: Any) -> Object:
        """The prompt in order and with what it lacks, each addition with an id; `without` leaves some out."""
        return await self._send(calls.prompt("rewrite", prompt, fields))

    async def upload(self, image: str | Path | bytes) -> Object:
        """Keep a picture there; its "id" can be given as `image`."""
        return await self._send(await asyncio.to_thread(calls.upload, image))

    # --- jobs ---------------------------------------------------------------------------------------------

    async def job(self, job_id: str) -> Job:
        return await self._send(calls.job(job_id))

    async def jobs(
        self, *, status: str | None = None, order: str = "desc", limit: int | None = None
    ) -> AsyncIterator[Job]:
        """All of them, newest first, or the first `limit`; pages are asked for as they are needed."""
        after, left = None, limit
        while left is None or left > 0:
            size = min(100, left or 100)
            page = await self._send(calls.job_page(limit=size, after=after, order=order, status=status))
            for job in page.items[:left]:
                yield job
            after, left = page.after, None if left is None else left - len(page.items)
            if after is None:
                return

    async def wait(self, job_id: str, timeout_s: float = 3600.0) -> Job:
        """The job once it is done, completed or failed; WaitTimeout if it takes longer."""
        return await self._run(flows.wait(job_id, timeout_s, self._connection.retries))

    async def stream(self, job_id: str) -> AsyncGenerator[Event, None]:
        """What happens, as it happens, until `done`; a broken connection is taken up where it broke."""
        attempts, last_id = Attempts(self._connection.retries), ""
        while True:
            failure: ApiError | ConnectionFailed
            failure = ConnectionFailed(f"{self.base_url} ended the events of {job_id} before it was done")
            try:
                async with self._open(calls.events(job_id, last_id)) as response:
                    parser = Parser(last_id)
                    async for chunk in response.aiter_bytes():
                        for event in parser.feed(chunk):
                            attempts.worked()
                            last_id = event.id
                            yield event
                            if event.kind == "done":
                                return
            except (ApiError, ConnectionFailed) as broken:
                failure = broken
            await asyncio.sleep(attempts.pause_s(failure))

    async def cancel(self, job_id: str) -> Job:
        return await self._send(calls.cancel(job_id))

    async def retry(self, job_id: str) -> Job:
        """A new job like a failed one."""
        return await self._send(calls.retry(job_id))

    async def delete(self, job_id: str) -> None:
        await self._send(calls.delete(job_id))

    async def download(self, job_id: str, path: str | Path, variant: str = "video") -> Path:
        """The finished file: video, thumbnail, spritesheet, gif or preview. Whole, or not there."""
        attempts = Attempts(self._connection.retries)
        with PartFile(calls.place(job_id, path, variant)) as part:
            while True:
                try:
                    async with self._open(calls.content(job_id, variant, part.headers())) as response:
                        part.begin(response.status_code, response.headers)
                        async for chunk in response.aiter_raw():
                            if part.write(chunk):
                                attempts.worked()
                    return part.finish()
                except (ApiError, ConnectionFailed) as failure:
                    await asyncio.sleep(attempts.pause_s(failure))

    # --- models, credits, keys ----------------------------------------------------------------------------

    async def models(self) -> list[Object]:
        return await self._send(calls.models())

    async def credits(self) -> Object:
        return await self._send(calls.credit())

    async def ledger(self) -> AsyncIterator[Object]:
        """Every movement of credits."""
        page = await self._send(calls.ledger_page())
        for row in page.items:
            yield row
        while page.after is not None:
            page = await self._send(calls.ledger_page(after=page.after))
            for row in page.items:
                yield row

    async def keys(self) -> list[Object]:
        return await self._send(calls.keys())

    async def create_key(self, name: str, **fields: Any) -> Object:
        """`fields`: scopes, expires_in_s, cap. Its "key" is shown this once."""
        return await self._send(calls.create_key(name, **fields))

    async def rotate_key(self, key_id: str, *, overlap_s: int | None = None) -> Object:
        return await self._send(calls.rotate_key(key_id, overlap_s=overlap_s))

    async def revoke_key(self, key_id: str) -> None:
        await self._send(calls.revoke_key(key_id))

    # --- sending ------------------------------------------------------------------------------------------

    async def _send(self, call: Call[T]) -> T:
        return await self._run(flows.exchange(call, self._connection.retries))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            ask = next(flow)
            while True:
                try:
                    told = await self._do(ask)
                except ConnectionFailed as failure:
                    ask = flow.throw(failure)
                else:
                    ask = flow.send(told)
        except StopIteration as end:
            return end.value

    async def _do(self, ask: Call[Any] | float) -> Answer:
        if isinstance(ask, float):
            await asyncio.sleep(ask)
            return Answer()
        with self._connection.reaching():
            return answer(await self._http.send(self._connection.request(self._http, ask)))

    @asynccontextmanager
    async def _open(self, call: Call[Any]) -> AsyncIterator[httpx.Response]:
        """An answer whose body is read as it comes."""
        with self._connection.reaching():
            request = self._connection.request(self._http, call)
            response = await self._http.send(request, stream=True, follow_redirects=True)
            try:
                if response.status_code >= 300:
                    raise refusal(response.status_code, response.headers, await response.aread())
                yield response
            finally:
                await response.aclose()
