"""Artifacts: the same promises in a folder and in S3; then what only one of them can break."""

import http.client
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broll.errors import ArtifactMissing, BadOption, BadRequest, StorageError
from broll.jobs.artifacts import PART, PIECE, Artifacts

KEYS = {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"}
CLIP = "job_01k8/clip.mp4"


@pytest.fixture(autouse=True)
def no_cloud_account(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def s3_server():
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def client(s3_server):
    boto3 = pytest.importorskip("boto3")
    made = boto3.client(
        "s3",
        endpoint_url=s3_server,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    yield made
    made.close()


@pytest.fixture
def bucket(client):
    name = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return name


def s3(endpoint: str, where: str, **options: str) -> Artifacts:
    return Artifacts.open(where, options={"endpoint": endpoint, "allow_http": "true", **KEYS, **options})


@pytest.fixture
def folder(tmp_path):
    return Artifacts.open(str(tmp_path / "kept"))


@pytest.fixture(params=["folder", "s3"])
def artifacts(request):
    if request.param == "folder":
        return request.getfixturevalue("folder")
    return s3(request.getfixturevalue("s3_server"), f"s3://{request.getfixturevalue('bucket')}/some/prefix")


# What both promise


@pytest.mark.parametrize("size", [0, 1, PIECE, PART + 1])
def test_what_is_put_can_be_got(artifacts, size):
    data = os.urandom(size)
    artifacts.put(CLIP, data, content_type="video/mp4")
    assert artifacts.get(CLIP) == data
    assert artifacts.size(CLIP) == size
    assert artifacts.exists(CLIP)


def test_a_second_put_replaces_the_first(artifacts):
    artifacts.put(CLIP, b"first, and longer")
    artifacts.put(CLIP, b"second")
    assert artifacts.get(CLIP) == b"second"
    assert artifacts.list_below("job_01k8") == [CLIP]


@pytest.mark.parametrize("path", ["nothing", "job_01k8", "job_01k8/clip.mp4/more", "job_01k8/clip"])
def test_what_is_not_there_is_missing_and_says_so(artifacts, path):
    artifacts.put(CLIP, b"clip")
    assert not artifacts.exists(path)
    for attempt in (
        lambda: artifacts.get(path),
        lambda: artifacts.size(path),
        lambda: artifacts.read(path, 0, 1),
        lambda: artifacts.read(path, 0, 0),
    ):
        with pytest.raises(ArtifactMissing, match=f"there is no artifact {path}$"):
            attempt()


@pytest.mark.parametrize("span", [(0, 1), (0, 1_000_000), (5, 5), (1_000_000, 1_000_000), (300_001, 999_999)])
def test_a_part_is_read_in_pieces(artifacts, span):
    data = os.urandom(1_000_000)
    artifacts.put(CLIP, data)
    pieces = list(artifacts.read(CLIP, *span))
    assert b"".join(pieces) == data[slice(*span)]
    assert all(0 < len(piece) <= PIECE for piece in pieces)


@pytest.mark.parametrize("span", [(0, 11), (10, 11), (11, 11), (400, 500), (5, 3), (-1, 3), (-3, -1)])
def test_a_part_that_is_not_there_is_refused_before_the_first_piece(artifacts, span):
    artifacts.put(CLIP, b"ten  bytes")
    with pytest.raises(StorageError):
        artifacts.read(CLIP, *span)


def test_a_reader_gets_one_version_even_if_it_is_replaced_meanwhile(artifacts):
    artifacts.put(CLIP, b"a" * 3_000_000)
    pieces = artifacts.read(CLIP, 0, 3_000_000)
    first = next(pieces)
    artifacts.put(CLIP, b"b" * 3_000_000)
    assert first + b"".join(pieces) == b"a" * 3_000_000
    assert artifacts.get(CLIP) == b"b" * 3_000_000


def test_a_deleted_artifact_is_gone_and_deleting_it_again_is_fine(artifacts):
    artifacts.put(CLIP, b"clip")
    artifacts.delete(CLIP)
    assert not artifacts.exists(CLIP)
    artifacts.delete(CLIP)
    artifacts.delete("job_01k8")


def test_a_list_ends_at_the_name_and_not_in_the_middle_of_it(artifacts):
    for path in ("job_1/b", "job_1/a", "job_1/more/c", "job_10/d", "job_1.x"):
        artifacts.put(path, b"")
    assert artifacts.list_below("job_1") == ["job_1/a", "job_1/b", "job_1/more/c"]
    assert artifacts.list_below("job_1/more") == ["job_1/more/c"]
    assert artifacts.list_below("job_2") == []
    assert len(artifacts.list_below("")) == 5


def test_deleting_below_a_job_leaves_the_next_job_alone(artifacts):
    for path in ("job_1/b", "job_1/a", "job_1/more/c", "job_10/d"):
        artifacts.put(path, b"")
    assert artifacts.delete_below("job_1") == 3
    assert artifacts.list_below("") == ["job_10/d"]
    assert artifacts.delete_below("job_1") == 0


def test_everything_at_once_cannot_be_deleted(artifacts):
    artifacts.put(CLIP, b"clip")
    with pytest.raises(BadRequest):
        artifacts.delete_below("")
    assert artifacts.exists(CLIP)


def test_more_than_a_page_of_artifacts_is_listed_and_deleted(artifacts):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: artifacts.put(f"job_1/{number:04}", b""), range(1005)))
    assert artifacts.list_below("job_1") == [f"job_1/{number:04}" for number in range(1005)]
    assert artifacts.delete_below("job_1") == 1005
    assert artifacts.list_below("") == []


def test_readers_see_whole_artifacts_while_writers_replace_them(artifacts):
    size = 700_000
    artifacts.put(CLIP, b"0" * size)

    def write(letter: bytes) -> None:
        for _ in range(6):
            artifacts.put(CLIP, letter * size)

    def read() -> None:
        for _ in range(20):
            data = artifacts.get(CLIP)
            assert len(data) == size and len(set(data)) == 1
            assert artifacts.list_below("job_01k8") == [CLIP]

    with ThreadPoolExecutor(5) as pool:
        work = [pool.submit(write, letter) for letter in (b"1", b"2", b"3")] + [
            pool.submit(read) for _ in "ab"
        ]
    assert [task.result() for task in work] == [None] * 5


def test_a_new_artifact_appears_whole(artifacts):
    size, done = 3_000_000, threading.Event()

    def watch() -> set[int]:
        seen = set()
        while not done.is_set():
            if artifacts.exists(CLIP):
                seen.add(artifacts.size(CLIP))
        return seen

    with ThreadPoolExecutor(1) as pool:
        sizes = pool.submit(watch)
        artifacts.put(CLIP, b"x" * size)
        time.sleep(0.05)
        done.set()
    assert sizes.result() <= {size}


def test_jobs_come_and_go_beside_each_other(artifacts):
    def live(number: int) -> None:
        for turn in range(12):
            path = f"jobs/tenant_{number % 2}/job_{number}/{turn}"
            artifacts.put(path, b"x")
            assert artifacts.get(path) == b"x"
            artifacts.delete(path)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(live, range(6)))
    assert artifacts.list_below("") == []


