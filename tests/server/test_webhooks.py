"""Webhooks as a receiver sees them: a real one, on loopback, with the verifiers that clients use."""

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from ipaddress import ip_network

import openai
import pytest
import standardwebhooks

from broll.jobs import webhooks
from broll.jobs.job import Policy
from broll.jobs.leases import Device, Leases
from broll.server.guard import Guard
from broll.server.webhooks import retry_after
from tests import databases
from tests.server.receiver import (
    LOOPBACK,
    attempted,
    client,
    new_endpoint,
    new_tenant,
    pass_time,
    receiving,
    rows,
    sending,
    states,
    submit,
    until,
)

SEND = """
import ipaddress, sys, threading
from broll.jobs.database import Database
from broll.server.guard import Guard
from broll.server.webhooks import WebhookSender
guard = Guard(allow=(ipaddress.ip_network("127.0.0.0/8"),))
WebhookSender(Database(sys.argv[1]), guard, lease_s=float(sys.argv[2])).start()
threading.Event().wait()
"""


@pytest.fixture
def receiver():
    with receiving() as server:
        yield server


@pytest.fixture
def sqlite(tmp_path):
    with databases.ready_database(f"sqlite:///{tmp_path / 'broll.db'}") as ready:
        yield ready


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
