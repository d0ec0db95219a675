"""Requests that mean harm, against a live service: each is refused in words, and the service goes on as before.

What is true of every one of them is said once, in `refused`: a 4xx that fits, a problem with code and request id, no
word about the inside. At the end the log of it all holds no traceback and no secret: hence one file, however long.
"""

import base64
import io
import json
import socket
import struct
import sys
import time
import zlib
from contextlib import redirect_stderr, suppress

import httpx
import pytest
from PIL import Image

from broll.jobs import keys
from tests.cases import long
from tests.live import KEY, live
from tests.server.sites import moved, site

SMALL = {"prompt": "a lake", "model": "tiny"}
NUL, HALF = "\\u0000", "\\ud800"  # as JSON writes them
INSIDE = ("Traceback", "sqlalchemy", "sqlite", "psycopg", "site-packages", "/work/", "broll/", 'File "')


@pytest.fixture(scope="module")
def log():
    return io.StringIO()


@pytest.fixture(scope="module")
def hostile(tiny_models, tmp_path_factory, log):
    """Takes jobs and makes none. What it logs is kept."""
    with (
        redirect_stderr(log),
        live(
            tiny_models, tmp_path_factory.mktemp("hostile"), role="api", max_body_mb=2, log_level="debug"
        ) as it,
    ):
        with it.running.service.database.write() as c:
            keys.change_tenant(c, keys.find_tenant(c, "local"), requests_per_minute=10**6)
        yield it


@pytest.fixture(scope="module")
def client(hostile):
    with hostile.client() as c:
        yield c


@pytest.fixture(autouse=True)
def still_works(client):
    """After each of these tests."""
    yield
    assert client.get("/readyz").text == "ok"
    job = client.post("/v1/video/generate", json=SMALL)
    assert job.status_code == 202, job.text
    assert client.post(f"/v1/jobs/{job.json()['job_id']}/cancel").status_code == 200


def refused(answer, *statuses, code=None):
    assert answer.status_code in (statuses or range(400, 500)), f"{answer.status_code} {answer.text[:500]}"
    assert answer.headers["content-type"] == "application/problem+json", answer.text[:500]
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["code"] == problem["error"]["code"] == (code or problem["code"]) != ""
    assert problem["request_id"] == answer.headers["x-request-id"] != ""
    assert 0 < len(problem["detail"]) < 1000
    assert len(problem["detail"].splitlines()) == 1
    assert not [word for word in INSIDE if word in problem["detail"]]
    return problem


def spoken(live, sent, wait_s=5.0):
    """What the service answers to bytes that no client library would send."""
    host, port = live.url.removeprefix("http://").split(":")
    got = b""
    with (
        socket.create_connection((host, int(port)), timeout=wait_s) as s,
        suppress(TimeoutError, ConnectionError),
    ):
        s.sendall(sent)
        while part := s.recv(65536):
            got += part
    return got


