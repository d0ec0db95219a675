"""The job service: `python benchmarks/service.py [--json FILE] [--cases ...] [--database postgresql://...]`.

    submit     submits a second and their 99th percentile, while 1,000 clients wait for jobs (`Prefer: wait`)
    claim      time to claim with 20,000 waiting jobs of 100 tenants
    first      time from submit to the first denoising step, with a warm model
    overhead   a nano clip through the service beside the engine alone, in alternating runs: seconds and share

Real HTTP over loopback, a real process for the server. Without --database, SQLite in a temporary folder; with
"postgresql" alone, a PostgreSQL from pip. Peers keep their jobs in one process's memory and have nothing to compare
with: the ratio given is to the engine.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from broll.jobs import keys
from broll.jobs.database import Database
from broll.jobs.job import NewJob, Policy
from broll.jobs.leases import Device, Leases
from broll.jobs.store import Store

KEY = "a-key-for-the-benchmark-only"
PROMPT = "a lake at sunset, pan left"
CASES = ("submit", "claim", "first", "overhead")


def middle(values: list[float], share: float = 0.5) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@contextlib.contextmanager
def database_url(asked: str, folder: Path) -> Iterator[str]:
    if asked == "sqlite":
        yield f"sqlite:///{folder / 'broll.db'}"
    elif asked == "postgresql":
        sys.path.insert(0, str(Path(__file__).parent.parent))
        from tests import databases

        with (
            databases.postgresql_server(folder / "pg") as server,
            databases.empty_database(asked, folder, server) as url,
        ):
            yield url
    else:
        yield asked


@contextlib.contextmanager
def served(folder: Path, url: str, role: str) -> Iterator[tuple[httpx.Client, int]]:
    """A server process of its own: a client of it, and its id."""
    env = os.environ | {
        "BROLL_DATA": str(folder), "BROLL_DATABASE": url, "BROLL_ADMIN_KEY": KEY, "BROLL_PORT": "0",
        "BROLL_LOG_LEVEL": "error", "BROLL_ROLE": role,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "broll", "serve"], env=env, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "serving on" in line)
        base = line.split("serving on ")[1].split(";")[0]
        threading.Thread(target=process.stderr.read, daemon=True).start()
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=base, headers=headers, timeout=300, trust_env=False) as client:
            yield client, process.pid
    finally:
        process.terminate()
        process.wait(60)


def tenant(client: httpx.Client) -> str:
    """A key that may ask often."""
    fields = {
        "name": f"bench-{time.time_ns()}",
        "unmetered": True,
        "requests_per_minute": 10**6,
        "max_queued": 10**6,
    }
    made = client.post("/v1/admin/tenants", json=fields).raise_for_status().json()["id"]
    return client.post(f"/v1/admin/tenants/{made}/api-keys", json={}).raise_for_status().json()["key"]


async def waiter(host: str, port: int, key: str, job: str, until: float, counted: list[int]) -> None:
    """One client that waits for a job, again and again, over a connection that it keeps."""
    reader, writer = await asyncio.open_connection(host, port)
    head = f"GET /v1/jobs/{job} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nPrefer: wait=20\r\n\r\n"
    with contextlib.suppress(asyncio.IncompleteReadError, TimeoutError, ConnectionError):
        while time.monotonic() < until:
            writer.write(head.encode())
            answer = await asyncio.wait_for(
                reader.readuntil(b"\r\n\r\n"), max(0.1, until - time.monotonic() + 5)
            )
            assert b" 200 " in answer.split(b"\r\n")[0], answer[:200]
            size = next(
                int(h.split(b":")[1])
                for h in answer.lower().split(b"\r\n")
                if h.startswith(b"content-length")
            )
            await reader.readexactly(size)
            counted[0] += 1
    writer.close()


def submit(folder: Path, url: str, waiters: int, seconds: float) -> dict[str, Any]:
    with served(folder, url, "api") as (client, _):
        client.headers["Authorization"] = f"Bearer {tenant(client)}"
        key = client.headers["Authorization"].split()[1]
        ask = {"prompt": PROMPT, "model": "nano", "seed": 1}
        job = client.post("/v1/video/generate", json=ask).raise_for_status().json()["job_id"]
        host, port, until = client.base_url.host, client.base_url.port or 80, time.monotonic() + seconds + 15
        counted = [0]

        async def crowd() -> None:
            await asyncio.gather(*(waiter(host, port, key, job, until, counted) for _ in range(waiters)))

        threading.Thread(target=lambda: asyncio.run(crowd()), daemon=True).start()
        time.sleep(10)  # until all of them wait
        times, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.perf_counter()
            client.post("/v1/video/generate", json=ask).raise_for_status()
            times.append(time.perf_counter() - begin)
        return {
            "waiters": waiters, "submits": len(times), "per_second": len(times) / sum(times),
            "median_ms": 1000 * middle(times), "p99_ms": 1000 * middle(times, 0.99),
        }  # fmt: skip


def claim(url: str, waiting: int, tenants: int) -> dict[str, Any]:
    database = Database(url)
    database.upgrade()
    policy = Policy()
    store, leases = Store(database, policy), Leases(database, policy)
    with database.write() as c:
        owners = [
            keys.create_tenant(c, f"t{time.time_ns()}-{i}", unmetered=True, max_queued=10**6)
            for i in range(tenants)
        ]
    spec = json.dumps({"prompt": PROMPT})
    with database.write() as c:
        for i in range(waiting):
            store.insert(c, NewJob(owners[i % tenants], None, spec, "nano", 100, 0))
    if (
        not database.is_sqlite
    ):  # as autovacuum does within a minute; without it PostgreSQL plans for an empty table
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            c.exec_driver_sql("ANALYZE")
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        assert leases.claim(Device("bench", ("nano",), 10_000)) is not None
        times.append(time.perf_counter() - begin)
    database.close()
    return {
        "waiting": waiting,
        "tenants": tenants,
        "median_ms": 1000 * middle(times),
        "p99_ms": 1000 * max(times),
    }


def wait_done(client: httpx.Client, job: str) -> dict[str, Any]:
    while True:
        shown = client.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=60"}).raise_for_status().json()
        if shown["status"] in ("completed", "failed"):
            assert shown["status"] == "completed", shown
            return shown


def cpu_s(pid: int) -> float:
    """Processor seconds that a process and its children have used so far."""
    import psutil

    own = psutil.Process(pid)
    used = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return float(sum(times.user + times.system for times in used))


def clips(folder: Path, url: str, runs: int, frames: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """`first` and `overhead`: the service and the engine in turn, both with a warm model.

    Seconds depend on what else the machine does; processor seconds, server and executor together, much less.
    """
    from broll import catalog, wiring
    from broll.clips import make_clip
    from broll.engine import pipeline
    from broll.settings import Settings
    from broll.spec import parse

    settings = Settings()
    model = catalog.find(settings, "nano")
    config = wiring.describe(model)
    parts = wiring.load(model, config)
    spec = pipeline.resolve(parse(model="nano", prompt=PROMPT, seed=1, frames=frames), config)
    ask = {"prompt": PROMPT, "model": "nano", "seed": 1, "frames": frames}

    def engine_alone() -> tuple[float, float]:
        begin, cpu = time.perf_counter(), time.process_time()
        *_, _made = make_clip(spec, parts, folder / "alone.mp4", format="mp4")
        return time.perf_counter() - begin, time.process_time() - cpu

    with served(folder, url, "all") as (client, pid):
        both = [(engine_alone(), through(client, pid, ask))]  # warms both, and is not counted
        for turn in range(runs):  # what the machine does meanwhile falls on each as often as on the other
            if turn % 2:
                after = through(client, pid, ask)
                both.append((engine_alone(), after))
            else:
                both.append((engine_alone(), through(client, pid, ask)))
    alone, served_ = [pair[0] for pair in both[1:]], [pair[1] for pair in both[1:]]
    more = middle([service[0] - engine[0] for engine, service in both[1:]])
    engine_s = middle([seconds for seconds, _ in alone])
    overhead = {
        "frames": frames,
        "engine_s": engine_s,
        "service_s": middle([row[0] for row in served_]),
        "overhead_s": more,  # the middle one of the differences within a turn
        "share": more / engine_s,
        "engine_cpu_s": middle([cpu for _, cpu in alone]),
        "service_cpu_s": middle([row[1] for row in served_]),
    }
    return {"median_s": middle([row[2] for row in served_])}, overhead


def through(client: httpx.Client, pid: int, ask: dict[str, Any]) -> tuple[float, float, float]:
    """A clip through the service: seconds, processor seconds, and seconds to the first step."""
    begin, cpu, first = time.perf_counter(), cpu_s(pid), 0.0
    job = client.post("/v1/video/generate", json=ask).raise_for_status().json()["job_id"]
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("data:") and '"stage": "denoise"' in line:
                first = time.perf_counter() - begin
                break
    wait_done(client, job)
    return time.perf_counter() - begin, cpu_s(pid) - cpu, first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--database", default="sqlite", help="sqlite, postgresql, or a URL")
    parser.add_argument("--waiters", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--waiting", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=81)
    args = parser.parse_args()
    found: dict[str, Any] = {"database": args.database}
    for case in dict.fromkeys("clips" if case in ("first", "overhead") else case for case in args.cases):
        with tempfile.TemporaryDirectory() as name, database_url(args.database, Path(name)) as url:
            if case == "submit":
                found["submit"] = submit(Path(name), url, args.waiters, args.seconds)
            elif case == "claim":
                found["claim"] = claim(url, args.waiting, 100)
            else:
                found["first"], found["overhead"] = clips(Path(name), url, args.runs, args.frames)
    for case, row in found.items():
        told = (
            row
            if isinstance(row, str)
            else ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        )
        print(f"{case:10}{told}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
