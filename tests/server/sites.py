"""Web servers on loopback, honest ones and others, and a name server that changes its mind."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from socketserver import TCPServer

import pytest

from broll.errors import UnsafeUrl

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PICTURE = b"\x89PNG" + bytes(range(256)) * 40
PUBLIC = "93.184.216.34"


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
    def server_bind(self):
        """Without http.server's question to the name server for its own name."""
        TCPServer.server_bind(self)

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


def drip(start):
    """The start at once, then a byte at a time, each soon enough to keep a read from timing out."""

    def speak(connection, over):
        connection.sendall(start)
        while not over.wait(0.05):
            connection.sendall(b"x")

    return speak


def refusal(guard, url, kind=UnsafeUrl):
    with pytest.raises(kind) as refused:
        guard.get(url)
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    return said