def raw(method, path, body=b"", *headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: broll", f"Authorization: Bearer {KEY}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def status(answer):
    return int(answer.split(b" ", 2)[1])


# --- text -------------------------------------------------------------------------------------------------

TEXTS = [
    ("/v1/video/generate", name, SMALL)
    for name in (
        "prompt", "negative_prompt", "model", "size", "image", "image_url", "last_image", "webhook_url",
        "sampler", "priority", "a field that is not there",
    )
]  # fmt: skip
TEXTS += [("/v1/video/estimate", "prompt", SMALL)]
TEXTS += [("/v1/videos", name, {"prompt": "x"}) for name in ("prompt", "model", "size", "negative_prompt")]
TEXTS += [("/v1/api-keys", "name", {}), ("/v1/admin/tenants", "name", {})]
TEXTS += [("/v1/webhook-endpoints", "url", {}), ("/v1/webhook-endpoints", "events", {})]
TEXTS += [("/v1/admin/tenants/x/credits", "note", {"amount": 1})]


@pytest.mark.parametrize("bad", [NUL, HALF, "\\udc00x", "x\\u0000"])
def test_nul_and_halves_of_characters_are_refused_in_every_text(client, bad):
    for path, name, rest in TEXTS:
        body = json.dumps(rest | {name: "@"}).replace('"@"', f'"{bad}"')
        refused(client.post(path, content=body, headers={"content-type": "application/json"}), 422)
        body = json.dumps(rest | {"@": "x"}).replace('"@"', f'"{bad}"')
        refused(client.post(path, content=body, headers={"content-type": "application/json"}), 422)


@pytest.mark.parametrize(
    "bad", ["%00", "a%00b", "%ed%a0%80", "%ff", "%2e%2e%2f", "..%2f..%2fetc", "%0d%0a", "x" * 3000]
)
def test_nothing_is_found_under_names_that_cannot_be(client, bad):
    paths = [
        f"/v1/jobs/{bad}", f"/v1/jobs/{bad}/events", f"/v1/jobs/{bad}/content", f"/v1/uploads/{bad}",
        f"/v1/videos/{bad}", f"/v1/videos/{bad}/content", f"/v1/webhook-endpoints/{bad}",
        f"/v1/webhook-endpoints/{bad}/deliveries", f"/v1/jobs/x/content/{bad}", f"/{bad}",
    ]  # fmt: skip
    for path in paths:
        refused(client.get(path), 404, 405)
    posts = [
        f"/v1/jobs/{bad}/cancel", f"/v1/jobs/{bad}/retry", f"/v1/api-keys/{bad}/rotate",
        f"/v1/webhook-endpoints/{bad}/test", f"/v1/webhook-endpoints/x/deliveries/{bad}/replay",
        f"/v1/webhook-endpoints/{bad}/rotate", f"/v1/admin/tenants/{bad}/api-keys",
    ]  # fmt: skip
    for path in posts:
        refused(client.post(path, json={} if path.endswith("s") else None), 404, 405)
    refused(client.post(f"/v1/videos/{bad}/remix", json={"prompt": "x"}), 404, 405)
    refused(client.post(f"/v1/admin/tenants/{bad}/credits", json={"amount": 1}), 404, 405)
    for path in (f"/v1/jobs/{bad}", f"/v1/uploads/{bad}", f"/v1/api-keys/{bad}", f"/v1/videos/{bad}"):
        refused(client.delete(path), 404, 405)


@pytest.mark.parametrize(
    "query",
    [
        "/v1/jobs?after=%00", "/v1/jobs?after=%ed%a0%80", "/v1/jobs?limit=1e9", "/v1/jobs?limit=9223372036854775808",
        "/v1/jobs?limit=-1", "/v1/jobs?limit=NaN", "/v1/jobs?status=%00", "/v1/jobs?order=up", "/v1/videos?after=%00",
        "/v1/credits/ledger?after=9223372036854775808", f"/v1/credits/ledger?after=1{'0' * 400}",
        f"/v1/credits/ledger?after=1{'0' * 5000}", "/v1/jobs/x/content?variant=..%2f", "/v1/jobs/x/content?sig=%00",
        "/v1/jobs/x/content?exp=%F0%9F%92%A9&kid=x&sig=%ed%a0%80", "/v1/jobs/x/content?exp=1&kid=%00&sig=x",
        f"/v1/jobs/x/content?sig={'x' * 5000}", "/v1/webhook-endpoints/x/deliveries?after=%00",
    ],
)  # fmt: skip
def test_odd_queries_are_refused(client, query):
    refused(client.get(query), 401, 404, 422)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer \xff\xfe"}, {"authorization": "Bearer " + "x" * 20_000}, {"authorization": "Bearer"},
        {"authorization": "Basic YTpi"}, {"authorization": f"Bearer {KEY}x"}, {"authorization": f"bearer  {KEY[:-1]}"},
    ],
)  # fmt: skip
def test_keys_that_are_none_are_told_so(hostile, headers):
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    with httpx.Client(base_url=hostile.url, trust_env=False) as stranger:
        assert "bearer" in stranger.get("/v1/jobs", headers=sent).headers["www-authenticate"].lower()
        refused(stranger.get("/v1/jobs", headers=sent), 401, code="not_authenticated")