def test_two_may_delete_the_same_job(artifacts):
    for number in range(40):
        artifacts.put(f"job_1/{number}", b"")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(artifacts.delete_below, ["job_1", "job_1"]))
    assert artifacts.list_below("") == []


def test_the_check_passes_and_leaves_nothing(artifacts):
    artifacts.check()
    assert artifacts.list_below("") == []


TRICKS = [
    *(
        "",
        "/",
        "/etc/passwd",
        "..",
        ".",
        "../x",
        "a/..",
        "a/../b",
        "a/./b",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "..\\b",
    ),
    *(
        "a\0b",
        "a\n",
        "a\nb",
        "a b",
        "%2e%2e/x",
        "a%2fb",
        "a/%2e%2e",
        "～",
        "a/\u2024\u2024/b",
        "ａ",
        "é",
        "a\u202eb",
    ),
    *("~/x", "a#1", "a?b", "a:b", "C:/x", "a*", "\ud800", "x" * 201, "/".join(["x" * 100] * 9)),
]


@pytest.mark.parametrize("path", TRICKS)
def test_a_path_that_is_not_made_of_ids_is_refused(artifacts, path):
    for attempt in (
        lambda: artifacts.put(path, b""),
        lambda: artifacts.get(path),
        lambda: artifacts.size(path),
        lambda: artifacts.exists(path),
        lambda: artifacts.read(path, 0, 1),
        lambda: artifacts.delete(path),
        lambda: artifacts.delete_below(path),
    ):
        with pytest.raises(BadRequest, match="is no artifact"):
            attempt()


