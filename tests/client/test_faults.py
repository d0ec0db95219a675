"""Servers go away, answers get lost, connections break: nothing is made twice, and no half file is left."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from broll.client import Retries, errors
from broll.errors import OutputError
from tests.client.conftest import SOON
from tests.client.small_server import VIDEO

PROMPT = "a lake at sunset"


def test_a_server_that_is_away_twice_is_asked_a_third_time(client, small):
    job = client.submit(PROMPT)
    small.fail("GET", "/v1/jobs/", status=503, times=2)
    assert client.job(job.id).id == job.id
    assert len(small.requests("GET", "/v1/jobs/")) == 3


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_submit_that_is_refused_for_the_moment_is_sent_again_under_the_same_key(client, small, status):
    small.fail("POST", "/generate", status=status, times=2)
    client.submit(PROMPT)
    keys = [seen.headers["Idempotency-Key"] for seen in small.requests("POST", "/generate")]
    assert len(keys) == 3 and len(set(keys)) == 1 and len(small.jobs) == 1


def test_a_submit_whose_answer_is_lost_makes_one_job(client, small):
    small.lose("POST", "/generate", times=2)
    assert client.submit(PROMPT).id == "job_0001"
    assert len(small.requests("POST", "/generate")) == 3 and len(small.jobs) == 1


def test_a_picture_is_sent_again_too(client, small):
    small.fail("POST", "/generate", status=503)
    client.submit(PROMPT, image=b"PNG...", steps=3)
    assert small.jobs["job_0001"]["fields"] == {"prompt": PROMPT, "image": b"PNG...", "steps": "3"}


def test_a_key_in_flight_is_waited_for(client, small):
    small.fail("POST", "/generate", status=409, code="idempotency_in_flight", Retry_After="0")
    assert client.submit(PROMPT).id == "job_0001"


def test_any_other_conflict_is_not(client, small):
    small.fail("POST", "/generate", status=409, code="conflict")
    with pytest.raises(errors.Conflict):
        client.submit(PROMPT)
    assert len(small.requests("POST", "/generate")) == 1


def test_what_is_not_repeatable_is_sent_once(client, small):
    job = client.submit(PROMPT)
    small.fail("POST", "/cancel", status=503)
    with pytest.raises(errors.ServerUnavailable):
        client.cancel(job.id)
    small.lose("POST", "/api-keys")
    with pytest.raises(errors.ConnectionFailed):
        client.create_key("mine")
    assert len(small.requests("POST", "/cancel")) == len(small.requests("POST", "/api-keys")) == 1


@pytest.mark.parametrize("status", [400, 404, 422, 500, 501])
def test_what_will_not_change_is_asked_once(client, small, status):
    small.fail("GET", "/v1/credits", status=status)
    with pytest.raises(errors.ApiError) as caught:
        client.credits()
    assert caught.value.status == status and caught.value.request_id == "req_1"
    assert len(small.requests("GET", "/v1/credits")) == 1


def test_retry_after_is_kept_to(client, small):
    small.fail("GET", "/v1/credits", status=429, Retry_After="1")
    begin = time.monotonic()
    client.credits()
    assert time.monotonic() - begin >= 1


def test_retry_after_may_be_a_date(client, small):
    at = datetime.now(UTC) + timedelta(seconds=2)
    small.fail("GET", "/v1/credits", status=503, Retry_After=format_datetime(at, usegmt=True))
    begin = time.monotonic()
    client.credits()
    assert time.monotonic() - begin >= 0.9


def test_a_server_that_wants_an_hour_is_not_waited_for(client, small):
    small.fail("GET", "/v1/credits", status=429, code="too_many", Retry_After="3600")
    with pytest.raises(errors.RateLimited) as caught:
        client.credits()
    assert caught.value.retry_after == 3600 and caught.value.code == "too_many"


def test_it_gives_up_in_the_end(client, small):
    small.fail("GET", "/v1/credits", status=503, times=9)
    with pytest.raises(errors.ServerUnavailable):
        client.credits()
    assert len(small.requests("GET", "/v1/credits")) == 1 + SOON.times


def test_a_delete_whose_answer_is_lost_is_done(client, small):
    job = client.submit("fail")
    client.wait(job.id, 10)
    small.lose("DELETE", job.id)
    client.delete(job.id)
    assert small.jobs == {} and len(small.requests("DELETE", job.id)) == 2


def test_nobody_there_is_one_line_that_says_what_to_do(kind):
    said = r"cannot reach http://127.0.0.1:9: is `broll serve` running there\?"
    with kind("http://127.0.0.1:9", retries=Retries(times=0)) as client:
        failing = pytest.raises(errors.ConnectionFailed, match=said)
        with failing as caught:
            client.job("job_1")
    assert caught.value.exit_status == 7


def test_waiting_for_a_job_ends_in_time_and_may_take_longer_than_one_answer(kind, small):
    job = small.make({"prompt": "forever"})
    with kind(small.url, small.key, timeout_s=0.2, retries=Retries(times=0)) as client:
        begin = time.monotonic()
        with pytest.raises(
            errors.WaitTimeout, match=r"not done after 1.2 s \(processing, 50 %\); it goes on"
        ):
            client.wait(job["job_id"], 1.2)
        assert 1.0 < time.monotonic() - begin < 3


def test_a_failed_job_raises_with_the_reason_of_the_server(client):
    with pytest.raises(errors.GenerationFailed, match="job_0001 failed: it does not fit") as caught:
        client.generate("fail")
    assert caught.value.code == "out_of_memory" and caught.value.job.status == "failed"


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b"{}", b'{"job_id": 5}', b"\xff"])
def test_an_answer_of_something_else_is_said_to_be_one(client, small, body):
    small.say("GET", "/v1/jobs/", body)
    with pytest.raises(errors.UnexpectedAnswer):
        client.job("job_1")


@pytest.mark.parametrize(
    "body", [b"<html>Bad Gateway</html>", b"", b"[]", b'{"error": "no"}', b'{"error": {}}']
)
def test_an_error_of_a_proxy_is_an_error_all_the_same(client, small, body):
    small.say("POST", "/cancel", body, status=502)
    with pytest.raises(errors.ServerUnavailable, match="answered 502") as caught:
        client.cancel("job_1")
    assert caught.value.code == "unavailable" and caught.value.exit_status == 7


# --- downloads --------------------------------------------------------------------------------------------


@pytest.fixture
def done(client):
    return client.generate(PROMPT)


def test_a_download_goes_on_where_it_broke(client, small, done, tmp_path):
    small.cut("/content", after=100_000, times=2)
    client.download(done.id, tmp_path / "lake.mp4")
    assert (tmp_path / "lake.mp4").read_bytes() == VIDEO
    asked = [seen.headers.get("Range") for seen in small.requests("GET", "/content")]
    assert asked == [None, "bytes=100000-", "bytes=200000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["lake.mp4"]


def test_a_file_that_changed_meanwhile_is_taken_anew(client, small, done, tmp_path):
    small.cut("/content", after=100_000)
    small.fail("GET", "/content", status=503, Retry_After="1")  # behind the cut: time to change the file
    changed = threading.Timer(0.5, lambda: setattr(small, "video", VIDEO[::-1]))
    changed.start()
    client.download(done.id, tmp_path / "lake.mp4")
    changed.join()
    assert (tmp_path / "lake.mp4").read_bytes() == VIDEO[::-1]


def test_a_download_that_never_gets_further_ends_and_leaves_nothing(client, small, done, tmp_path):
    small.cut("/content", after=0, times=99)
    with pytest.raises(errors.ConnectionFailed):
        client.download(done.id, tmp_path / "lake.mp4")
    assert list(tmp_path.iterdir()) == []
    assert len(small.requests("GET", "/content")) == 1 + SOON.times


def test_what_was_there_stays_until_the_download_is_whole(client, small, done, tmp_path):
    (tmp_path / "lake.mp4").write_bytes(b"before")
    small.fail("GET", "/content", status=404)
    with pytest.raises(errors.NotFound):
        client.download(done.id, tmp_path / "lake.mp4")
    assert (tmp_path / "lake.mp4").read_bytes() == b"before"
    client.download(done.id, tmp_path / "lake.mp4")
    assert (tmp_path / "lake.mp4").read_bytes() == VIDEO


def test_a_place_that_cannot_be_written_is_an_output_error(client, done, tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        client.download(done.id, tmp_path / "no" / "such" / "folder.mp4")


# --- events -----------------------------------------------------------------------------------------------


def test_events_go_on_after_the_last_one_seen(client, small):
    job = client.submit(PROMPT)
    small.cut("/events", after=2)
    small.cut("/events", after=4)
    events = list(client.stream(job.id))
    assert [event.kind for event in events] == ["status", "stage", "progress", "preview", "done"]
    assert events[3].preview == b"RIFF webp" and events[-1].job.completed
    asked = [seen.headers.get("Last-Event-ID") for seen in small.requests("GET", "/events")]
    assert asked == [None, "2", "4"]


def test_events_that_are_refused_for_the_moment_are_asked_for_again(client, small):
    job = client.submit(PROMPT)
    small.fail("GET", "/events", status=503, times=2)
    assert list(client.stream(job.id))[-1].kind == "done"


def test_events_that_never_come_end_in_an_error(client, small):
    job = client.submit(PROMPT)
    small.cut("/events", after=0, times=99)
    with pytest.raises(errors.ConnectionFailed):
        list(client.stream(job.id))
    assert len(small.requests("GET", "/events")) == 1 + SOON.times


def test_events_of_no_job_are_not_found(client):
    with pytest.raises(errors.NotFound):
        list(client.stream("job_none"))