@pytest.mark.parametrize(
    ("name", "value", "statuses"),
    [
        ("idempotency-key", b"\xff", (422,)),
        ("idempotency-key", b"x" * 1000, (422,)),
        ("idempotency-key", b"", (202, 422)),
        ("prefer", b"wait=99999999999999999999", (202,)),
        ("prefer", b"wait=-1, \xff", (202,)),
        ("prefer", b"x" * 1000, (422,)),
        ("x-request-id", b"../../etc\xff", (202,)),
        ("x-request-id", b"x" * 1000, (202,)),
        ("traceparent", b"\xff\xfe", (202,)),
    ],
)
def test_odd_headers_are_refused_or_passed_over(client, name, value, statuses):
    answer = client.post("/v1/video/generate", json=SMALL, headers={name: value})
    assert answer.status_code in statuses, answer.text
    if answer.status_code != 202:
        refused(answer, 422)
    assert answer.headers["x-request-id"].isascii() and len(answer.headers["x-request-id"]) <= 64


def test_last_event_ids_that_are_no_numbers_start_at_the_beginning(client):
    job = client.post("/v1/video/generate", json=SMALL).json()["job_id"]
    client.post(f"/v1/jobs/{job}/cancel")
    for last in (b"\xb2", b"-1", b"99999999999999999999", b"1e5", b"\xff", b"x" * 30):
        answer = client.get(f"/v1/jobs/{job}/events", headers={"last-event-id": last})
        assert answer.status_code == 200
        assert "event: done" in answer.text
    refused(client.get(f"/v1/jobs/{job}/events", headers={"last-event-id": "x" * 31}), 422)


def test_no_header_of_ours_can_be_written_by_a_request(hostile, client):
    for name in ("x-request-id", "host", "idempotency-key"):
        sent = raw("GET", "/v1/jobs", b"", f"{name}: a\nSet-Cookie: broken=1")
        assert b"set-cookie" not in spoken(hostile, sent).lower()
    for path in ("/v1/jobs/%0d%0aSet-Cookie:%20a=1", "/docs/%0d%0aSet-Cookie:%20a=1"):
        answer = client.get(path)
        assert "set-cookie" not in answer.headers
        refused(answer, 404)
    made = client.post("/v1/video/generate", json=SMALL, headers={"host": "evil.example"})
    assert "\r" not in made.headers["location"]


# --- JSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["9223372036854775808", "1e400", "NaN", "-1", *long(
    f"1{'0' * 400}", f"1{'0' * 5000}", "Infinity", "-Infinity", "true", "[]", "{}", "[" * 1000 + "]" * 1000
)])  # fmt: skip
def test_numbers_that_are_none_are_refused_in_every_field(client, value):
    fields = (
        "duration", "seconds", "frames", "width", "height", "fps", "steps", "guidance", "guidance_until", "shift",
        "seed",
    )  # fmt: skip
    asked = [("/v1/video/generate", name, SMALL) for name in fields]
    asked += [("/v1/videos", name, {"prompt": "x"}) for name in ("seconds", "seed", "steps")]
    asked += [("/v1/api-keys", name, {}) for name in ("expires_in_s", "cap")]
    asked += [("/v1/admin/tenants/x/credits", "amount", {})]
    asked += [
        ("/v1/admin/tenants", name, {"name": "n"})
        for name in ("credits", "weight", "max_running", "retention_s")
    ]
    asked += [("/v1/webhook-endpoints/default-secret/rotate", "overlap_s", {})]
    for path, name, rest in asked:
        body = json.dumps(rest | {name: "@"}).replace('"@"', value)
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        refused(answer, 422, 404)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"1", b"NaN", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{}" * 2, b"[" * 100_000,
        b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": [' + b"1," * 300_000 + b"1]}", b'{"prompt": "x", "prompt": 1}', b"\0" * 1000,
        b'{"prompt": "' + b"x" * 1_000_000 + b'"}', b"1" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/v1/video/generate", *long("/v1/videos", "/v1/admin/tenants", "/v1/webhook-endpoints")]
)
def test_bodies_that_are_not_what_is_asked_for_are_refused(client, path, body):
    refused(client.post(path, content=body, headers={"content-type": "application/json"}), 422)


