"""A URL that a stranger gave, fetched without lending them this machine's place in its network.

    parse       http or https, no user name; one reading of the URL serves everything below
    resolve     once; every address of the name must be public, or in a range that the operator allows
    connect     to one of these addresses, never by the name again; TLS and the Host header still use the name
    redirect    all of it again, three times at most

Whoever owns a name may answer each question about it differently, and may send a byte a second. So what was checked
is what is connected to, and one deadline holds for everything from the first question to the last byte.

Public is narrower than `ipaddress` has it: Python calls NAT64, 6to4 and some more addresses global that lead, or can
lead, back inside. Spellings such as 0x7f000001 need no care: what is checked is what they resolve to.

No message names an address that was found, or says why it was refused. A name that has none is told apart, though.

Left out: this machine's own public addresses, and NAT64 prefixes that a network chose for itself.
"""

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore
import httpx

from broll.errors import FetchFailed, UnsafeUrl

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[..., list[tuple[Any, ...]]]

SCHEMES = {"http": 80, "https": 443}
PORTS = frozenset(SCHEMES.values())
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 3
MAX_URL = 8_000
HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")  # a name, or an address of version 6 without a zone
MAX_ATTEMPTS = 4  # of a name's addresses
ANSWER_LETTERS = 1_000

# https://www.iana.org/assignments/ipv6-address-space: all that is given out to the public. Outside are, among others,
# NAT64 64:ff9b::/96 and 64:ff9b:1::/48, which carry any IPv4 address, ::/96, which did, fec0::/10 and multicast
UNICAST = ip_network("2000::/3")

NOT_PUBLIC = tuple(
    ip_network(block)
    for block in (
        "100.64.0.0/10",  # carriers' own, and some clouds' metadata
        "168.63.129.16/32",  # Azure's metadata, at a public address
        "192.0.0.0/24",  # protocols' own
        "192.88.99.0/24",  # relays to 6to4
        "224.0.0.0/3",  # multicast and reserved
        "2001::/23",  # protocols' own; Teredo is the first of them
        "2001:db8::/32",  # examples
        "2002::/16",  # 6to4: carries any IPv4 address
        "3fff::/20",  # examples
    )
)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: httpx.Headers
    text: str  # its beginning


@dataclass(frozen=True)
class Deadline:
    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return False
    return address.is_global and not any(address in block for block in NOT_PUBLIC)


def plain(text: str) -> Address:
    """The address that a socket would reach: ::ffff:10.0.0.1 is 10.0.0.1."""
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def parse(given: str, base: httpx.URL | None = None) -> httpx.URL:
    if len(given) > MAX_URL:
        raise UnsafeUrl(f"the URL has {len(given)} letters; it may have {MAX_URL}")
    try:
        url = base.join(given) if base else httpx.URL(given)
    except (httpx.InvalidURL, ValueError) as failure:
        raise UnsafeUrl("this is not a URL; it must look like https://example.com/picture.png") from failure
    if url.scheme not in SCHEMES:
        raise UnsafeUrl("the URL must begin with http:// or https://")
    if url.userinfo:
        raise UnsafeUrl("the URL contains a user name or password; it may not")
    if not HOST.fullmatch(url.raw_host.decode("ascii")):
        raise UnsafeUrl("the URL must name a host, in letters, digits, dots and hyphens")
    if not 0 < port_of(url) < 2**16:
        raise UnsafeUrl(f"the URL names port {port_of(url)}, which there cannot be")
    return url


def port_of(url: httpx.URL) -> int:
    return SCHEMES[url.scheme] if url.port is None else url.port


def host_of(url: httpx.URL) -> str:
    """As a message may show it: ASCII, and not endless."""
    return url.raw_host.decode("ascii")[:100]


