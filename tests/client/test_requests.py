"""What a call says, what an answer means, and where a client looks for its server. Nothing is sent here."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from broll.client import calls, errors
from broll.client import job as jobs
from broll.client.connection import SERVER, Connection
from broll.client.event_stream import Parser
from broll.errors import BadImage, BadOption


def body(call):
    return json.loads(call.body)


def test_importing_the_client_loads_nothing_heavy():
    code = (
        "import broll.client, sys; print({'torch', 'rich', 'httpx', 'numpy', 'fastapi'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_the_client_needs_no_engine_and_no_server():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'fastapi', 'sqlalchemy', 'av', 'transformers']);"
        "from broll.client import *; Client().close(); print(AsyncClient, Job, Event, Retries)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_name_that_is_not_there_is_an_attribute_error():
    import broll.client

    with pytest.raises(AttributeError, match="no attribute 'Clyent'"):
        broll.client.Clyent  # noqa: B018


def test_fields_left_out_are_not_sent():
    assert body(calls.submit("a lake", duration=None, seed=7)) == {"prompt": "a lake", "seed": 7}


def test_each_submit_has_a_key_of_its_own():
    keys = {calls.submit("a lake").headers["Idempotency-Key"] for _ in range(10)}
    assert len(keys) == 10
    assert calls.submit("a lake", idempotency_key="mine").headers["Idempotency-Key"] == "mine"


@pytest.mark.parametrize(
    ("image", "field"),
    [
        ("upl_12", "image"),
        ("data:image/png;base64,AAAA", "image"),
        ("https://example.com/a.png", "image_url"),
        ("http://example.com/a.png", "image_url"),
    ],
)
def test_what_is_elsewhere_is_named(image, field):
    call = calls.submit("a lake", image=image)
    assert body(call) == {"prompt": "a lake", field: image} and not call.files


def test_what_is_here_is_sent_without_its_name(tmp_path):
    path = tmp_path / "my holiday.png"
    path.write_bytes(b"PNG")
    for picture in (path, str(path), b"PNG"):
        call = calls.submit("a lake", image=picture, last_image=b"last", seed=7, fps=None)
        assert call.files == {"image": ("image", b"PNG"), "last_image": ("image", b"last")}
        assert call.form == {"prompt": "a lake", "seed": "7"} and call.body is None


def test_a_picture_of_no_such_kind_is_refused_before_anything_is_sent():
    with pytest.raises(BadImage, match="image is int"):
        calls.submit("a lake", image=5)


@pytest.mark.parametrize("image", ["no/such.png", Path("/"), "a\0b"])
def test_a_picture_that_cannot_be_read_is_a_bad_image(image):
    with pytest.raises(BadImage, match="cannot be read"):
        calls.submit("a lake", image=image)


@pytest.mark.parametrize("fields", [{"guidance": float("nan")}, {"model": "\ud800"}, {"model": object()}])
@pytest.mark.parametrize("image", [None, b"PNG"])
def test_what_is_no_json_is_not_sent(fields, image):
    with pytest.raises(BadOption, match="cannot be sent"):
        calls.submit("a lake", image=image, **fields)


@pytest.mark.parametrize("key", ["ü", "a\nb", "\x7f"])
def test_a_key_that_fits_no_header_is_refused(key):
    with pytest.raises(BadOption, match="printable"):
        calls.submit("a lake", idempotency_key=key)
    with pytest.raises(BadOption, match="the API key"):
        Connection.of(None, key, 1, None)


@pytest.mark.parametrize("job_id", ["../credits", "a/b", "a?b", "a#b", "ä"])
def test_an_id_leads_nowhere_else(job_id):
    path = calls.job(job_id).path.removeprefix("/v1/jobs/")
    assert not set(path) & set("/?#") and path.isascii()


@pytest.mark.parametrize("job_id", ["", ".", "..", "\ud800"])
def test_what_is_no_id_is_refused(job_id):
    with pytest.raises(BadOption, match="is not an id"):
        calls.job(job_id)


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(
        BadOption, match="'movie'; it must be one of video, thumbnail, spritesheet, gif, preview"
    ):
        calls.content("job_1", "movie", {})


# --- jobs -------------------------------------------------------------------------------------------------


def test_fields_of_a_newer_server_are_kept_aside():
    job = jobs.parse({"job_id": "job_1", "mood": "blue", "id": 5, "data": 6})
    assert job.id == "job_1" and job.data["mood"] == "blue"


def test_what_an_older_server_leaves_out_has_a_default():
    job = jobs.parse({"job_id": "job_1", "progress": None, "notes": None, "spec": None, "created_at": None})
    assert job == jobs.Job("job_1") and hash(job) == hash(jobs.Job("job_1"))


def test_a_wrong_kind_of_thing_is_as_good_as_none():
    job = jobs.parse(
        {"job_id": "job_1", "status": 5, "progress": "x", "notes": 3, "urls": [], "created_at": "soon"}
    )
    assert job == jobs.Job("job_1")


def test_times_are_times():
    job = jobs.parse({"job_id": "job_1", "created_at": "2026-01-02T03:04:05Z", "progress": 41.7})
    assert job.created_at.tzinfo and job.created_at.year == 2026 and job.progress == 41


# --- errors -----------------------------------------------------------------------------------------------


def test_a_problem_becomes_its_error():
    told = {"detail": "no such job", "code": "not_found", "request_id": "req_7"}
    error = errors.refusal(404, {}, json.dumps(told).encode())
    assert type(error) is errors.NotFound and str(error) == "no such job"
    assert (error.status, error.code, error.request_id) == (404, "not_found", "req_7")


@pytest.mark.parametrize(
    ("status", "code", "exit_status"),
    [
        (422, "bad_prompt", 2),
        (422, "model_missing", 3),
        (422, "unsafe_url", 2),
        (402, "no_credits", 7),
        (418, "x", 7),
    ],
)
def test_a_code_ends_the_program_as_it_does_here(status, code, exit_status):
    error = errors.refusal(status, {}, json.dumps({"code": code}).encode())
    assert error.code == code and error.exit_status == exit_status


def test_every_status_of_the_api_has_an_error_of_its_own():
    for status in (401, 402, 403, 404, 409, 413, 422, 429, 501, 503):
        assert type(errors.refusal(status, {}, b"")) is not errors.ApiError


@pytest.mark.parametrize("value", ["", "soon", "-1", "1e9"])
def test_a_retry_after_that_cannot_be_read_is_none(value):
    assert errors.retry_after(value) is None


# --- events -----------------------------------------------------------------------------------------------

STREAM = (
    '\ufeff: hello\r\n\r\nid: 1\nevent: status\ndata: {"job_id": "job_1",\ndata: "prompt": "a\u2028b"}\n\n'
    'event: odd\ndata: not json\n\nretry: 10\n\nid: 2\revent:progress\rdata:{"progress": 50}\r\r'
    "id: 3\nevent: done\ndata: {}\n"
).encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_they_are_cut(size):
    parser = Parser()
    chunks = [STREAM[i : i + size] for i in range(0, len(STREAM), size)]
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    assert [(event.kind, event.id) for event in events] == [("status", "1"), ("progress", "2")]
    assert events[0].job.prompt == "a\u2028b" and events[1].data == {"progress": 50}


def test_a_cut_off_event_is_none_and_its_id_is_not_asked_after():
    parser = Parser()
    assert [event.id for event in parser.feed(b"id: 1\ndata: {}\n\nid: 2\ndata: {}\n")] == ["1"]


def test_a_preview_is_bytes_or_none():
    (event,) = Parser().feed(b'event: preview\ndata: {"webp": "%s"}\n\n' % base64.b64encode(b"RIFF"))
    assert event.preview == b"RIFF"
    for text in (b'{"webp": "x"}', b'{"webp": 5}', b"{}", b"5"):
        (event,) = Parser().feed(b"data: " + text + b"\n\n")
        assert event.preview is None and event.job is None


# --- where the server is ----------------------------------------------------------------------------------


def test_the_environment_names_the_server_and_the_key(monkeypatch):
    assert Connection.of(None, None, 1, None).base_url == SERVER
    monkeypatch.setenv("BROLL_SERVER", "https://broll.example/")
    monkeypatch.setenv("BROLL_KEY", "broll_k\n")
    found = Connection.of(None, None, 1, None)
    assert (found.base_url, found.api_key) == ("https://broll.example", "broll_k")
    for same in ("http://other", "http://other/v1", "http://other/v1/"):
        assert Connection.of(same, "x", 1, None).base_url == "http://other"


@pytest.mark.parametrize("url", ["localhost:8188", "foo", "ftp://a", "http://", "file:///etc"])
def test_an_address_that_is_none_says_how_one_looks(url):
    with pytest.raises(BadOption, match=r"it must be a URL such as http://127\.0\.0\.1:8188"):
        Connection.of(url, None, 1, None)


def test_a_proxy_is_not_asked_for_this_machine(small, monkeypatch):
    from broll.client import Client, Retries

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Client(small.url, small.key, retries=Retries(times=0)) as client:
        assert client.credits()["available"] == 96