def test_many_fields_and_wrong_content_types_are_refused(client):
    many = {f"field{i}": i for i in range(5_000)}
    for path in ("/v1/video/generate", "/v1/api-keys"):
        refused(client.post(path, json=many), 422)
        for kind in ("text/plain", "application/xml", "multipart/form-data", "multipart/form-data; boundary=\xff",
                     "application/json; charset=utf-7", "x" * 5000, "application/x-www-form-urlencoded"):  # fmt: skip
            headers = {"content-type": kind.encode("latin-1")}
            refused(client.post(path, content=b"{not json}", headers=headers), 422)


# --- size and speed ---------------------------------------------------------------------------------------

MOST = 2 * 10**6


def pieces(size):
    for _ in range(size // 50_000):
        yield b" " * 50_000
    yield b" " * (size % 50_000)


@pytest.mark.parametrize("path", ["/v1/video/generate", "/v1/uploads", "/v1/videos", "/v1/api-keys"])
def test_one_byte_too_many_is_too_large_however_it_is_sent(client, hostile, path):
    for kind in ("application/json", "multipart/form-data; boundary=x", "application/octet-stream"):
        headers = {"content-type": kind}
        refused(client.post(path, content=b" " * (MOST + 1), headers=headers), 413, code="too_large")
        whole = client.post(path, content=pieces(MOST + 1), headers=headers)
        refused(whole, 413, *[422] * (kind != "application/json"))  # by its type, or its beginning
        assert client.post(path, content=pieces(MOST), headers=headers).status_code == 422
    for length in ("9" * 30, "-1", "1e3", "+5", "0x10"):
        answer = spoken(hostile, raw("POST", path, b"{}", f"Content-Length: {length}"))
        assert 400 <= status(answer) < 500


def test_two_lengths_and_smuggled_requests_are_refused(hostile):
    for headers in (("Content-Length: 2", "Content-Length: 40"), ("Content-Length: 5", "Transfer-Encoding: chunked"),
                    ("Transfer-Encoding: chunked, gzip",), ("Transfer-Encoding : chunked",)):  # fmt: skip
        answer = spoken(
            hostile, raw("POST", "/v1/jobs", b"0\r\n\r\nGET /v1/credits HTTP/1.1\r\n\r\n", *headers)
        )
        assert 400 <= status(answer) < 500
        assert b"available" not in answer


def test_a_body_that_drips_holds_up_nobody(hostile, client):
    host, port = hostile.url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(30)]
    for s in slow:
        s.sendall(
            raw("POST", "/v1/video/generate", b"{", "Content-Type: application/json", "Content-Length: 100")
        )
    begin = time.monotonic()
    for _ in range(5):
        assert client.get("/v1/jobs").status_code == 200
    assert time.monotonic() - begin < 10
    for s in slow:
        s.close()


# --- forms and files --------------------------------------------------------------------------------------


def png(width=64, height=32):
    out = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(out, "PNG")
    return out.getvalue()


