"""A receiver of webhooks on loopback, and the sender's side of a small service."""

import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network

import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from broll.jobs import keys, outbox, webhooks
from broll.jobs.artifacts import Artifacts
from broll.jobs.job import NewJob, Policy
from broll.jobs.store import Store
from broll.jobs.tables import deliveries
from broll.server import problems, webhook_routes
from broll.server.deps import Service
from broll.server.guard import Guard
from broll.server.signing import Signer
from broll.server.webhooks import WebhookSender
from broll.settings import Settings

LOOPBACK = (ip_network("127.0.0.0/8"),)
PEPPER = b"p" * 32


class Handler(BaseHTTPRequestHandler):
    """Answers a path with the next of its turns, the last of which stays; 200 where nothing is said."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        receiver = self.server
        with receiver.lock:
            receiver.got.append((self.path, dict(self.headers), body))
            receiver.open[self.path] += 1
            receiver.most[self.path] = max(receiver.most[self.path], receiver.open[self.path])
            turns = receiver.turns.get(self.path, [])
            turn = (turns.pop(0) if len(turns) > 1 else turns[0]) if turns else 200
        if turn == "hold":
            receiver.let_go.wait(30)
            turn = 200
        status, headers = (turn, {}) if isinstance(turn, int) else turn
        with receiver.lock:
            receiver.open[self.path] -= 1
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


class Receiver(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True

    def __init__(self):
        super().__init__(("0.0.0.0", 0), Handler)
        self.lock, self.let_go = threading.Lock(), threading.Event()
        self.turns, self.got, self.open, self.most = {}, [], Counter(), Counter()

    def url(self, path="/hook", host="127.0.0.1"):
        return f"http://{host}:{self.server_port}{path}"

    def ids(self, path="/hook"):
        with self.lock:
            return [headers["webhook-id"] for where, headers, _ in self.got if where == path]

    def handle_error(self, *_):
        """A sender that is killed hangs up."""


@contextmanager
def receiving():
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.let_go.set()
    server.shutdown()
    server.server_close()
    thread.join()


def new_tenant(database, name="studio"):
    with database.write() as c:
        return keys.create_tenant(c, name)


def new_endpoint(database, tenant, url, events=("video.queued",)):
    """(id, secret)."""
    with database.write() as c:
        return webhooks.create_endpoint(c, tenant, url, events)


def submit(database, tenant, **fields):
    new = NewJob(tenant, None, spec="{}", model="nano", memory_mb=100, credits=0, **fields)
    return Store(database, Policy()).submit(new)


@contextmanager
def sending(database, guard=None, **options):
    sender = WebhookSender(database, guard or Guard(allow=LOOPBACK), **{"poll_s": 0.05} | options)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()


def until(ready, seconds=20.0):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def rows(database):
    with database.read() as c:
        left = (deliveries.c.next_at - outbox.clock(c)).label("left")
        return c.execute(sa.select(deliveries, left).order_by(deliveries.c.created_at, deliveries.c.id)).all()


def states(database):
    return [row.state for row in rows(database)]


def attempted(database):
    """Nothing was left out, and nothing is on its way."""
    return all(row.attempt and (row.status or row.error) for row in rows(database))


def pass_time(database, seconds):
    with database.write() as c:
        c.execute(sa.update(deliveries).values(next_at=deliveries.c.next_at - seconds))


@contextmanager
def client(database, guard, tenant, *, scopes=("jobs",), sender=None):
    with database.write() as c:
        _, key = keys.create_key(c, PEPPER, tenant, "test", scopes=scopes)
    app = FastAPI()
    problems.install(app)
    app.include_router(webhook_routes.router)
    app.state.service = Service(
        settings=Settings(), database=database, store=Store(database, Policy()),
        artifacts=Artifacts.open(str(database.url.database) + ".d"), models=None, guard=guard,
        signer=Signer([PEPPER]), pepper=PEPPER, sender=sender or WebhookSender(database, guard), wake=threading.Event(),
    )  # fmt: skip
    with TestClient(app, headers={"authorization": f"Bearer {key}"}) as asked:
        yield asked
