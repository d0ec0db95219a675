"""Only loopback is contacted; ranges of it stand for the public internet where something must answer."""

import datetime as dt
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broll.errors import BadRequest
from broll.server.guard import FetchFailed, Guard, UnsafeUrl, is_public, plain

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PICTURE = b"\x89PNG" + bytes(range(256)) * 40
PUBLIC = "93.184.216.34"

INSIDE = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "172.16.0.1", "192.0.0.9", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "::ffff:100.64.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::7f00:1", "100::1", "2001::1",
    "2001:0:7f00:1::", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::", "3fff::1", "5f00::1", "fc00::1",
    "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip
OUTSIDE = ["8.8.8.8", PUBLIC, "100.63.255.255", "100.128.0.1", "172.32.0.1", "223.255.255.1", "::ffff:8.8.8.8",
           "2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "2001:4860:4860::8888"]  # fmt: skip


def answers(*turns):
    """A name server of one's own: the first turn's addresses to the first question, and so on; the last stays."""
    asked = []

    def resolve(host, port, **_):
        asked.append((host, port))
        turn = turns[min(len(asked), len(turns)) - 1]
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port))
            for a in turn
        ]

    resolve.asked = asked
    return resolve


class Site(BaseHTTPRequestHandler):
    """Answers a path with what its server holds for it, and keeps what it was asked."""

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.path, dict(self.headers), body))
        status, headers, sent = self.server.pages.get(self.path, (404, {}, b"nothing here"))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(sent)), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        """A client that hangs up is what is tested."""


class Server6(Server):
    address_family = socket.AF_INET6


