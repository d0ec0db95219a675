"""Webhooks as a receiver sees them: a real one, on loopback, with the verifiers that clients use."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network

import openai
import pytest
import sqlalchemy as sa
import standardwebhooks
from fastapi import FastAPI
from fastapi.testclient import TestClient

from broll.jobs import keys, outbox, webhooks
from broll.jobs.artifacts import Artifacts
from broll.jobs.job import NewJob, Policy
from broll.jobs.leases import Device, Leases
from broll.jobs.store import Store
from broll.jobs.tables import deliveries
from broll.server import problems, webhook_routes
from broll.server.deps import Service
from broll.server.guard import Guard
from broll.server.signing import Signer
from broll.server.webhooks import WebhookSender, retry_after
from broll.settings import Settings
from tests import databases

LOOPBACK = (ip_network("127.0.0.0/8"),)
PEPPER = b"p" * 32
SEND = """
import ipaddress, sys, threading
from broll.jobs.database import Database
from broll.server.guard import Guard
from broll.server.webhooks import WebhookSender
guard = Guard(allow=(ipaddress.ip_network("127.0.0.0/8"),))
WebhookSender(Database(sys.argv[1]), guard, lease_s=float(sys.argv[2])).start()
threading.Event().wait()
"""


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


@pytest.fixture
def receiver():
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.let_go.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def sqlite(tmp_path):
    with databases.ready_database(f"sqlite:///{tmp_path / 'broll.db'}") as ready:
        yield ready


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


def test_what_arrives_satisfies_the_verifiers_that_clients_use(sqlite, receiver):
    tenant = new_tenant(sqlite)
    _, secret = new_endpoint(sqlite, tenant, receiver.url(), ["video.completed"])
    job = submit(sqlite, tenant)
    leases = Leases(sqlite, Policy())
    leases.complete(
        leases.claim(Device("gpu", ("nano",), 1000)).token, {"video": {}}, resumed_elsewhere=False
    )
    with sending(sqlite):
        until(lambda: states(sqlite) == ["delivered"])
    [(_, headers, body)] = receiver.got
    assert headers["content-type"] == "application/json" and len(body) < 20_000
    told = standardwebhooks.Webhook(secret).verify(body, headers)
    assert told["id"] == headers["webhook-id"]
    assert told["type"] == "video.completed" and told["data"]["status"] == "completed"
    assert datetime.fromisoformat(told["timestamp"]).timestamp() == pytest.approx(told["created_at"], abs=1)
    event = openai.OpenAI(api_key="none").webhooks.unwrap(body, headers, secret=secret)
    assert (event.type, event.object, event.data.id) == ("video.completed", "event", job.id)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body.replace(b"completed", b"cancelled"), headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        openai.OpenAI(api_key="none").webhooks.unwrap(body, headers, secret=webhooks.new_secret())
    assert (rows(sqlite)[0].status, rows(sqlite)[0].attempt) == (200, 1)


def test_a_failure_is_repeated_on_the_schedule_with_the_same_id_and_a_new_timestamp(sqlite, receiver):
    receiver.turns["/hook"] = [500, 404, 201]
    tenant = new_tenant(sqlite)
    _, secret = new_endpoint(sqlite, tenant, receiver.url())
    submit(sqlite, tenant)
    with sending(sqlite):
        until(lambda: rows(sqlite)[0].status == 500)
        assert rows(sqlite)[0].left == pytest.approx(5.5, abs=2)
        time.sleep(0.3)
        assert len(receiver.got) == 1
        pass_time(sqlite, 6)
        until(lambda: rows(sqlite)[0].status == 404)
        assert 290 < rows(sqlite)[0].left < 331
        pass_time(sqlite, 400)
        until(lambda: states(sqlite) == ["delivered"])
    assert len(receiver.got) == 3 and len(set(receiver.ids())) == 1
    for _, headers, body in receiver.got:
        standardwebhooks.Webhook(secret).verify(body, headers)
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 30
    assert (rows(sqlite)[0].status, rows(sqlite)[0].error, rows(sqlite)[0].attempt) == (201, None, 3)


def test_a_receiver_that_is_not_there_or_never_answers_is_tried_again(sqlite, receiver):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    receiver.turns["/slow"] = ["hold"]
    tenant = new_tenant(sqlite)
    new_endpoint(sqlite, tenant, f"http://127.0.0.1:{port}/")
    new_endpoint(sqlite, tenant, receiver.url("/slow"))
    submit(sqlite, tenant)
    with sending(sqlite, Guard(allow=LOOPBACK, timeout_s=0.5)):
        until(lambda: attempted(sqlite))
    assert states(sqlite) == ["pending"] * 2
    assert sorted(row.error for row in rows(sqlite)) == [
        "127.0.0.1 took more than 0.5 s",
        "no connection to 127.0.0.1 could be made",
    ]
    assert all(row.left > 3 for row in rows(sqlite))


def test_410_disables_the_endpoint_and_ends_what_waits_for_it(sqlite, receiver):
    receiver.turns["/hook"] = [410]
    tenant = new_tenant(sqlite)
    gone, _ = new_endpoint(sqlite, tenant, receiver.url())
    for _ in range(6):
        submit(sqlite, tenant)
    with sending(sqlite):
        until(lambda: states(sqlite) == ["failed"] * 6)
        submit(sqlite, tenant)
        time.sleep(0.3)
    with sqlite.read() as c:
        assert webhooks.get_endpoint(c, tenant, gone)["disabled_at"] is not None
    assert len(rows(sqlite)) == 6 and 1 <= len(receiver.got) <= 2
    assert "the receiver answered 410, so the endpoint is disabled" in {row.error for row in rows(sqlite)}


def test_retry_after_is_heeded_where_it_means_overload_and_nowhere_else(sqlite, receiver):
    tenant = new_tenant(sqlite)
    told = {"/429": (429, "120"), "/503": (503, "999999999999"), "/502": (502, "soon"), "/400": (400, "120")}
    for path, (status, after) in told.items():
        receiver.turns[path] = [(status, {"Retry-After": after})]
        new_endpoint(sqlite, tenant, receiver.url(path))
    submit(sqlite, tenant)
    with sending(sqlite):
        until(lambda: attempted(sqlite))
    left = {row.status: row.left for row in rows(sqlite)}
    assert 100 < left[429] < 133
    assert 86_000 < left[503] < 95_100
    assert left[502] < 6 and left[400] < 6


def test_retry_after_may_be_seconds_or_a_date_or_nonsense():
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after("30", at) == 30
    assert retry_after("Thu, 01 Jan 2026 00:02:00 GMT", at) == 120
    assert retry_after("Thu, 01 Jan 2026 00:02:00 -0000", at) == 120
    assert retry_after("Thu, 01 Jan 2015 00:02:00 GMT", at) == 0
    for nonsense in (
        "",
        " ",
        "soon",
        "-5",
        "1.5",
        "Thu, 01 Jan 99999999999999999999 00:00:00 GMT",
        "1 Jan 2026 0:0:0 +9999999",
    ):
        assert retry_after(nonsense, at) == 0


def test_a_redirect_is_not_followed(sqlite, receiver):
    receiver.turns["/hook"] = [(307, {"Location": receiver.url("/elsewhere")})]
    tenant = new_tenant(sqlite)
    new_endpoint(sqlite, tenant, receiver.url())
    submit(sqlite, tenant)
    with sending(sqlite):
        until(lambda: attempted(sqlite))
    [row] = rows(sqlite)
    assert (row.state, row.status) == ("pending", 307) and "redirects are not followed" in row.error
    assert [path for path, *_ in receiver.got] == ["/hook"]


def test_during_a_rotation_the_old_and_the_new_secret_verify(sqlite, receiver):
    tenant = new_tenant(sqlite)
    made, old = new_endpoint(sqlite, tenant, receiver.url())
    with sqlite.write() as c:
        new = webhooks.rotate_secret(c, tenant, made)
    submit(sqlite, tenant)
    with sending(sqlite):
        until(lambda: states(sqlite) == ["delivered"])
    [(_, headers, body)] = receiver.got
    for secret in (old, new):
        standardwebhooks.Webhook(secret).verify(body, headers)
        openai.OpenAI(api_key="none").webhooks.unwrap(body, headers, secret=secret)


def test_two_senders_on_one_database_deliver_once(database, receiver):
    tenant = new_tenant(database)
    for number in range(5):
        new_endpoint(database, tenant, receiver.url(f"/{number}"))
    with sending(database), sending(database):
        for _ in range(4):
            submit(database, tenant)
        until(lambda: states(database) == ["delivered"] * 20)
    got = [told for number in range(5) for told in receiver.ids(f"/{number}")]
    assert len(got) == len(set(got)) == 20


def test_what_a_killed_sender_had_is_sent_by_another_with_the_same_id(database, receiver):
    receiver.turns["/hook"] = ["hold", 200]
    tenant = new_tenant(database)
    new_endpoint(database, tenant, receiver.url())
    submit(database, tenant)
    url = database.url.render_as_string(hide_password=False)
    victim = subprocess.Popen([sys.executable, "-c", SEND, url, "4"])
    try:
        until(lambda: len(receiver.got) == 1, 60)
    finally:
        victim.kill()
        victim.wait()
    with sending(database):
        until(lambda: states(database) == ["delivered"])
    first, second = receiver.ids()
    assert first == second and rows(database)[0].attempt == 2


def test_a_slow_receiver_holds_up_nobody_else(sqlite, receiver):
    receiver.turns["/slow"] = ["hold"]
    tenant = new_tenant(sqlite)
    new_endpoint(sqlite, tenant, receiver.url("/slow"))
    for _ in range(20):
        submit(sqlite, tenant)
    other = new_tenant(sqlite, "rival")
    new_endpoint(sqlite, other, receiver.url("/quick"))
    with sending(sqlite, threads=4):
        until(lambda: receiver.open["/slow"] == 2)
        for _ in range(5):
            submit(sqlite, other)
        until(lambda: Counter(states(sqlite)) == {"delivered": 5, "pending": 20})
        assert len(receiver.ids("/quick")) == 5 and len(receiver.ids("/slow")) == 2
        receiver.let_go.set()
        until(lambda: set(states(sqlite)) == {"delivered"})
    assert receiver.most["/slow"] == 2


def test_a_sender_that_stops_writes_down_what_it_has_on_its_way(sqlite, receiver):
    receiver.turns["/hook"] = ["hold"]
    tenant = new_tenant(sqlite)
    new_endpoint(sqlite, tenant, receiver.url())
    submit(sqlite, tenant)
    with sending(sqlite):
        until(lambda: receiver.open["/hook"] == 1)
        threading.Timer(0.3, receiver.let_go.set).start()
    assert states(sqlite) == ["delivered"]


def test_waking_it_saves_the_wait(sqlite, receiver):
    tenant = new_tenant(sqlite)
    new_endpoint(sqlite, tenant, receiver.url())
    with sending(sqlite, poll_s=60) as sender:
        time.sleep(0.2)
        submit(sqlite, tenant)
        time.sleep(0.2)
        assert receiver.got == []
        sender.wake.set()
        until(lambda: states(sqlite) == ["delivered"])


def test_it_goes_on_when_the_database_is_back(sqlite, receiver):
    tenant = new_tenant(sqlite)
    new_endpoint(sqlite, tenant, receiver.url())
    with sending(sqlite):
        with sqlite.write() as c:
            c.exec_driver_sql("ALTER TABLE deliveries RENAME TO away")
        time.sleep(0.3)
        with sqlite.write() as c:
            c.exec_driver_sql("ALTER TABLE away RENAME TO deliveries")
        submit(sqlite, tenant)
        until(lambda: states(sqlite) == ["delivered"])


def test_a_name_that_turns_to_a_private_address_is_not_sent_to(sqlite, receiver):
    answers = iter(["127.0.0.1"])

    def resolve(_host, port, **_):  # what the owner of a name may do: another answer to every question
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers, "127.0.0.2"), port))]

    guard = Guard(allow=(ip_network("127.0.0.1/32"),), resolve=resolve)
    tenant, url = new_tenant(sqlite), receiver.url(host="rebind.example")
    with client(sqlite, guard, tenant) as asked:
        assert (
            asked.post("/v1/webhook-endpoints", json={"url": url, "events": ["video.queued"]}).status_code
            == 201
        )
    submit(sqlite, tenant)
    with sending(sqlite, guard):
        until(lambda: attempted(sqlite))
    [row] = rows(sqlite)
    assert row.state == "pending" and row.status is None
    assert "127.0.0.2" not in row.error and receiver.got == []


# --- the routes -------------------------------------------------------------------------------------------


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


@pytest.fixture
def tenant(sqlite):
    return new_tenant(sqlite)


@pytest.fixture
def asked(sqlite, tenant):
    with client(sqlite, Guard(allow=LOOPBACK), tenant) as ready:
        yield ready


PATH = "/v1/webhook-endpoints"


def test_an_endpoint_shows_its_secret_once_and_can_be_read_and_deleted(asked, receiver):
    made = asked.post(PATH, json={"url": receiver.url()})
    assert made.status_code == 201 and made.json()["secret"].startswith("whsec_")
    shown = {name: value for name, value in made.json().items() if name != "secret"}
    assert shown["events"] == ["video.completed", "video.failed", "video.cancelled"]
    assert shown["disabled_at"] is None and shown["created_at"].endswith("Z")
    assert asked.get(PATH).json() == {"data": [shown]}
    assert asked.get(f"{PATH}/{shown['id']}").json() == shown
    gone = asked.delete(f"{PATH}/{shown['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert asked.get(f"{PATH}/{shown['id']}").status_code == 404


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "http://10.0.0.1/"}, "unsafe_url"),
        ({"url": "http://169.254.169.254/latest"}, "unsafe_url"),
        ({"url": "ftp://example.com/"}, "unsafe_url"),
        ({"url": "http://127.0.0.1/", "events": []}, "bad_option"),
        ({"url": "http://127.0.0.1/", "events": ["video.exploded"]}, "bad_option"),
        ({"url": "http://127.0.0.1/", "colour": "blue"}, "bad_option"),
        ({"url": "http://127.0.0.1/" + "x" * 9000}, "bad_option"),
        ({}, "bad_option"),
    ],
)
def test_what_cannot_be_an_endpoint_is_refused(asked, body, code):
    answer = asked.post(PATH, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert asked.get(PATH).json() == {"data": []}


def test_another_tenants_endpoints_are_not_there(sqlite, asked):
    rival = new_tenant(sqlite, "rival")
    theirs, _ = new_endpoint(sqlite, rival, "https://example.com/")
    submit(sqlite, rival)
    delivery = rows(sqlite)[0].id
    for method, path in [
        ("GET", theirs), ("DELETE", theirs), ("POST", f"{theirs}/rotate"), ("POST", f"{theirs}/test"),
        ("GET", f"{theirs}/deliveries"), ("POST", f"{theirs}/deliveries/{delivery}/replay"),
    ]:  # fmt: skip
        answer = asked.request(method, f"{PATH}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert asked.get(PATH).json() == {"data": []}
    assert states(sqlite) == ["pending"]


def test_a_key_that_only_reads_sees_endpoints_but_no_secret(sqlite, tenant):
    made, _ = new_endpoint(sqlite, tenant, "https://example.com/")
    with client(sqlite, Guard(), tenant, scopes=("read",)) as reader:
        assert reader.get(PATH).json()["data"][0]["id"] == made
        assert reader.get(f"{PATH}/{made}/deliveries").status_code == 200
        for method, path in [
            ("GET", "/default-secret"),
            ("POST", f"/{made}/rotate"),
            ("DELETE", f"/{made}"),
            ("POST", ""),
        ]:
            assert (
                reader.request(method, PATH + path, json={"url": "https://example.com/"}).status_code == 403
            )


def test_a_test_message_is_sent_at_once_and_can_be_replayed_with_its_id(sqlite, tenant, receiver):
    guard = Guard(allow=LOOPBACK)
    with sending(sqlite, guard, poll_s=60) as sender, client(sqlite, guard, tenant, sender=sender) as asked:
        made = asked.post(PATH, json={"url": receiver.url(), "events": ["video.failed"]}).json()
        sent = asked.post(f"{PATH}/{made['id']}/test")
        assert (sent.status_code, sent.json()["state"], sent.json()["type"]) == (
            202,
            "pending",
            "webhook.test",
        )
        until(lambda: states(sqlite) == ["delivered"])
        again = asked.post(f"{PATH}/{made['id']}/deliveries/{sent.json()['id']}/replay")
        assert again.status_code == 202 and again.json()["id"] != sent.json()["id"]
        until(lambda: states(sqlite) == ["delivered"] * 2)
        page = asked.get(f"{PATH}/{made['id']}/deliveries", params={"limit": 1}).json()
        assert page["has_more"] and page["data"][0]["id"] == again.json()["id"]
        rest = asked.get(f"{PATH}/{made['id']}/deliveries", params={"after": again.json()["id"]}).json()
    assert [one["id"] for one in rest["data"]] == [sent.json()["id"]] and not rest["has_more"]
    assert (rest["data"][0]["status"], rest["data"][0]["attempts"], rest["data"][0]["next_at"]) == (
        200,
        1,
        None,
    )
    assert receiver.ids() == [sent.json()["webhook_id"]] * 2
    bodies = [body for _, _, body in receiver.got]
    assert bodies[0] == bodies[1] and json.loads(bodies[0])["type"] == "webhook.test"
    for _, headers, body in receiver.got:
        standardwebhooks.Webhook(made["secret"]).verify(body, headers)


def test_a_rotation_answers_with_the_new_secret_and_may_end_the_old_one_at_once(sqlite, asked, receiver):
    made = asked.post(PATH, json={"url": receiver.url()}).json()
    second = asked.post(f"{PATH}/{made['id']}/rotate").json()["secret"]
    third = asked.post(f"{PATH}/{made['id']}/rotate", json={"overlap_s": 0}).json()["secret"]
    assert len({made["secret"], second, third}) == 3
    assert asked.post(f"{PATH}/{made['id']}/rotate", json={"overlap_s": -1}).status_code == 422
    asked.post(f"{PATH}/{made['id']}/test")
    with sending(sqlite):
        until(lambda: states(sqlite) == ["delivered"])
    [(_, headers, body)] = receiver.got
    standardwebhooks.Webhook(third).verify(body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(second).verify(body, headers)


def test_a_jobs_own_url_is_told_how_it_ended_signed_with_the_default_secret(sqlite, tenant, asked, receiver):
    job = submit(sqlite, tenant, webhook_url=receiver.url("/own"))
    Store(sqlite, Policy()).cancel(tenant, job.id)
    old = asked.get(f"{PATH}/default-secret").json()["secret"]
    new = asked.post(f"{PATH}/default-secret/rotate").json()["secret"]
    assert asked.get(f"{PATH}/default-secret").json()["secret"] == new != old
    with sending(sqlite):
        until(lambda: states(sqlite) == ["delivered"])
    [(_, headers, body)] = receiver.got
    for secret in (old, new):
        told = standardwebhooks.Webhook(secret).verify(body, headers)
        assert (told["type"], told["data"]["id"]) == ("video.cancelled", job.id)
    assert asked.get(PATH).json() == {"data": []}
    log = asked.get(f"{PATH}/we_{job.id}/deliveries").json()["data"]
    assert [one["job_id"] for one in log] == [job.id]
