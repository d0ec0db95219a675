"""Where a URL may lead. Only loopback is contacted; ranges of it stand for the public internet where need be."""

import socket
from ipaddress import ip_network

import pytest

from broll.errors import BadRequest, FetchFailed, UnsafeUrl
from broll.server.guard import Guard, is_public, plain
from tests.server.sites import LOOPBACK, PICTURE, PUBLIC, answers, moved, refusal, site

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
