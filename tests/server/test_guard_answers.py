"""What comes back from where a URL may lead: in what size and time, over TLS, and whether whole. Loopback only."""

import datetime as dt
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broll.errors import FetchFailed, UnsafeUrl
from broll.server.guard import Guard
from tests.server.sites import LOOPBACK, PICTURE, PUBLIC, answers, drip, refusal, site, speaker

# TLS


@pytest.fixture
def certified(tmp_path, monkeypatch):
    """A server's TLS for pictures.example, by an authority that this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.example")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pictures.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = tmp_path / "pem", tmp_path / "key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    return context


def test_tls_greets_and_verifies_the_name_at_the_pinned_address(certified):
    greeted = []
    certified.sni_callback = lambda _, name, __: greeted.append(name)
    with site({"/": (200, {}, PICTURE)}, secure=certified) as here:
        guard = Guard(allow=LOOPBACK, resolve=answers(["127.0.0.1"]))
        assert guard.get(f"https://pictures.example:{here.port}/") == PICTURE
        assert guard.post(f"https://pictures.example:{here.port}/", b"x" * 200_000, {}).status == 200
        assert len(here.asked[1][2]) == 200_000
        assert greeted == ["pictures.example"] * 2


@pytest.mark.parametrize("host", ["other.example", "127.0.0.1"])
def test_a_certificate_of_another_name_is_not_accepted(certified, host):
    with site({"/": (200, {}, PICTURE)}, secure=certified) as here:
        guard = Guard(allow=LOOPBACK, resolve=answers(["127.0.0.1"]))
        assert "certificate" in refusal(guard, f"https://{host}:{here.port}/", FetchFailed)
        assert here.asked == []


def test_a_certificate_of_an_unknown_authority_is_not_accepted(certified, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with site({"/": (200, {}, PICTURE)}, secure=certified) as here:
        guard = Guard(allow=LOOPBACK, resolve=answers(["127.0.0.1"]))
        assert "certificate" in refusal(guard, f"https://pictures.example:{here.port}/", FetchFailed)


def test_a_port_that_does_not_speak_tls_could_not_be_fetched():
    with site({}) as here:
        assert "no connection" in refusal(
            Guard(allow=LOOPBACK), f"https://127.0.0.1:{here.port}/", FetchFailed
        )


# size and time


def test_a_file_of_exactly_the_most_is_taken_and_one_byte_more_is_not():
    with site({"/": (200, {}, bytes(1000)), "/more": (200, {}, bytes(1001))}) as here:
        guard = Guard(allow=LOOPBACK, max_bytes=1000)
        assert len(guard.get(f"http://127.0.0.1:{here.port}/")) == 1000
        assert "0.001 MB" in refusal(guard, f"http://127.0.0.1:{here.port}/more", FetchFailed)


def test_a_file_that_does_not_say_its_size_is_cut_off_when_it_is_too_large():
    sent = []

    def endless(connection, over):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.is_set():
            sent.append(connection.send(bytes(10_000)))

    with speaker(endless) as port:
        refusal(Guard(allow=LOOPBACK, max_bytes=100_000), f"http://127.0.0.1:{port}/", FetchFailed)
    assert sum(sent) < 50_000_000


def test_a_claimed_size_that_is_too_large_is_refused_before_the_file_comes():
    def claim(connection, over):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
        over.wait(30)

    with speaker(claim) as port:
        assert "30 MB" in refusal(Guard(allow=LOOPBACK), f"http://127.0.0.1:{port}/", FetchFailed)


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
     b"HTTP/1.1 100 Continue\r\n\r\n"],
)  # fmt: skip
def test_a_server_that_drips_is_left_when_the_time_is_over(start):
    with speaker(drip(start)) as port:
        begun = time.monotonic()
        said = refusal(Guard(allow=LOOPBACK, timeout_s=0.4), f"http://127.0.0.1:{port}/", FetchFailed)
        assert time.monotonic() - begun < 2
        assert "0.4 s" in said or not start  # without a start the drops are no HTTP either


def test_a_server_that_never_answers_or_never_greets_is_left_when_the_time_is_over():
    for scheme in ("http", "https"):
        with speaker(lambda _, over: over.wait(30)) as port:
            begun = time.monotonic()
            said = refusal(Guard(allow=LOOPBACK, timeout_s=0.4), f"{scheme}://127.0.0.1:{port}/", FetchFailed)
            assert time.monotonic() - begun < 2
            assert "0.4 s" in said


def test_a_server_that_does_not_read_is_left_when_the_time_is_over():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        begun = time.monotonic()
        with pytest.raises(FetchFailed, match=r"more than 0\.4 s"):
            Guard(allow=LOOPBACK, timeout_s=0.4).post(
                f"http://127.0.0.1:{deaf.getsockname()[1]}/", bytes(30_000_000), {}
            )
        assert time.monotonic() - begun < 2


def test_a_name_server_that_is_slow_is_left_when_the_time_is_over():
    over = threading.Event()

    def slow(*_, **__):
        over.wait(30)
        return []

    begun = time.monotonic()
    guard = Guard(timeout_s=0.3, resolve=slow)
    refusal(guard, "http://pictures.example/", FetchFailed)
    with pytest.raises(FetchFailed, match=r"0\.3 s"):
        guard.check("http://pictures.example/")
    assert time.monotonic() - begun < 3
    over.set()


def test_redirects_share_one_deadline():
    def later(connection, over):
        over.wait(0.3)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")

    with speaker(later) as first:
        begun = time.monotonic()
        refusal(Guard(allow=LOOPBACK, timeout_s=0.5), f"http://127.0.0.1:{first}/", FetchFailed)
        assert time.monotonic() - begun < 2


# answers


@pytest.mark.parametrize("status", [304, 400, 404, 500])
def test_an_answer_that_is_no_success_could_not_be_fetched(status):
    with site({"/": (status, {}, b"")}) as here:
        assert str(status) in refusal(Guard(allow=LOOPBACK), f"http://127.0.0.1:{here.port}/", FetchFailed)


def test_a_compressed_answer_is_not_unpacked():
    with site({"/": (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")}) as here:
        assert "compressed" in refusal(Guard(allow=LOOPBACK), f"http://127.0.0.1:{here.port}/", FetchFailed)
        assert here.asked[0][1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "said",
    [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
     b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_what_is_not_whole_or_not_http_could_not_be_fetched(said):
    with speaker(lambda connection, _: connection.sendall(said)) as port:
        refusal(Guard(allow=LOOPBACK), f"http://127.0.0.1:{port}/", FetchFailed)


def test_a_port_where_nobody_listens_could_not_be_fetched():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    guard = Guard(allow=LOOPBACK, resolve=answers(["127.0.0.1"]))
    said = refusal(guard, f"http://pictures.example:{port}/", FetchFailed)
    assert "pictures.example" in said
    assert "127.0.0.1" not in said


def test_a_post_delivers_its_body_and_headers_and_brings_the_answer():
    with site({"/hook": (202, {"X-Seen": "yes"}, b"gut" * 1000)}) as here:
        guard = Guard(allow=LOOPBACK, resolve=answers(["127.0.0.1"]))
        headers = {"Content-Type": "application/json", "webhook-id": "msg_1", "Host": "elsewhere.example"}
        answer = guard.post(f"http://hooks.example:{here.port}/hook", b'{"a":1}', headers)
        assert (answer.status, answer.headers["x-seen"], answer.text) == (202, "yes", ("gut" * 1000)[:1000])
        ((_, asked, body),) = here.asked
        assert (body, asked["webhook-id"], asked["Content-Length"]) == (b'{"a":1}', "msg_1", "7")
        assert asked["Host"] == f"hooks.example:{here.port}"


@pytest.mark.parametrize("status", [307, 410, 500])
def test_a_post_reports_any_status_and_follows_nothing(status):
    with site({"/": (status, {"Location": "/next"}, b"no")}) as here:
        answer = Guard(allow=LOOPBACK).post(f"http://127.0.0.1:{here.port}/", b"", {})
        assert (answer.status, answer.text, len(here.asked)) == (status, "no", 1)


def test_a_post_is_answered_although_the_answer_goes_on_and_on():
    with speaker(drip(b"HTTP/1.1 200 OK\r\n\r\nthanks")) as port:
        begun = time.monotonic()
        answer = Guard(allow=LOOPBACK, timeout_s=0.5).post(f"http://127.0.0.1:{port}/", b"{}", {})
        assert answer.status == 200
        assert answer.text.startswith("thanks")
        assert time.monotonic() - begun < 2


def test_a_post_leads_nowhere_that_a_get_may_not():
    with pytest.raises(UnsafeUrl):
        Guard().post("http://169.254.169.254/", b"", {})
    with pytest.raises(UnsafeUrl):
        Guard(resolve=answers([PUBLIC])).post("http://example.com:6379/", b"", {})