@pytest.mark.parametrize("path", ["...", "..a", "a..", ".a", "-", "_", "a/.../b", "x" * 200, "A1_.-/b"])
def test_dots_and_signs_within_a_name_are_fine(artifacts, path):
    artifacts.put(path, b"x")
    assert artifacts.list_below("") == [path]


pieces = st.sampled_from(
    ["..", ".", "/", "\\", "a", "job_1", "%2e", "%2f", "\0", "~", "é", "#1", "\n", " ", "-", "…"]
)


@given(path=st.lists(pieces, max_size=8).map("".join) | st.text(max_size=30))
@settings(max_examples=300)
def test_no_path_leads_out_of_the_folder(tmp_path_factory, path):
    around = tmp_path_factory.mktemp("around")
    artifacts = Artifacts.open(str(around / "kept"))
    try:
        artifacts.put(path, b"x")
    except BadRequest:
        assert not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", path)
        assert list((around / "kept").iterdir()) == []
    else:
        assert (around / "kept" / path).read_bytes() == b"x"
        assert ".." not in path.split("/")
    assert list(around.iterdir()) == [around / "kept"]


# A folder


def test_a_folder_is_made_for_its_owner_only(tmp_path):
    artifacts = Artifacts.open(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert artifacts.where == str(tmp_path / "a" / "b")


def test_a_folder_may_be_opened_over_a_link_and_from_two_sides(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    Artifacts.open(str(tmp_path / "link")).put(CLIP, b"x")
    assert Artifacts.open(str(tmp_path / "disk")).get(CLIP) == b"x"


def test_no_link_leads_out_of_the_folder(folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    root = Path(folder.where)
    (root / "file").symlink_to(tmp_path / "outside" / "secret")
    (root / "job").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    for path in ("file", "job/secret", "job/new", "loop/job/secret", "loop/x"):
        for attempt in (
            lambda path=path: folder.get(path),
            lambda path=path: folder.size(path),
            lambda path=path: folder.exists(path),
            lambda path=path: folder.read(path, 0, 1),
            lambda path=path: folder.put(path, b"x"),
            lambda path=path: folder.delete(path),
            lambda path=path: folder.delete_below(path),
        ):
            with pytest.raises(StorageError, match="links are not followed"):
                attempt()
    assert folder.list_below("") == []
    assert [file.name for file in (tmp_path / "outside").iterdir()] == ["secret"]
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"


def test_the_name_of_a_file_being_written_is_no_way_out_either(folder, tmp_path):
    (Path(folder.where) / "clip#1").symlink_to(tmp_path / "outside")
    folder.put("clip", b"x")
    assert folder.get("clip") == b"x"
    assert not (tmp_path / "outside").exists()


def test_empty_directories_are_cleared_away(folder):
    folder.put("tenant/job/clip", b"x")
    folder.delete("tenant/job/clip")
    assert list(Path(folder.where).iterdir()) == []


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys\nfrom broll.errors import *\nfrom broll.jobs.artifacts import Artifacts\n"
    return subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_writer_that_is_killed_leaves_the_old_artifact_and_nothing_to_see(folder):
    folder.put(CLIP, b"old")
    code = "from broll.jobs.artifacts import Artifacts; import sys; a = Artifacts.open(sys.argv[1])\n"
    code += f"data = b'x' * 200_000_000\nprint(1, flush=True)\na.put({CLIP!r}, data)"
    staged = Path(folder.where) / f"{CLIP}#1"
    with subprocess.Popen([sys.executable, "-c", code, folder.where], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        while not (staged.exists() and staged.stat().st_size) and writer.poll() is None:
            pass
        writer.send_signal(signal.SIGKILL)
    assert staged.exists(), "it was written before it could be killed"
    assert folder.get(CLIP) == b"old"
    assert folder.list_below("") == [CLIP]
    folder.put(CLIP, b"new")
    assert folder.get(CLIP) == b"new"
    assert folder.delete_below("job_01k8") == 1
    assert list(Path(folder.where).iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as Linux has it")
def test_a_write_that_the_system_breaks_off_leaves_the_old_artifact(folder):
    folder.put(CLIP, b"old")
    code = f"""
        import resource
        a = Artifacts.open(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            a.put({CLIP!r}, b"x" * 20_000_000)
        except StorageError as failure:
            print(failure)
    """
    assert run(code, folder.where).stdout == f"cannot write {CLIP}: file too large on {folder.where}\n"
    assert folder.get(CLIP) == b"old"
    assert [file.name for file in (Path(folder.where) / "job_01k8").iterdir()] == ["clip.mp4"]


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_artifact(tmp_path):
    allowed = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, check=False
    )
    if allowed.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    code = f"""
        import os, subprocess
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", sys.argv[1]], check=True)
        a = Artifacts.open(sys.argv[1])
        a.put({CLIP!r}, b"old")
        for path in ({CLIP!r}, "other"):
            try:
                a.put(path, b"x" * 5_000_000)
            except StorageError as failure:
                print(failure)
        print(a.get({CLIP!r}), a.list_below(""), os.listdir(sys.argv[1] + "/job_01k8"))
    """
    program = "import sys\nfrom broll.errors import *\nfrom broll.jobs.artifacts import Artifacts\n"
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", program + textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [
        f"cannot write {CLIP}: no space left on {tmp_path}",
        f"cannot write other: no space left on {tmp_path}",
        f"b'old' ['{CLIP}'] ['clip.mp4']",
    ], done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="permissions as POSIX has them")
def test_a_folder_that_may_not_be_written_is_one_clear_line(tmp_path):
    root = tmp_path / "kept"
    Artifacts.open(str(root)).put("clip", b"x")
    (root / "clip").chmod(0o000)
    code = """
        import os
        a = Artifacts.open(sys.argv[1])
        os.chmod(sys.argv[1], 0o555)
        if os.geteuid() == 0:  # root may write anywhere
            for place in (sys.argv[1], *sys.argv[2:]):
                os.chmod(place, 0o555)
            os.setuid(65534)
        for deed in (lambda: a.put("x", b"x"), lambda: a.get("clip"), lambda: a.delete("clip"), a.check):
            try:
                deed()
            except StorageError as failure:
                print(str(failure).partition(":")[2])
    """
    above = [str(place) for place in tmp_path.parents if place.stat().st_mode & 0o005 != 0o005]
    done = run(code, str(root), str(tmp_path), *above)
    assert done.stdout.splitlines() == [f" permission denied on {root}"] * 4, done.stderr


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_is_a_file_is_refused(tmp_path, where):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot open the folder"):
        Artifacts.open(str(tmp_path / where))


def test_an_artifact_cannot_be_put_below_another_or_in_place_of_a_job(folder):
    folder.put(CLIP, b"x")
    for path in (CLIP + "/more", "job_01k8"):
        with pytest.raises(StorageError, match=f"cannot write {path}: "):
            folder.put(path, b"y")
    assert folder.get(CLIP) == b"x"


def test_a_put_is_on_the_disk_when_it_returns(folder, tmp_path):
    """As strace sees it: written, renamed, and the file and its directories synced."""
    log = tmp_path / "calls"
    tracer = ["strace", "-f", "-y", "-e", "trace=rename,renameat,renameat2,fsync", "-o", str(log)]
    code = "from broll.jobs.artifacts import Artifacts; import sys; Artifacts.open(sys.argv[1])"
    try:
        subprocess.run(
            [*tracer, sys.executable, "-c", code + f".put({CLIP!r}, b'x')", folder.where],
            check=True,
            timeout=60,
            capture_output=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("strace cannot be used here")
    root = folder.where
    calls = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines() if root in line]
    assert calls[0].startswith(f'rename("{root}/{CLIP}#1", "{root}/{CLIP}")')
    assert [re.search(r"<(.*)>", call)[1] for call in calls[1:]] == [
        f"{root}/{CLIP}",
        f"{root}/job_01k8",
        root,
    ]


# S3


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
