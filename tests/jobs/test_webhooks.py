"""Endpoints and deliveries as rows: who may see them, who claims them, and when they come again."""

import base64
import json
import threading
from collections import Counter

import pytest
import sqlalchemy as sa

from broll.errors import BadOption, Conflict, NotFound
from broll.jobs import keys, outbox, webhooks
from broll.jobs.job import NewJob, Policy
from broll.jobs.store import Store
from broll.jobs.tables import deliveries, endpoints

URL = "https://example.com/hook"


@pytest.fixture
def tenant(database):
    with database.write() as c:
        return keys.create_tenant(c, "studio", credits=1000)


@pytest.fixture
def other(database):
    with database.write() as c:
        return keys.create_tenant(c, "rival", credits=1000)


def submit(database, tenant, **fields):
    new = NewJob(tenant, None, spec="{}", model="nano", memory_mb=100, credits=0, **fields)
    return Store(database, Policy()).submit(new)


def cancelled(database, tenant, **fields):
    job = submit(database, tenant, **fields)
    return Store(database, Policy()).cancel(tenant, job.id)


def endpoint(database, tenant, url=URL, events=("video.queued",)):
    with database.write() as c:
        return webhooks.create_endpoint(c, tenant, url, events)[0]


def claim(database, limit=100, running=(), **options):
    with database.write() as c:
        return webhooks.due(c, limit, running, **options)


def pass_time(database, seconds):
    with database.write() as c:
        c.execute(sa.update(deliveries).values(next_at=deliveries.c.next_at - seconds))


def rows(database):
    with database.read() as c:
        return c.execute(sa.select(deliveries).order_by(deliveries.c.created_at)).all()


def waits(database):
    """Seconds until the only delivery is due."""
    with database.read() as c:
        return c.execute(sa.select(deliveries.c.next_at)).scalar_one() - outbox.clock(c)


def retry(database, sent, **options):
    with database.write() as c:
        webhooks.retry(c, sent, "the receiver answered 500", 500, **options)


def test_an_endpoint_is_made_listed_read_and_deleted(database, tenant):
    with database.write() as c:
        made, secret = webhooks.create_endpoint(c, tenant, URL, ["video.failed", "video.failed"])
        assert secret.startswith("whsec_") and len(base64.b64decode(secret[6:], validate=True)) == 32
        assert [one["id"] for one in webhooks.list_endpoints(c, tenant)] == [made]
        shown = webhooks.get_endpoint(c, tenant, made)
        assert (shown["url"], shown["events"], shown["disabled_at"]) == (URL, ["video.failed"], None)
        assert secret not in json.dumps(shown)
        webhooks.delete_endpoint(c, tenant, made)
        assert webhooks.list_endpoints(c, tenant) == []


def test_events_that_do_not_exist_are_refused(database, tenant):
    for events in ([], ["video.exploded"], ["video.failed", ""]):
        with database.write() as c, pytest.raises(BadOption, match=r"video\.completed"):
            webhooks.create_endpoint(c, tenant, URL, events)


def test_there_is_a_most_of_endpoints(database, tenant):
    for _ in range(webhooks.MAX_ENDPOINTS):
        endpoint(database, tenant)
    with pytest.raises(Conflict, match="limit"):
        endpoint(database, tenant)


def test_another_tenants_endpoint_is_not_there(database, tenant, other):
    mine = endpoint(database, tenant)
    submit(database, tenant)
    delivery = rows(database)[0].id
    asked = [
        lambda c: webhooks.get_endpoint(c, other, mine),
        lambda c: webhooks.delete_endpoint(c, other, mine),
        lambda c: webhooks.rotate_secret(c, other, mine),
        lambda c: webhooks.send_test(c, other, mine),
        lambda c: webhooks.list_deliveries(c, other, mine),
        lambda c: webhooks.get_delivery(c, other, mine, delivery),
        lambda c: webhooks.replay(c, other, mine, delivery),
        lambda c: webhooks.replay(c, other, endpoint_of(c, other), delivery),
    ]
    for ask in asked:
        with database.write() as c, pytest.raises(NotFound):
            ask(c)
    assert len(rows(database)) == 1


def endpoint_of(c, tenant):
    return webhooks.create_endpoint(c, tenant, URL, ["video.queued"])[0]


def test_a_new_secret_signs_first_and_the_old_one_until_the_overlap_is_over(database, tenant):
    with database.write() as c:
        made, first = webhooks.create_endpoint(c, tenant, URL, ["video.queued"])
        second = webhooks.rotate_secret(c, tenant, made)
        webhooks.send_test(c, tenant, made)
        [sent] = webhooks.due(c, 10)
        assert sent.secrets == (second, first)
        row = c.execute(sa.select(endpoints.c.secrets).where(endpoints.c.id == made)).scalar_one()
        over = json.loads(row)[1]["until"] - outbox.clock(c)
        assert 0 <= 86_400 - over < 60
        third = webhooks.rotate_secret(c, tenant, made, overlap_s=0)
        webhooks.send_test(c, tenant, made)
        [sent] = webhooks.due(c, 10)
        assert sent.secrets == (third,)


