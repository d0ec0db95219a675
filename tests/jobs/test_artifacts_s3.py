"""Artifacts in S3: a bad line, a silent server, a missing bucket, settings that cannot work."""

import http.client
import http.server
import re
import socket
import threading
import time

import pytest

from broll.errors import BadOption, StorageError
from broll.jobs.artifacts import PART, Artifacts
from tests.jobs.buckets import s3

CLIP = "job_01k8/clip.mp4"


def test_a_bucket_needs_no_prefix(s3_server, bucket, client):
    artifacts = s3(s3_server, f"s3://{bucket}")
    artifacts.check()
    artifacts.put(CLIP, b"clip")
    assert [each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]] == [CLIP]
    assert artifacts.list_below("") == artifacts.list_below("job_01k8") == [CLIP]
    assert artifacts.delete_below("job_01k8") == 1


def test_prefixes_keep_services_in_one_bucket_apart(s3_server, bucket):
    one, other = (s3(s3_server, f"s3://{bucket}/{name}") for name in ("a", "ab"))
    one.put(CLIP, b"one")
    assert not other.exists(CLIP) and other.list_below("") == []
    assert other.delete_below("job_01k8") == 0
    assert one.get(CLIP) == b"one"


def test_the_content_type_goes_with_the_artifact(s3_server, bucket, client):
    artifacts = s3(s3_server, f"s3://{bucket}/a/b/")
    for data in (b"x", b"x" * (PART + 1)):
        artifacts.put(CLIP, data, content_type="video/mp4")
        assert client.head_object(Bucket=bucket, Key=f"a/b/{CLIP}")["ContentType"] == "video/mp4"


def test_what_others_keep_in_the_bucket_is_left_alone(s3_server, bucket, client):
    artifacts = s3(s3_server, f"s3://{bucket}")
    for key in ("job_1/their file", "job_1/#1", "job_10/x"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    artifacts.put("job_1/mine", b"")
    assert artifacts.delete_below("job_1") == 1
    kept = {each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert kept == {"job_1/their file", "job_1/#1", "job_10/x"}


def test_a_bucket_that_is_not_there_is_one_clear_line(s3_server):
    artifacts = s3(s3_server, "s3://no-such-bucket/x")
    for deed in (
        artifacts.check,
        lambda: artifacts.get("a"),
        lambda: artifacts.list_below(""),
        lambda: artifacts.delete("a"),
    ):
        with pytest.raises(StorageError, match=r": there is no bucket s3://no-such-bucket/x$"):
            deed()


def test_storage_that_does_not_answer_is_one_clear_line():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens
        artifacts = s3(f"http://127.0.0.1:{nobody.getsockname()[1]}", "s3://bucket")
        for deed in (lambda: artifacts.put("a", b""), lambda: artifacts.get("a"), artifacts.check):
            with pytest.raises(StorageError, match=r"s3://bucket cannot be reached$"):
                deed()


def test_storage_that_stays_silent_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        artifacts = s3(endpoint, "s3://bucket", read_timeout="200ms")
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"s3://bucket cannot be reached$"):
            artifacts.put("a", b"x")
        assert time.monotonic() - started < 10


class Flaky(http.server.BaseHTTPRequestHandler):
    """Real storage behind a bad line: answers `status` as long as `spoils` says so, and hands everything else on."""

    def log_message(self, *_: object) -> None: ...

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append(f"{self.command} {self.path}")
        if self.server.spoils(self):
            self.send_response(self.server.status)
            answer, headers = b"<Error><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>", []
        else:
            line = http.client.HTTPConnection(self.server.behind, timeout=30)
            line.request(self.command, self.path, body, dict(self.headers))
            there = line.getresponse()
            answer = there.read()
            line.close()
            self.send_response(there.status)
            headers = [pair for pair in there.getheaders() if pair[0].lower() != "content-length"]
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_GET = do_POST = do_DELETE = pass_on


@pytest.fixture
def flaky(s3_server):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        server.behind, server.status, server.seen = s3_server.removeprefix("http://"), 503, []
        server.spoils = lambda request: False
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def first(times: int):
    left = iter(range(times))
    return lambda request: next(left, None) is not None


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_that_passes_is_not_noticed(flaky, bucket, status):
    artifacts = s3(flaky.url, f"s3://{bucket}")
    flaky.status, flaky.spoils = status, first(2)
    artifacts.put(CLIP, b"clip")
    flaky.spoils = first(2)
    assert artifacts.get(CLIP) == b"clip"
    assert [each.split()[0] for each in flaky.seen] == ["PUT"] * 3 + ["GET"] * 3


def test_an_error_that_stays_is_told_after_three_tries_and_the_old_artifact_with_it(flaky, bucket):
    artifacts = s3(flaky.url, f"s3://{bucket}")
    artifacts.put(CLIP, b"old")
    flaky.seen.clear()
    flaky.spoils = lambda request: True
    with pytest.raises(
        StorageError, match=f"cannot write {CLIP}: s3://{bucket} answered 503 Service Unavailable$"
    ):
        artifacts.put(CLIP, b"new")
    assert len(flaky.seen) == 3
    flaky.spoils = lambda request: False
    assert artifacts.get(CLIP) == b"old"


def test_an_upload_in_parts_that_fails_leaves_the_old_artifact_and_no_parts(flaky, bucket, client):
    artifacts = s3(flaky.url, f"s3://{bucket}")
    artifacts.put(CLIP, b"old")
    flaky.spoils = lambda request: "partNumber=2" in request.path
    with pytest.raises(StorageError, match="503"):
        artifacts.put(CLIP, b"x" * (PART + 1))
    assert artifacts.get(CLIP) == b"old"
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, "answered 403 Forbidden; are the credentials right"),
        (401, "answered 401 Unauthorized; are the cred"),
        (507, "no space left on s3://"),
    ],
)
def test_what_storage_answers_is_told_without_its_secrets(flaky, bucket, status, said):
    artifacts = s3(flaky.url, f"s3://{bucket}")
    flaky.status, flaky.spoils = status, lambda request: True
    with pytest.raises(StorageError, match=said) as told:
        artifacts.put(CLIP, b"x")
    assert "AKIA" not in str(told.value) and "\n" not in str(told.value)


