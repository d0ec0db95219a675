"""The socket that `broll serve` listens on."""

import socket

import pytest

from broll.cli.serve import listen
from broll.errors import BadOption


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_is_accepted_sends_at_once(host):
    """Without it every answer waited 40 ms for the client's delayed acknowledgement."""
    try:
        listening = listen(host, 0)
    except BadOption:
        pytest.skip(f"this machine has no {host}")
    with listening, socket.create_connection(listening.getsockname()[:2]), listening.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_port_in_use_is_one_clear_line():
    with (
        listen("127.0.0.1", 0) as listening,
        pytest.raises(BadOption, match=r"cannot listen on 127\.0\.0\.1"),
    ):
        listen("127.0.0.1", listening.getsockname()[1])