def bomb(width, height):
    """A PNG of a few bytes that claims to be this large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


BAD_PICTURES = {
    "nothing": b"",
    "text": b"#!/bin/sh\nrm -rf /\n",
    "page": b"<html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "bomb": bomb(60_000, 60_000),
    "huge claim": bomb(2**31 - 1, 2**31 - 1),
    "no size": bomb(0, 0),
    "cut off": png()[:60],
    "tiny": png(1, 1),
    "thread": png(2000, 16),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(/etc/passwd) run\n",
    "gif head": b"GIF89a" + b"\xff" * 50,
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_pictures_that_are_none_are_refused(client, kind):
    refused(client.post("/v1/uploads", content=BAD_PICTURES[kind]), 422, code="bad_image")


@pytest.mark.parametrize("kind", ["bomb", "svg"])
def test_every_way_in_leads_through_the_same_door(client, kind):
    data, order = BAD_PICTURES[kind], {"prompt": "x", "model": "tiny-i2v"}
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    refused(client.post("/v1/uploads", files={"file": ("a.png", data, "image/png")}), 422, code="bad_image")
    refused(client.post("/v1/video/generate", json=order | {"image": uri}), 422, code="bad_image")
    refused(client.post("/v1/video/generate", data=order, files={"image": data}), 422, code="bad_image")
    refused(
        client.post("/v1/videos", json=order | {"input_reference": {"image_url": uri}}), 422, code="bad_image"
    )
    refused(client.post("/v1/videos", data=order, files={"input_reference": data}), 422, code="bad_image")


def test_what_is_appended_to_a_picture_goes_nowhere(hostile, client):
    for tail in (b"<?php system($_GET[1]); ?>", b"PK\x03\x04 an archive", b"<script>alert(1)</script>"):
        answer = client.post("/v1/uploads", content=png() + tail)
        assert answer.status_code == 201
        folder = hostile.running.service.settings.data
        kept = next(folder.rglob(f"{answer.json()['sha256']}.png")).read_bytes()
        assert tail not in kept


@pytest.mark.parametrize(
    "uri",
    [
        "data:", "data:,", "data:image/png;base64", "data:image/png;base64,%%%", "data:text/html,x",
        "data:image/png;base64,é", "file:///etc/passwd", "upl_", "upl_../../x", "upl_\udcff",
    ],
)  # fmt: skip
def test_pictures_given_as_odd_texts_are_refused(client, uri):
    body = json.dumps({"prompt": "x", "model": "tiny-i2v", "image": uri})
    refused(
        client.post("/v1/video/generate", content=body, headers={"content-type": "application/json"}),
        404,
        422,
    )


def form(*parts):
    lines = [
        b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + body + b"\r\n"
        for head, body in parts
    ]
    return b"".join(lines) + b"--x--\r\n"


def test_file_names_lead_nowhere(hostile, client):
    names = (
        b"../../../etc/passwd",
        b"..\\..\\x",
        b"a\\0b",
        b"/etc/passwd",
        b"\xff\xfe",
        b"x" * 5000,
        b"con",
        b"$(id)",
    )
    for name in names:
        body = form((b'name="file"; filename="' + name + b'"', png()))
        answer = client.post(
            "/v1/uploads", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code in (201, 422), answer.text
    folder = hostile.running.service.settings.data
    kept = [path.name for path in folder.rglob("*") if path.is_file() and "pictures" in path.parts]
    assert kept
    assert all(len(name) == 68 and name.endswith(".png") for name in kept)


@pytest.mark.parametrize("path", ["/v1/video/generate", "/v1/uploads", "/v1/videos"])
def test_forms_that_are_none_are_refused(client, path):
    bodies = [
        form(*[(b'name="f%d"' % i, b"x") for i in range(1000)]),
        form(*[(b'name="image"; filename="a"', b"x") for _ in range(1000)]),
        form((b'name="nobody"; filename="a"', b"x")),
        form((b'name="prompt\0"', b"x")),
        form((b'name="prompt"', b"\xff\0")),
        form((b"x", b"x")),
        form((b'name="a[b]"', b"x"), (b'name="a"', b"x"), (b'name="a[c]"', b"x")),
        form((b'name="' + b"x" * 100_000 + b'"', b"x")),
        b"--x\r\n\r\n--x--", b"--y--", b"--x", b"\r\n" * 10_000, b"--x\r\n" * 10_000,
    ]  # fmt: skip
    for body in bodies:
        for boundary in (b"x", b"\xff", b"y" * 5000):
            headers = {"content-type": b"multipart/form-data; boundary=" + boundary}
            refused(client.post(path, content=body, headers=headers), 422)


# --- links ------------------------------------------------------------------------------------------------

INTERNAL = [
    "http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0x7f000001/", "http://2130706433/",
    "http://127.1/", "http://0/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://10.0.0.1/",
    "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/", "http://[fe80::1]/", "http://192.168.0.1:22/",
    "http://224.0.0.1/", "file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1/", "http://user:pw@127.0.0.1/",
    "http:///x", "http://127.0.0.1:99999/", "//127.0.0.1/", "javascript:alert(1)", "http://127.0.0.1\\@example.com/",
]  # fmt: skip


@pytest.mark.parametrize("url", INTERNAL)
def test_links_that_lead_inside_are_refused_and_tell_nothing(hostile, client, url):
    order = {"prompt": "x", "model": "tiny-i2v"}
    asked = [
        ("/v1/video/generate", order | {"image_url": url}),
        ("/v1/video/estimate", order | {"image_url": url}),
        ("/v1/video/generate", SMALL | {"webhook_url": url}),
        ("/v1/videos", order | {"input_reference": {"image_url": url}}),
        ("/v1/webhook-endpoints", {"url": url}),
    ]
    for path, body in asked:
        problem = refused(client.post(path, json=body), 422)
        assert problem["code"] == "unsafe_url", problem["detail"]
        for word in ("refused", "Errno", "timed out", "private", "loopback"):
            assert word not in problem["detail"]


def test_a_redirect_to_the_inside_is_refused_too(tiny_models, tmp_path):
    with site({"/secret": (200, {}, b"internal words")}, "127.0.0.2") as inner:
        where = f"http://127.0.0.2:{inner.port}/secret"
        pages = {
            "/there": moved(where),
            "/meta": moved("http://169.254.169.254/"),
            "/file": moved("file:///etc/passwd"),
        }
        with (
            site(pages) as outer,
            live(tiny_models, tmp_path, role="api", network_allow=["127.0.0.1/32"]) as it,
        ):
            with it.client() as c:
                for page in pages:
                    link = f"http://127.0.0.1:{outer.port}{page}"
                    order = {"prompt": "x", "model": "tiny-i2v", "image_url": link}
                    problem = refused(c.post("/v1/video/generate", json=order), 422, code="unsafe_url")
                    assert "internal words" not in problem["detail"]
            assert not inner.asked


# --- the protocol -----------------------------------------------------------------------------------------


def test_methods_and_paths_that_are_not_there(hostile, client):
    for method in ("PUT", "PATCH", "TRACE", "OPTIONS", "BREW", "PROPFIND"):
        answer = client.request(method, "/v1/jobs")
        refused(answer, 405, code="method_not_allowed")
        assert answer.headers["allow"] == "GET"
    assert client.options("/v1/webhook-endpoints").headers["allow"] == "GET, POST"
    for path in (
        "/v1",
        "/v1/",
        "/v1/jobs/",
        "//v1/jobs",
        "/v1/../admin",
        "/.env",
        "/etc/passwd",
        "/v1/jobs/a/b/c/d",
    ):
        refused(client.get(path), 404)
    for line in ("GET http://evil.example/v1/jobs", "GET *", "OPTIONS *", "CONNECT 127.0.0.1:22"):
        answer = spoken(hostile, raw(*line.split(" ")))
        assert 200 <= status(answer) < 500
    for nonsense in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"X" * 100_000,
    ):
        answer = spoken(hostile, nonsense)
        assert answer == b"" or 400 <= status(answer) < 500


# --- and afterwards ---------------------------------------------------------------------------------------


def test_a_defect_of_ours_is_told_without_its_inside(hostile, client, log):
    """A row that no version of broll wrote: the one 500 that can be made from outside the code."""
    import sqlalchemy as sa

    from broll.jobs.tables import jobs

    job = client.post("/v1/video/generate", json=SMALL).json()["job_id"]
    database = hostile.running.service.database
    with database.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == job).values(spec="{broken"))
    answer = client.get(f"/v1/jobs/{job}")
    refused(answer, 500, code="internal_error")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["connection"] == "close"  # uvicorn does, and a client has to know
    assert answer.json()["request_id"] in log.getvalue()
    with database.write() as c:
        c.execute(sa.delete(jobs).where(jobs.c.id == job))


def test_zz_no_secret_and_no_surprise_is_in_the_log_of_all_this(hostile, client, log):
    """The last test of this file: it reads what the others left. Only one of them may have met a defect."""
    made = client.post("/v1/api-keys", json={"name": "logged"}).json()["key"]
    secret = client.get("/v1/webhook-endpoints/default-secret").json()["secret"]
    with hostile.client(made) as own:
        own.get("/v1/jobs")
        own.get(f"/v1/jobs/x/content?exp=1&kid=x&sig=secret-signature&key={made}")
        own.get(f"/v1/jobs/{made}")
    text = log.getvalue()
    sys.stderr.flush()
    assert len(text) > 1000
    for hidden in (made, made[17:40], secret, secret[6:], KEY, "secret-signature"):
        assert hidden not in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert {line["level"] for line in lines if "level" in line} <= {"info", "debug", "warning", "error"}
    errors = [
        str(line) for line in lines if line.get("level") == "error" and "JSONDecodeError" not in str(line)
    ]
    assert [error[:100] + error[-500:] for error in errors] == []
