from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from sidecar.dns.resolvconf import (
    NameServer,
    NameServers,
    parse_dots,
    parse_name_servers,
    parse_search,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", ["127.0.0.1"]),
        ("# nameserver 9.9.9.9\nsearch example\n", ["127.0.0.1"]),
        ("nameserver 127.0.0.53\noptions edns0 trust-ad\n", ["127.0.0.53"]),
        ("nameserver\t9.9.9.9 # ours\nnameserver 2620:fe::fe\n", ["9.9.9.9", "2620:fe::fe"]),
        (
            "nameserver 1.1.1.1\n" * 2 + "nameserver 1.1.1.2\nnameserver 1.1.1.3",
            ["1.1.1.1", "1.1.1.1", "1.1.1.2"],
        ),
        ("nameserver\nnameserver dns.example\nnameserver 9.9.9.9", ["9.9.9.9"]),
    ],
)
def test_parse(text: str, servers: list[str]) -> None:
    """At most three servers, by address; the local one if there is none."""
    assert servers == [each.text for each in parse_name_servers(text)]


@pytest.mark.parametrize(
    ("text", "domains"),
    [
        ("", ["home.example"]),
        ("search a.example\tB.example.\n", ["a.example", "b.example"]),
        ("search a.example\ndomain b.example c.example\n", ["b.example"]),
        ("domain a.example\nsearch b.example .\n", ["b.example"]),
        ("search a..example 10.0.0.1 ok.example\n", ["ok.example"]),
        ("search .\n", []),
    ],
)
def test_search(text: str, domains: list[str]) -> None:
    """The last line counts; the machine's own domain if there is none."""
    assert domains == list(parse_search(text, "host.home.example"))


def test_no_domain() -> None:
    """A machine without a domain has none."""
    assert () == parse_search("", "host")


def test_zone() -> None:
    """A link-local server has its zone."""
    found = NameServer.parse("fe80::1%lo")
    assert found is not None
    assert (socket.AF_INET6, 53, socket.if_nametoindex("lo")) == (
        *(found.family, found.port),
        found.sockaddr[-1],
    )


def test_read_again(tmp_path: Path) -> None:
    """A file that changes is read again; one that goes leaves what it said."""
    path = tmp_path / "resolv.conf"
    servers = NameServers(path)
    assert ["127.0.0.1"] == [each.text for each in servers()]
    path.write_text("nameserver 9.9.9.9\n", encoding="ascii")
    assert ["9.9.9.9"] == [each.text for each in servers()]
    path.write_text("search a.example\n", encoding="ascii")
    assert ("a.example",) == servers.search()
    other = tmp_path / "other"
    other.write_text("nameserver 1.1.1.1\n", encoding="ascii")
    other.replace(path)
    assert ["1.1.1.1"] == [each.text for each in servers()]
    path.unlink()
    assert ["1.1.1.1"] == [each.text for each in servers()]


@pytest.mark.parametrize(
    ("text", "dots"),
    [
        ("", 1),
        ("options edns0 ndots:5 trust-ad\n", 5),
        ("options ndots:5\noptions ndots:0 ndots:2\n", 2),
        ("options ndots:99\n", 15),
        ("options ndots: ndots:x ndots:-1 ndots:² ndots\n", 1),
    ],
)
def test_dots(text: str, dots: int) -> None:
    """How many make a name be taken as it is; the last word counts."""
    assert dots == parse_dots(text)
