"""The native API against a live service: what the article's client does, and what else can be asked."""

import json
import threading
import time

import pytest

from tests.live import finished

SMALL = {"prompt": "a lake at sunset", "model": "tiny", "seed": 1}


@pytest.fixture(scope="module")
def client(service):
    with service.client() as c:
        yield c


@pytest.fixture(scope="module")
def done(client):
    job = client.post("/v1/video/generate", json=SMALL).raise_for_status().json()
    return finished(client, job["job_id"])


def test_a_prompt_becomes_a_clip_that_downloads_with_no_header(service, client, done):
    assert done["status"] == "completed"
    assert done["progress"] == 100
    assert (done["size"], done["frames"], done["seed"]) == ("64x32", 9, 1)
    import httpx

    got = httpx.get(done["output_url"], trust_env=False)
    assert got.status_code == 200
    assert got.headers["content-type"] == "video/mp4"
    assert got.content[4:8] == b"ftyp"
    again = client.get(f"/v1/jobs/{done['job_id']}").json()
    assert again["output_url"] == done["output_url"]
    changed = done["output_url"].replace("exp=", "exp=1")
    assert httpx.get(changed, trust_env=False).status_code == 401
    assert httpx.get(done["urls"]["video"], trust_env=False).status_code == 401