@contextmanager
def site(pages, address="127.0.0.1", secure=None):
    server = (Server6 if ":" in address else Server)((address, 0), Site)
    server.pages, server.asked, server.port = pages, [], server.server_address[1]
    if secure:
        server.socket = secure.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def speaker(speak):
    """A server that says what `speak` writes into the connection, which need not be HTTP."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection:
                try:
                    connection.recv(65536)
                    speak(connection, over)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            over.set()
            thread.join()


def moved(where, status=302):
    return (status, {"Location": where}, b"")


def refusal(guard, url, kind=UnsafeUrl):
    with pytest.raises(kind) as refused:
        guard.get(url)
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    return said


# addresses


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_is_not_public_is_refused(address):
    assert not is_public(plain(address))
    said = refusal(Guard(resolve=answers([address])), "http://pictures.example/a.png")
    assert "pictures.example" in said
    assert address not in said


@pytest.mark.parametrize("address", OUTSIDE)
def test_a_public_address_passes(address):
    Guard(resolve=answers([address])).check("https://pictures.example/a.png")


@pytest.mark.parametrize(
    "block", ["64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10", "100.64.0.0/10"]
)
def test_blocks_that_lead_back_inside_are_refused_from_end_to_end(block):
    network = ip_network(block)
    assert not is_public(network[0])
    assert not is_public(network[-1])


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.1", "0x7f.1", "localhost", "[::1]", "[::]", "0",
     "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:0001]", "LOCALHOST",
     "%31%32%37.0.0.1", "１２７.0.0.1", "[fe80::1%25lo]", "[64:ff9b::7f00:1]"],
)  # fmt: skip
def test_no_spelling_of_this_machine_is_reached(host):
    with site({"/": (200, {}, b"secret")}) as here, pytest.raises(BadRequest):
        Guard().get(f"http://{host}:{here.port}/")
    with pytest.raises((UnsafeUrl, FetchFailed)):
        Guard().check(f"http://{host}/")
    assert here.asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.1"])
def test_odd_spellings_are_refused_for_what_they_resolve_to(host):
    with pytest.raises(UnsafeUrl, match=r"not on the public internet|not a URL"):
        Guard().check(f"http://{host}/")


def test_one_bad_address_among_good_ones_refuses_the_name():
    for mixture in (["10.0.0.1", PUBLIC], [PUBLIC, "10.0.0.1"], [PUBLIC, "2606:4700::1111", "::1"]):
        refusal(Guard(resolve=answers(mixture)), "http://pictures.example/")


def test_an_allowed_range_is_reached_and_nothing_beside_it():
    with site({"/": (200, {}, PICTURE)}) as here:
        guard = Guard(allow=(ip_network("127.0.0.1/32"),))
        assert guard.get(f"http://127.0.0.1:{here.port}/") == PICTURE
        assert guard.get(f"http://[::ffff:127.0.0.1]:{here.port}/") == PICTURE
        refusal(guard, f"http://127.0.0.2:{here.port}/")
        refusal(Guard(allow=(ip_network("10.0.0.0/8"),)), "http://127.0.0.1/")


# the URL


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.com/a", "gopher://example.com:70/_", "data:image/png;base64,AAAA",
     "//example.com/a", "example.com/a", "", "http://", "http:///a", "http:example.com", "unix:///run/docker.sock", "HTTPS+unix://a",
     "dict://a:11211/", "http://a%2eb/", 'http://a"b/', "http://a b/", "http://[fe80::1%25lo]/", "http://*/",
     "http://example.com:0/", "http://example.com:99999/", "http://example.com:-80/", "http://example.com:x/", "http://[::1/",
     "http://a\nb/", "http://a\0b/", "http://" + "a" * 9000, "http://\udcff/", "http://example.com/\udcff"],
)  # fmt: skip
def test_what_is_no_web_address_is_refused(url):
    guard = Guard(resolve=answers([PUBLIC]))
    refusal(guard, url)
    assert guard.resolve.asked == []


@pytest.mark.parametrize("url", ["http://me:secret@example.com/", "http://me@example.com/", "http://example.com:80@127.0.0.1/",
                                 "http://example.com\\@127.0.0.1/", "http://:@127.0.0.1/"])  # fmt: skip
def test_a_user_name_in_the_url_is_refused(url):
    said = refusal(Guard(resolve=answers([PUBLIC])), url)
    assert "password" in said
    assert "secret" not in said


@pytest.mark.parametrize("port", [1, 22, 25, 6379, 8080, 65535])
def test_ports_other_than_those_of_the_web_are_refused(port):
    assert str(port) in refusal(Guard(resolve=answers([PUBLIC])), f"http://example.com:{port}/")
    mixture = Guard(allow=LOOPBACK, resolve=answers(["127.0.0.1", PUBLIC]))
    assert str(port) in refusal(mixture, f"http://example.com:{port}/")


@pytest.mark.parametrize("url", ["http://example.com/", "https://example.com/", "http://example.com:443/",
                                 "https://example.com:80/", "HTTP://EXAMPLE.COM", "http://example.com:/a",
                                 "http://bücher.example/", "http://example.com./"])  # fmt: skip
def test_ports_and_spellings_of_the_web_pass(url):
    Guard(resolve=answers([PUBLIC])).check(url)


def test_a_name_without_an_address_could_not_be_fetched():
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for resolve in (unknown, answers([])):
        assert "no address" in refusal(Guard(resolve=resolve), "http://nowhere.example/", FetchFailed)
    assert "no address" in refusal(Guard(), f"http://{'a' * 64}.example/", FetchFailed)
    assert "no address" in refusal(Guard(), "http://.example/", FetchFailed)


# the pin


def test_a_name_is_asked_about_once_and_what_was_checked_is_connected_to():
    with site({"/": (200, {}, PICTURE)}, "127.0.0.1") as good, site({}, "127.0.0.2") as bad:
        bad.pages["/"] = (200, {}, b"secret")
        guard = Guard(allow=(ip_network("127.0.0.1/32"),), resolve=answers(["127.0.0.1"], ["127.0.0.2"]))
        assert guard.get(f"http://pictures.example:{good.port}/") == PICTURE
    assert guard.resolve.asked == [("pictures.example", good.port)]
    assert bad.asked == []


def test_an_earlier_check_is_no_pass_for_a_name_that_moves_inside():
    guard = Guard(resolve=answers([PUBLIC], ["127.0.0.1"]))
    guard.check("http://pictures.example/")
    refusal(guard, "http://pictures.example/")


def test_a_name_that_moves_inside_between_redirects_is_refused():
    with site({"/": moved("/inner"), "/inner": (200, {}, b"secret")}) as here:
        guard = Guard(allow=(ip_network("127.0.0.1/32"),), resolve=answers(["127.0.0.1"], ["127.0.0.2"]))
        refusal(guard, f"http://pictures.example:{here.port}/")
        assert [path for path, *_ in here.asked] == ["/"]


def test_the_host_header_has_the_name_and_not_the_address():
    with site({"/a?b=c": (200, {}, PICTURE)}) as here:
        guard = Guard(allow=LOOPBACK, resolve=answers(["127.0.0.1"]))
        guard.get(f"http://Pictures.Example:{here.port}/a?b=c#d")
        ((path, headers, _),) = here.asked
        assert (path, headers["Host"]) == ("/a?b=c", f"pictures.example:{here.port}")
        assert "Cookie" not in headers


def test_the_next_address_is_tried_when_one_is_dead():
    with site({"/": (200, {}, PICTURE)}, "127.0.0.2") as here:
        guard = Guard(allow=LOOPBACK, resolve=answers(["127.0.0.1", "127.0.0.2"]))
        assert guard.get(f"http://pictures.example:{here.port}/") == PICTURE


def test_addresses_of_version_six_work():
    with site({"/": (200, {}, PICTURE)}, "::1") as here:
        assert Guard(allow=LOOPBACK).get(f"http://[::1]:{here.port}/") == PICTURE
        assert here.asked[0][1]["Host"] == f"[::1]:{here.port}"
        refusal(Guard(), f"http://[::1]:{here.port}/")


def test_proxies_of_the_environment_are_ignored(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with site({"/": (200, {}, PICTURE)}) as here:
        assert Guard(allow=LOOPBACK).get(f"http://127.0.0.1:{here.port}/") == PICTURE


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


# redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(status):
    with site({"/": moved("b?c", status), "/b?c": (200, {}, PICTURE)}) as here:
        assert Guard(allow=LOOPBACK).get(f"http://127.0.0.1:{here.port}/") == PICTURE


@pytest.mark.parametrize(
    "where",
    ["http://169.254.169.254/latest/meta-data/", "//169.254.169.254/", "http://[fd00:ec2::254]/", "file:///etc/passwd",
     "http://2852039166/", "http://me:you@127.0.0.1/", "gopher://127.0.0.1/", "http://[", "http://10.0.0.1:22/"],
)  # fmt: skip
def test_a_redirect_to_where_the_url_itself_could_not_lead_is_refused(where):
    with site({"/": moved(where)}) as here:
        refusal(Guard(allow=LOOPBACK), f"http://127.0.0.1:{here.port}/")


def test_three_redirects_are_followed_and_not_a_fourth():
    pages = {
        "/4": moved("/3"),
        "/3": moved("/2"),
        "/2": moved("/1"),
        "/1": moved("/0"),
        "/0": (200, {}, PICTURE),
    }
    with site(pages) as here:
        assert Guard(allow=LOOPBACK).get(f"http://127.0.0.1:{here.port}/3") == PICTURE
        here.asked.clear()
        assert "3 times" in refusal(Guard(allow=LOOPBACK), f"http://127.0.0.1:{here.port}/4", FetchFailed)
        assert [path for path, *_ in here.asked] == ["/4", "/3", "/2", "/1"]


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


def drip(start):
    """The start at once, then a byte at a time, each soon enough to keep a read from timing out."""

    def speak(connection, over):
        connection.sendall(start)
        while not over.wait(0.05):
            connection.sendall(b"x")

    return speak


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
