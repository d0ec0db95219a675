"""/v1/webhook-endpoints over HTTP, with the sender and a receiver behind it."""

import json

import pytest
import standardwebhooks

from broll.jobs.job import Policy
from broll.jobs.store import Store
from broll.server.guard import Guard
from tests import databases
from tests.server.receiver import (
    LOOPBACK,
    client,
    new_endpoint,
    new_tenant,
    receiving,
    rows,
    sending,
    states,
    submit,
    until,
)


@pytest.fixture
def receiver():
    with receiving() as server:
        yield server


@pytest.fixture
def sqlite(tmp_path):
    with databases.ready_database(f"sqlite:///{tmp_path / 'broll.db'}") as ready:
        yield ready


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