def test_a_second_rotation_does_not_give_the_oldest_secret_more_time(database, tenant):
    with database.write() as c:
        made, _ = webhooks.create_endpoint(c, tenant, URL, ["video.queued"])
        webhooks.rotate_secret(c, tenant, made, overlap_s=100)
        webhooks.rotate_secret(c, tenant, made, overlap_s=1000)
        kept = json.loads(c.execute(sa.select(endpoints.c.secrets)).scalar_one())
        left = [one["until"] - outbox.clock(c) for one in kept[1:]]
        assert 900 < left[0] <= 1000 and left[1] <= 100


def test_a_leaked_secret_can_be_ended_however_many_there_are(database, tenant):
    with database.write() as c:
        made, _ = webhooks.create_endpoint(c, tenant, URL, ["video.queued"])
        for _ in range(9):
            webhooks.rotate_secret(c, tenant, made)
        with pytest.raises(Conflict, match="overlap of 0"):
            webhooks.rotate_secret(c, tenant, made)
        webhooks.rotate_secret(c, tenant, made, overlap_s=0)
        assert len(json.loads(c.execute(sa.select(endpoints.c.secrets)).scalar_one())) == 1


def test_a_secret_is_not_printed_with_its_delivery(database, tenant):
    endpoint(database, tenant)
    submit(database, tenant)
    assert "whsec_" not in repr(claim(database))


def test_a_jobs_own_url_is_signed_with_the_tenants_default_secret(database, tenant, other):
    cancelled(database, tenant, webhook_url=URL)
    [sent] = claim(database)
    with database.write() as c:
        secret = webhooks.default_secret(c, tenant)
        assert sent.secrets == (secret,) and secret == webhooks.default_secret(c, tenant)
        assert secret != webhooks.default_secret(c, other)
        newer = webhooks.rotate_default_secret(c, tenant)
        webhooks.replay(c, tenant, sent.endpoint_id, sent.id)
        assert webhooks.due(c, 10)[0].secrets == (newer, secret)
        assert webhooks.list_endpoints(c, tenant) == []
        with pytest.raises(Conflict, match="default secret"):
            webhooks.rotate_secret(c, tenant, sent.endpoint_id)
        with pytest.raises(NotFound):
            webhooks.delete_endpoint(c, tenant, f"we_default_{tenant}")


def test_many_threads_asking_for_the_default_secret_get_the_same(database, tenant):
    got = []

    def ask():
        with database.write() as c:
            got.append(webhooks.default_secret(c, tenant))

    together([ask] * 8)
    assert len(got) == 8 and len(set(got)) == 1


def test_a_delivery_is_claimed_once_however_many_ask(database, tenant, other):
    for owner in (tenant, other):
        for _ in range(4):
            endpoint(database, owner)
        for _ in range(2):
            submit(database, owner)
    got = []
    together([lambda: got.extend(sent.id for sent in claim(database, 3))] * 6)
    got.extend(sent.id for sent in claim(database))
    assert sorted(got) == sorted(row.id for row in rows(database)) and len(got) == 16