@contextmanager
def reported(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """What a socket raises, in the words that httpcore expects."""
    try:
        yield
    except TimeoutError as failure:
        raise late from failure
    except (OSError, ValueError) as failure:
        raise failed from failure


class Stream(httpcore.NetworkStream):
    """A socket with one deadline for everything; httpcore's own begins a new one with every read and write."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self.socket = connected
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002  httpcore's signature
        with reported(httpcore.ReadTimeout, httpcore.ReadError):
            self.socket.settimeout(self.deadline.left())
            return self.socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        with reported(httpcore.WriteTimeout, httpcore.WriteError):
            while buffer:
                self.socket.settimeout(self.deadline.left())
                buffer = buffer[self.socket.send(buffer) :]

    def close(self) -> None:
        self.socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        try:
            with reported(httpcore.ConnectTimeout, httpcore.ConnectError):
                self.socket.settimeout(self.deadline.left())
                secure = ssl_context.wrap_socket(self.socket, server_hostname=server_hostname)
        except httpcore.ConnectError as failure:
            self.close()
            if isinstance(failure.__cause__, ssl.SSLCertVerificationError):
                raise FetchFailed(f"the certificate of {server_hostname} is not valid for it") from failure
            raise
        except BaseException:
            self.close()
            raise
        return Stream(secure, self.deadline)


class Pinned(httpcore.NetworkBackend):
    """Connects to addresses that were checked, whatever name it is given."""

    def __init__(self, addresses: tuple[Address, ...], deadline: Deadline) -> None:
        self.addresses = addresses[:MAX_ATTEMPTS]
        self.deadline = deadline

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002  the point of this class
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Any = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        failure: Exception | None = None
        for done, address in enumerate(self.addresses):
            try:
                with reported(httpcore.ConnectTimeout, httpcore.ConnectError):
                    share = self.deadline.left() / (len(self.addresses) - done)
                    return Stream(socket.create_connection((str(address), port), share), self.deadline)
            except (httpcore.ConnectTimeout, httpcore.ConnectError) as refused:
                failure = refused
        raise failure or httpcore.ConnectError


@contextmanager
def explained(url: httpx.URL, seconds: float) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, httpcore.TimeoutException) as failure:
        raise FetchFailed(f"{host_of(url)} took more than {seconds:g} s") from failure
    except httpcore.ConnectError as failure:
        raise FetchFailed(f"no connection to {host_of(url)} could be made") from failure
    except (httpcore.NetworkError, httpcore.ProtocolError, ValueError) as failure:
        raise FetchFailed(f"the answer of {host_of(url)} broke off, or was not HTTP") from failure


@dataclass(frozen=True)
class Guard:
    allow: tuple[Network, ...] = ()  # reached although not public, and at any port
    max_bytes: int = 30_000_000
    timeout_s: float = 20.0
    resolve: Resolve = socket.getaddrinfo

    def check(self, url: str) -> None:
        """Whether it could be fetched now. The answer does not last: `get` and `post` ask again."""
        parsed, deadline = parse(url), Deadline.after(self.timeout_s)
        with explained(parsed, self.timeout_s):
            self._addresses(parsed, deadline)

    def get(self, url: str) -> bytes:
        deadline = Deadline.after(self.timeout_s)
        target = parse(url)
        for _ in range(MAX_REDIRECTS + 1):
            with explained(target, self.timeout_s), self._exchange("GET", target, deadline) as response:
                headers = httpx.Headers(response.headers)
                if response.status not in REDIRECTS or "location" not in headers:
                    return self._body(target, response)
            target = parse(headers["location"], target)
        raise FetchFailed(f"{host_of(parse(url))} redirects more than {MAX_REDIRECTS} times")

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """One question, one answer, whatever its status; a redirect is an answer."""
        deadline = Deadline.after(self.timeout_s)
        target = parse(url)
        with (
            explained(target, self.timeout_s),
            self._exchange("POST", target, deadline, headers, body) as response,
        ):
            text = beginning(response, 4 * ANSWER_LETTERS).decode("utf-8", "replace")[:ANSWER_LETTERS]
            return Answer(response.status, httpx.Headers(response.headers), text)

    def _addresses(self, url: httpx.URL, deadline: Deadline) -> tuple[Address, ...]:
        """Those to connect to: all that the name has, each of them permitted; or UnsafeUrl."""
        host, port = url.raw_host.decode("ascii"), port_of(url)
        found = tuple(dict.fromkeys(self._lookup(host, port, deadline)))
        allowed = [any(address in block for block in self.allow) for address in found]
        if port not in PORTS and not all(allowed):
            raise UnsafeUrl(f"the URL names port {port}; the ports are 80 and 443")
        if not all(known or is_public(address) for address, known in zip(found, allowed, strict=True)):
            raise UnsafeUrl(
                f"{host_of(url)} is not on the public internet; only what is there may be fetched"
            )
        return found

    def _lookup(self, host: str, port: int, deadline: Deadline) -> list[Address]:
        """In a thread, which is left behind when it is late: getaddrinfo knows no deadline."""
        asked: Future[list[tuple[Any, ...]]] = Future()

        def ask() -> None:
            try:
                asked.set_result(self.resolve(host, port, type=socket.SOCK_STREAM))
            except Exception as failure:  # noqa: BLE001  raised again where the answer is awaited
                asked.set_exception(failure)

        threading.Thread(target=ask, name="guard-resolve", daemon=True).start()
        try:
            found = [plain(place[0]) for *_, place in asked.result(deadline.left())]
        except TimeoutError:
            raise
        except (OSError, ValueError) as failure:
            raise FetchFailed(f"the name {host[:100]} has no address") from failure
        if not found:
            raise FetchFailed(f"the name {host[:100]} has no address")
        return found

    @contextmanager
    def _exchange(
        self,
        method: str,
        url: httpx.URL,
        deadline: Deadline,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Iterator[httpcore.Response]:
        own = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "Connection": "close"}
        asked = httpx.Headers({"User-Agent": "broll", "Accept": "*/*", **(headers or {})})
        asked.update(own)
        place = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=port_of(url), target=url.raw_path)
        backend = Pinned(self._addresses(url, deadline), deadline)
        with (
            httpcore.ConnectionPool(network_backend=backend) as pool,
            pool.stream(method, place, headers=asked.raw, content=body) as response,
        ):
            yield response

    def _body(self, url: httpx.URL, response: httpcore.Response) -> bytes:
        headers, host = httpx.Headers(response.headers), host_of(url)
        if not 200 <= response.status < 300:
            raise FetchFailed(f"{host} answered with status {response.status}")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchFailed(f"{host} sent the file compressed, which it was not asked for")
        too_long = FetchFailed(f"{host} sends more than {self.max_bytes / 1e6:g} MB, which is the most")
        if int(headers.get("content-length", "0")) > self.max_bytes:
            raise too_long
        received = bytearray()
        for part in response.iter_stream():
            received += part
            if len(received) > self.max_bytes:
                raise too_long
        return bytes(received)


def beginning(response: httpcore.Response, size: int) -> bytes:
    """What there is of it: the status has been said, and a body that breaks off does not unsay it."""
    received = bytearray()
    try:
        for part in response.iter_stream():
            received += part
            if len(received) >= size:
                break
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        pass
    return bytes(received[:size])
