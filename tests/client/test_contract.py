"""What the client and a server promise each other. It runs against the small server, and against a real one."""

import threading

import pytest

from broll.client import errors
from broll.client.job import Job

PROMPT = "a lake at sunset, the camera pans left"
SMALL = {"size": "160x96", "frames": 5, "steps": 2, "seed": 7}


@pytest.fixture
def made(client) -> Job:
    return client.generate(PROMPT, **SMALL)


def test_a_prompt_becomes_a_file(client, tmp_path):
    job = client.generate(PROMPT, tmp_path / "lake.mp4", **SMALL)
    assert job.completed and job.done and job.prompt == PROMPT and job.seed == 7
    assert (tmp_path / "lake.mp4").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["lake.mp4"]


def test_a_submitted_job_is_known_by_its_id(client):
    job = client.submit(PROMPT, duration=1)
    assert job.id.startswith("job_") and job.created_at is not None
    assert client.job(job.id).prompt == PROMPT


def test_the_same_key_twice_is_the_same_job(client):
    first = client.submit(PROMPT, idempotency_key="once-and-once", **SMALL)
    assert client.submit(PROMPT, idempotency_key="once-and-once", **SMALL).id == first.id


def test_two_submits_are_two_jobs(client):
    assert client.submit(PROMPT, **SMALL).id != client.submit(PROMPT, **SMALL).id


def test_waiting_ends_when_the_job_does(client):
    job = client.submit(PROMPT, **SMALL)
    assert client.wait(job.id, 600).completed


def test_events_end_with_done(client):
    events = list(client.stream(client.submit(PROMPT, **SMALL).id))
    assert [event.kind for event in events].count("done") == 1
    assert events[-1].kind == "done" and events[-1].job.done


def test_events_can_be_left_early(client):
    job = client.submit(PROMPT, **SMALL)
    events = client.stream(job.id)
    next(events)
    events.close()
    assert client.job(job.id).id == job.id


def test_jobs_are_listed_page_after_page_newest_first(client):
    ids = [client.submit(PROMPT, **SMALL).id for _ in range(8)]
    assert [job.id for job in client.jobs(limit=8)] == ids[::-1]
    assert [job.id for job in client.jobs(limit=5)] == ids[::-1][:5]
    assert set(ids) <= {job.id for job in client.jobs()}
    assert list(client.jobs(limit=0)) == []


def test_a_cancelled_job_reads_as_failed_and_can_be_made_again(client):
    job = client.submit("forever " + PROMPT, **SMALL)
    client.cancel(job.id)
    stopped = client.wait(job.id, 600)
    assert stopped.cancelled and stopped.status == "failed"
    assert client.retry(job.id).retry_of == job.id


def test_a_finished_job_cannot_be_retried(client, made):
    with pytest.raises(errors.Conflict) as caught:
        client.retry(made.id)
    assert caught.value.status == 409 and caught.value.code == "conflict"


def test_a_deleted_job_is_gone(client, made):
    client.delete(made.id)
    with pytest.raises(errors.NotFound) as caught:
        client.job(made.id)
    assert caught.value.code == "not_found" and caught.value.request_id


def test_every_variant_can_be_downloaded_into_a_folder(client, made, tmp_path):
    assert client.download(made.id, tmp_path) == tmp_path / f"{made.id}.mp4"
    assert client.download(made.id, tmp_path, "thumbnail").read_bytes().startswith(b"RIFF")


def test_a_bad_prompt_is_refused_with_its_code(client):
    with pytest.raises(errors.Refused) as caught:
        client.submit("   ")
    assert caught.value.code == "bad_prompt" and caught.value.status == 422
    assert caught.value.exit_status == 2


def test_without_a_key_nothing_is_answered(kind, server):
    with kind(server.url) as client, pytest.raises(errors.NotAuthenticated):
        client.job("job_1")


def test_an_estimate_makes_no_job(client):
    before = len(list(client.jobs()))
    assert client.estimate(PROMPT, **SMALL)["credits"] >= 0
    assert len(list(client.jobs())) == before


def test_a_prompt_is_looked_at_and_rewritten(client):
    assert {"findings", "negative_prompt"} <= client.check_prompt("a lake", model="nano").keys()
    made = client.rewrite_prompt("a lake", model="nano", without=["x"])
    assert {"additions", "diff"} <= made.keys()
    assert "lake" in made["prompt"]


def test_models_credits_and_the_ledger_are_told(client, made):
    assert "nano" in [model["id"] for model in client.models()]
    assert {"available", "held"} <= client.credits().keys()
    assert all("amount" in row for row in client.ledger())


def test_a_key_is_made_rotated_and_revoked(client):
    made = client.create_key("for the test", scopes=["jobs"])
    assert made["key"]
    listed = client.keys()
    assert made["id"] in [key["id"] for key in listed]
    rotated = client.rotate_key(made["id"], overlap_s=0)
    assert rotated["key"]
    client.revoke_key(rotated["id"])
    listed = client.keys()
    assert [key for key in listed if key["id"] == rotated["id"] and not key.get("revoked_at")] == []


def test_threads_may_share_a_client(server):
    from broll.client import Client

    found = []
    with Client(server.url, server.key) as client:
        threads = [
            threading.Thread(target=lambda: found.append(client.submit(PROMPT, **SMALL).id)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(found)) == 4
