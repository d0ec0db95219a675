"""The native API against a live service: what the article's client does, and what else can be asked."""

import base64
import io
import json
import socket
import threading
import time

import httpx
import pytest
from PIL import Image

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
    got = httpx.get(done["output_url"], trust_env=False)
    assert got.status_code == 200
    assert got.headers["content-type"] == "video/mp4"
    assert got.content[4:8] == b"ftyp"
    again = client.get(f"/v1/jobs/{done['job_id']}").json()
    assert again["output_url"] == done["output_url"]
    changed = done["output_url"].replace("exp=", "exp=1")
    assert httpx.get(changed, trust_env=False).status_code == 401
    assert httpx.get(done["urls"]["video"], trust_env=False).status_code == 401


def test_a_thumbnail_a_spritesheet_and_a_gif_come_with_it(client, done):
    kinds = {"thumbnail": "WEBP", "spritesheet": "WEBP", "gif": "GIF"}
    for variant, kind in kinds.items():
        got = client.get(f"/v1/jobs/{done['job_id']}/content", params={"variant": variant})
        assert got.status_code == 200
        assert Image.open(io.BytesIO(got.content)).format == kind
    assert Image.open(io.BytesIO(got.content)).n_frames == 9


def test_content_is_served_in_ranges_and_not_twice(client, done):
    path = f"/v1/jobs/{done['job_id']}/content"
    whole = client.get(path)
    part = client.get(path, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert part.headers["content-range"] == f"bytes 4-7/{len(whole.content)}"
    last = client.get(path, headers={"Range": "bytes=-5"})
    assert last.content == whole.content[-5:]
    assert client.get(path, headers={"Range": "bytes=999999999-"}).status_code == 416
    assert client.get(path, headers={"Range": "bytes=0-1,4-5"}).status_code == 200
    assert client.get(path, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    other = client.get(path, headers={"Range": "bytes=0-3", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, whole.content)
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))


def test_status_that_has_not_changed_needs_no_body(client, done):
    first = client.get(f"/v1/jobs/{done['job_id']}")
    again = client.get(f"/v1/jobs/{done['job_id']}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_size_the_model_cannot_make_becomes_its_nearest_and_that_is_said(client):
    told = client.post("/v1/video/estimate", json=SMALL | {"size": "1920x1080"}).json()
    width, height = (int(side) for side in told["size"].split("x"))
    assert width % 16 == height % 16 == 0
    assert 1.4 < width / height < 2.1
    assert "1920x1080 became" in told["notes"][0]


def test_an_estimate_says_seconds_and_where_they_come_from(client):
    told = client.post("/v1/video/estimate", json=SMALL).json()
    assert told["seconds_s"] > 0
    assert told["time_source"] in ("seen", "measured")
    assert told["memory_mb"] > 400
    assert told["money"] is None  # no setting gpu_hour


def test_seconds_are_counted_at_the_frames_a_second_that_are_asked_for(client):
    asked = SMALL | {"duration": 0.4, "fps": 24}
    asked.pop("frames", None)
    job = client.post("/v1/video/generate", json=asked).raise_for_status().json()
    assert client.get(f"/v1/jobs/{job['job_id']}").json()["frames"] == 9  # at 16 it would be 5
    client.post(f"/v1/jobs/{job['job_id']}/cancel")


def test_too_many_seconds_are_refused_naming_the_most(client):
    refused = client.post("/v1/video/generate", json=SMALL | {"duration": 60})
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    body = refused.json()
    assert body["code"] == body["error"]["code"] == "bad_option"
    assert "at most 0.5 seconds" in body["detail"]
    assert body["request_id"] == refused.headers["x-request-id"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": " "}, "bad_prompt"),
        ({"promt": "typo"}, "bad_option"),
        ({"model": "missing"}, "unknown_model"),
        ({"frames": 6}, "unsupported_shape"),
        ({"image": "nothing"}, "bad_image"),
        ({"seed": -1}, "bad_option"),
        ({"size": "0x0"}, "bad_option"),
        ({"duration": 0.5, "frames": 9}, "bad_option"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(client, fields, code):
    refused = client.post("/v1/video/generate", json=SMALL | fields)
    assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert "\n" not in refused.json()["detail"]


def test_without_a_key_or_with_a_wrong_one_nothing_is_told(service, client):
    for headers in ({}, {"Authorization": "Bearer broll_0000000000_x"}, {"Authorization": "Basic eDp5"}):
        with httpx.Client(base_url=service.url, trust_env=False) as stranger:
            refused = stranger.get("/v1/jobs", headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "not_authenticated")


def test_a_tenant_pays_what_was_estimated_and_not_more_than_it_has(service):
    with service.client(service.tenant("payer", credits=1)) as payer:
        cost = payer.post("/v1/video/estimate", json=SMALL).json()["credits"]
        assert cost == 1
        job = payer.post("/v1/video/generate", json=SMALL).raise_for_status().json()
        assert job["credits"] == 1
        broke = payer.post("/v1/video/generate", json=SMALL)
        assert (broke.status_code, broke.json()["code"]) == (402, "no_credits")
        assert finished(payer, job["job_id"])["credits"] == 1
        assert payer.get("/v1/credits").json() == {"available": 0, "held": 0, "unmetered": False}
        kinds = [
            (row["kind"], row["account"], row["amount"])
            for row in payer.get("/v1/credits/ledger").json()["data"]
        ]
        assert kinds == [
            ("capture", "held", -1),
            ("hold", "held", 1),
            ("hold", "available", -1),
            ("grant", "available", 1),
        ]


def test_an_idempotency_key_makes_one_job_and_replays_it(client):
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/video/generate", json=SMALL, headers=headers)
    again = client.post("/v1/video/generate", json=SMALL, headers=headers)
    assert first.json()["job_id"] == again.json()["job_id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    other = client.post("/v1/video/generate", json=SMALL | {"seed": 2}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    refused = {"Idempotency-Key": "refused"}
    assert client.post("/v1/video/generate", json={"prompt": ""}, headers=refused).status_code == 422
    assert client.post("/v1/video/generate", json=SMALL, headers=refused).status_code == 202


def long_job(client, **fields):
    """A job that takes some seconds."""
    return client.post("/v1/video/generate", json=SMALL | {"steps": 400} | fields).raise_for_status().json()


def test_a_running_job_stops_within_a_second_or_so_and_a_waiting_one_at_once(client):
    running = long_job(client)
    waiting = long_job(client)
    until = time.monotonic() + 60
    while client.get(f"/v1/jobs/{running['job_id']}").json()["stage"] != "denoise":
        assert time.monotonic() < until
        time.sleep(0.05)
    place = client.get(f"/v1/jobs/{waiting['job_id']}").json()
    assert (place["status"], place["queue_position"]) == ("queued", 1)
    gone = client.post(f"/v1/jobs/{waiting['job_id']}/cancel").json()
    assert (gone["status"], gone["error_code"]) == ("failed", "cancelled")
    client.post(f"/v1/jobs/{running['job_id']}/cancel").raise_for_status()
    begin = time.monotonic()
    ended = finished(client, running["job_id"])
    assert ended["error_code"] == "cancelled"
    assert time.monotonic() - begin < 5
    again = client.post(f"/v1/jobs/{waiting['job_id']}/retry").json()
    assert (again["retry_of"], again["seed"]) == (waiting["job_id"], 1)
    client.post(f"/v1/jobs/{again['job_id']}/cancel").raise_for_status()
    assert client.post(f"/v1/jobs/{again['job_id']}/retry").status_code in (202, 409)


def test_events_tell_the_whole_story_and_go_on_where_they_broke_off(client):
    job = long_job(client, steps=60)
    told = []
    with client.stream("GET", f"/v1/jobs/{job['job_id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for name, data, number in events(stream):
            told.append((name, data, number))
    names = [name for name, _, _ in told]
    assert names[-1] == "done"
    assert told[-1][1]["status"] == "completed"
    stages = [data["stage"] for name, data, _ in told if name == "stage"]
    assert stages == ["encode", "denoise", "decode", "finish", "deliver"]
    percents = [data["progress"] for name, data, _ in told if name == "progress"]
    assert percents == sorted(percents)
    middle = next(number for name, _, number in told if name == "stage" and number)
    with client.stream(
        "GET", f"/v1/jobs/{job['job_id']}/events", headers={"Last-Event-ID": middle}
    ) as stream:
        rest = [data["stage"] for name, data, _ in events(stream) if name == "stage"]
    assert rest == stages[1:]


def events(stream):
    name = data = number = None
    for line in stream.iter_lines():
        if line == "" and name:
            yield name, json.loads(data), number
            name = data = number = None
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data = line[6:]
        elif line.startswith("id: "):
            number = line[4:]


def png(width=80, height=48):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_starts_a_clip_in_every_way_it_can_be_sent(client):
    uploaded = client.post("/v1/uploads", files={"file": ("x.png", png())})
    assert uploaded.status_code == 201
    raw = client.post("/v1/uploads", content=png())
    assert raw.json()["sha256"] == uploaded.json()["sha256"]
    ask = {"prompt": "a lake", "model": "tiny-i2v", "seed": 1}
    link = "data:image/png;base64," + base64.b64encode(png()).decode()
    jobs = [
        client.post("/v1/video/generate", json=ask | {"image": uploaded.json()["id"]}),
        client.post("/v1/video/generate", json=ask | {"image": link}),
        client.post("/v1/video/generate", data=ask, files={"image": ("x.png", png(), "image/png")}),
    ]
    specs = [job.raise_for_status().json()["spec"] for job in jobs]
    assert specs[0] == specs[1] == specs[2]
    assert all(finished(client, job.json()["job_id"])["status"] == "completed" for job in jobs)
    assert client.delete(f"/v1/uploads/{raw.json()['id']}").status_code == 204
    assert client.get(f"/v1/uploads/{raw.json()['id']}").status_code == 404


def test_lists_in_a_form_are_json(client):
    """As the client sends a LoRA or a title beside a picture."""
    url, titles, unknown = "/v1/video/estimate", [{"text": "NEWS"}], [{"name": "no-such"}]
    as_form = client.post(url, data=SMALL | {"titles": json.dumps(titles)})
    assert as_form.status_code == 200, as_form.text
    assert as_form.json() == client.post(url, json=SMALL | {"titles": titles}).json()
    refused = client.post(url, data=SMALL | {"loras": json.dumps(unknown)})
    assert refused.json()["detail"] == client.post(url, json=SMALL | {"loras": unknown}).json()["detail"]
    assert "no-such" in refused.json()["detail"]
    broken = client.post(url, data=SMALL | {"loras": "[{"})
    assert (broken.status_code, broken.json()["detail"]) == (422, "loras in the form is not JSON")


def test_a_link_into_a_private_network_is_not_followed(client):
    for url in ("http://127.0.0.1:1/x.png", "http://169.254.169.254/latest", "file:///etc/passwd"):
        for name in ("image_url", "webhook_url"):
            refused = client.post("/v1/video/generate", json=SMALL | {name: url})
            assert (refused.status_code, refused.json()["code"]) == (422, "unsafe_url")


def test_a_key_of_ones_own_can_be_made_rotated_and_revoked(service, client):
    made = client.post("/v1/api-keys", json={"name": "ci", "scopes": ["read"]}).raise_for_status().json()
    with service.client(made["key"]) as reader:
        assert reader.get("/v1/jobs").status_code == 200
        assert reader.post("/v1/video/generate", json=SMALL).status_code == 403
        assert reader.post("/v1/api-keys", json={}).status_code == 403
    fresh = client.post(f"/v1/api-keys/{made['id']}/rotate", json={"overlap_s": 0}).json()
    with service.client(made["key"]) as old, service.client(fresh["key"]) as new:
        assert old.get("/v1/jobs").status_code == 401
        assert new.get("/v1/jobs").status_code == 200
        assert client.delete(f"/v1/api-keys/{fresh['id']}").status_code == 204
        assert new.get("/v1/jobs").status_code == 401
    assert made["key"] not in client.get("/v1/api-keys").text


def test_too_many_requests_are_told_when_to_come_back(service):
    with service.client(service.tenant("busy", requests_per_minute=5)) as busy:
        answers = [busy.get("/v1/credits") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert answers[0].headers["ratelimit-policy"] == '"default";q=5;w=60'
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


def test_a_body_over_the_limit_is_refused_before_it_is_read(service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as wire:
        head = f"POST /v1/uploads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
        wire.sendall(head.encode() + b"Content-Length: 99999999999\r\n\r\n")
        answer = wire.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.1 413 ")
    assert '"code": "too_large"' in answer


def test_a_list_goes_page_by_page(service):
    with service.client(service.tenant("pages", credits=100)) as pages:
        made = [pages.post("/v1/video/generate", json=SMALL).json()["job_id"] for _ in range(3)]
        first = pages.get("/v1/jobs", params={"limit": 2}).json()
        assert [job["job_id"] for job in first["data"]] == made[:0:-1]
        rest = pages.get("/v1/jobs", params={"after": first["last_id"]}).json()
        assert [job["job_id"] for job in rest["data"]] == made[:1]
        assert not rest["has_more"]
        for job in made:
            finished(pages, job)
        assert pages.delete(f"/v1/jobs/{made[0]}").status_code == 204
        assert pages.get(f"/v1/jobs/{made[0]}").status_code == 404


def test_machines_are_answered(service, client):
    assert client.get("/livez").text == client.get("/readyz").text == "ok"
    text = client.get("/metrics").text
    for name in ("broll_jobs{", "broll_http_requests_total{", "broll_ledger_drift 0.0", "broll_devices 1.0"):
        assert name in text
    assert client.get("/docs").status_code == 200


def test_fifty_at_once_with_one_key_are_one_job_and_one_debit(service):
    key = service.tenant("racer", credits=100)
    made, refused = set(), []

    def submit():
        with service.client(key) as c:
            for _ in range(5):
                answer = c.post("/v1/video/generate", json=SMALL, headers={"Idempotency-Key": "race"})
                if answer.status_code == 202:
                    made.add(answer.json()["job_id"])
                else:
                    refused.append(answer.json()["code"])

    threads = [threading.Thread(target=submit) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert set(refused) <= {"idempotency_in_flight"}
    with service.client(key) as c:
        finished(c, made.pop())
        assert c.get("/v1/credits").json()["available"] == 99