def together(calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_claim_that_nobody_ends_is_due_again_when_its_lease_is_over(database, tenant):
    endpoint(database, tenant)
    submit(database, tenant)
    [lost] = claim(database)
    assert claim(database) == []
    pass_time(database, webhooks.LEASE_S)
    [again] = claim(database)
    assert (again.id, again.webhook_id, again.attempt) == (lost.id, lost.webhook_id, 2)
    with database.write() as c:
        webhooks.delivered(c, again, 200)
        webhooks.retry(c, lost, "late")  # the first sender was only slow; what it says no longer counts
    [row] = rows(database)
    assert (row.state, row.status) == ("delivered", 200)


def test_one_endpoint_is_sent_two_at_a_time_and_others_do_not_wait_for_it(database, tenant):
    slow = endpoint(database, tenant)
    for _ in range(50):
        submit(database, tenant)
    quick = endpoint(database, tenant)
    submit(database, tenant)
    first = claim(database, 10)
    assert Counter(sent.endpoint_id for sent in first) == {slow: 2, quick: 1}
    assert claim(database, 10, first) == []
    freed = [sent for sent in first if sent is not first[0]]
    assert [sent.endpoint_id for sent in claim(database, 10, freed)] == [slow]


def test_all_urls_that_a_tenants_jobs_name_share_one_lane(database, tenant, other):
    for number in range(5):
        cancelled(database, tenant, webhook_url=f"{URL}?job={number}")
    cancelled(database, other, webhook_url=URL)
    assert Counter(sent.tenant_id for sent in claim(database)) == {tenant: 2, other: 1}


def test_a_tenant_with_many_endpoints_leaves_room_for_others(database, tenant, other):
    for _ in range(webhooks.MAX_ENDPOINTS):
        endpoint(database, tenant)
    submit(database, tenant)
    endpoint(database, other)
    submit(database, other)
    sent = claim(database, 100)
    assert Counter(one.tenant_id for one in sent) == {tenant: webhooks.PER_TENANT, other: 1}


def test_the_schedule_is_that_of_standard_webhooks(database, tenant):
    endpoint(database, tenant)
    submit(database, tenant)
    for number, wait in enumerate(webhooks.SCHEDULE, 1):
        assert wait <= waits(database) + 1 <= wait * (1 + webhooks.JITTER) + 2
        pass_time(database, wait * 1.2 + 1)
        [sent] = claim(database)
        assert sent.attempt == number
        retry(database, sent)
    [row] = rows(database)
    assert (row.state, row.attempt, row.status, row.error) == ("failed", 10, 500, "the receiver answered 500")
    assert claim(database) == []
    assert 70 < sum(webhooks.SCHEDULE) / 3600 < 80  # three days


def test_it_waits_as_long_as_it_is_told_to_within_reason(database, tenant):
    endpoint(database, tenant)
    submit(database, tenant)
    for after_s, least, most in ((0, 5, 6), (600, 600, 661), (2, 1800, 1981), (1e9, 86_400, 95_041)):
        retry(database, claim(database)[0], after_s=after_s)
        assert least - 1 < waits(database) < most
        pass_time(database, 100_000)


def test_nothing_more_is_sent_to_a_disabled_endpoint(database, tenant):
    gone = endpoint(database, tenant)
    submit(database, tenant)
    submit(database, tenant)
    with database.write() as c:
        webhooks.disable(c, gone)
    submit(database, tenant)
    assert claim(database) == []
    assert [row.state for row in rows(database)] == ["failed", "failed"]
    with database.write() as c:
        assert webhooks.get_endpoint(c, tenant, gone)["disabled_at"] is not None
        assert webhooks.lag(c) == 0 and not webhooks.any_due(c)
        for ask in (webhooks.send_test, lambda *of: webhooks.replay(*of, rows(database)[0].id)):
            with pytest.raises(Conflict, match="disabled"):
                ask(c, tenant, gone)


def test_a_replay_is_a_delivery_of_its_own_with_the_same_webhook_id_and_body(database, tenant):
    made = endpoint(database, tenant)
    submit(database, tenant)
    [sent] = claim(database)
    with database.write() as c:
        webhooks.delivered(c, sent, 204)
        again = webhooks.replay(c, tenant, made, sent.id)
    [twice] = claim(database)
    assert twice.id == again != sent.id
    assert (twice.webhook_id, twice.body, twice.attempt) == (sent.webhook_id, sent.body, 1)
    with database.write() as c:
        webhooks.delivered(c, twice, 200)
        thrice = webhooks.replay(c, tenant, made, again)
        assert webhooks.get_delivery(c, tenant, made, thrice)["webhook_id"] == sent.webhook_id


def test_the_log_pages_backwards_and_says_what_happened(database, tenant):
    made = endpoint(database, tenant)
    names = []
    for _ in range(5):
        submit(database, tenant)
        with database.write() as c:
            [sent] = webhooks.due(c, 1)
            webhooks.failed(c, sent, "x" * 600, 418)
        names.append(sent.id)
    with database.read() as c:
        page, more = webhooks.list_deliveries(c, tenant, made, limit=3)
        rest, end = webhooks.list_deliveries(c, tenant, made, limit=3, after=page[-1]["id"])
    assert [one["id"] for one in page + rest] == names[::-1] and more and not end
    assert (page[0]["state"], page[0]["status"], len(page[0]["error"])) == ("failed", 418, 500)
    assert page[0]["next_at"] is None and page[0]["ended_at"] >= page[0]["created_at"]


def test_lag_is_the_age_of_the_oldest_that_is_due(database, tenant):
    with database.read() as c:
        assert webhooks.lag(c) == 0 and not webhooks.any_due(c)
    endpoint(database, tenant)
    submit(database, tenant)
    pass_time(database, 100)
    with database.read() as c:
        assert 100 <= webhooks.lag(c) < 110 and webhooks.any_due(c)
    claim(database)
    with database.read() as c:
        assert webhooks.lag(c) == 0 and not webhooks.any_due(c)


def test_deleting_an_endpoint_ends_what_is_on_its_way(database, tenant):
    made = endpoint(database, tenant)
    submit(database, tenant)
    [sent] = claim(database)
    with database.write() as c:
        webhooks.delete_endpoint(c, tenant, made)
    with database.write() as c:
        webhooks.delivered(c, sent, 200)
    assert rows(database) == []


def test_a_body_is_smaller_than_20_kb_whatever_went_wrong():
    error = {"code": "executor_died", "message": "\N{SNAKE}" * 2000}
    text = outbox.body("msg_1", "video.failed", 1.8e9, {"id": "job_1", "status": "failed", "error": error})
    assert len(text.encode()) < 20_000
    assert len(error["message"]) == 2000