def test_the_environment_can_say_it_all(s3_server, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    Artifacts.open(f"s3://{bucket}").check()


def test_options_outrank_the_environment(s3_server, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    s3(s3_server, f"s3://{bucket}").check()


@pytest.mark.parametrize(
    ("where", "options", "said"),
    [
        ("gs://bucket", {}, "gs:// is no storage"),
        ("http://host/x", {}, "http:// is no storage"),
        ("s3://", {}, "after s3:// come"),
        ("s3://key:hush@bucket", {}, "after s3:// come"),
        ("s3://Bucket", {}, "after s3:// come"),
        ("s3://bucket/../x", {}, "after s3:// come"),
        ("s3://bucket//x", {}, "after s3:// come"),
        ("s3://bucket", {"endpoint": "http://127.0.0.1:1"}, "set allow_http to true"),
        ("s3://bucket", {"endpoint": "minio:9000"}, "must be a URL"),
        ("s3://bucket", {"secret_access_key": "hush\nhush"}, "secret_access_key has a line break"),
        ("s3://bucket", {"colour": "hush"}, "'colour' is not valid"),
        ("s3://bucket", {"read_timeout": "soon"}, "soon"),
        ("folder", {"endpoint": "https://hush"}, "a folder takes no storage options; got endpoint"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once(where, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadOption, match=re.escape(said)) as refused:
        Artifacts.open(where, options=options)
    assert "hush" not in str(refused.value) and "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_line_break_after_a_credential_from_a_file_does_no_harm(s3_server, bucket):
    s3(s3_server, f"s3://{bucket}", secret_access_key="secret\n").check()


def test_a_line_break_in_the_environment_is_told(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush\n")
    with pytest.raises(BadOption, match="aws_secret_access_key has a line break"):
        Artifacts.open("s3://bucket")
