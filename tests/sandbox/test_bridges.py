"""What `--host-port` and `--publish` may say."""

from __future__ import annotations

import socket

import pytest
from support import open_descriptors

from sidecar.errors import ConfigError, ListenError
from sidecar.sandbox.bridges import BRIDGES_MAX, Bridge, Bridges, listen


def ends(bridges: tuple[Bridge, ...]) -> list[tuple[int, int]]:
    return [(each.port, each.target) for each in bridges]


class TestRead:
    def test_ports(self) -> None:
        """One number stands for both."""
        found = Bridges.of(["1", "5432:15432"], ["65535", "8080:80", "8081:80"])
        assert [(1, 1), (5432, 15432)] == ends(found.host_ports)
        assert [(65535, 65535), (8080, 80), (8081, 80)] == ends(found.published)
        assert [1, 5432] == found.inside

    def test_rule(self) -> None:
        """In the log stands what was given, and by which option."""
        found = Bridges.of(["80:80", "81:82"], ["83"])
        rules = [each.rule for each in (*found.host_ports, *found.published)]
        assert ["80 (--host-port)", "81:82 (--host-port)", "83 (--publish)"] == rules

    def test_both_ways(self) -> None:
        """One port may lead out, and the same of the host's in to another."""
        found = Bridges.of(["80:81"], ["80:8080"])
        assert ([(80, 81)], [(80, 8080)]) == (ends(found.host_ports), ends(found.published))

    @pytest.mark.parametrize(
        ("host_ports", "published", "problem"),
        [
            (["0"], [], "--host-port = '0': '0': not a port (write a number from 1"),
            (["65536"], [], "'65536': not a port"),
            (["-1"], [], "'-1': not a port"),
            ([], ["http"], "--publish = 'http': 'http': not a port"),
            ([], [""], "'': not a port"),
            ([], ["80:"], "--publish = '80:': '': not a port"),
            ([], [":80"], "--publish = ':80': '': not a port"),
            ([], ["1:2:3"], "'2:3': not a port"),
            (["53"], [], "--host-port = '53': port 53 is the DNS server's inside"),
            (["61453"], [], "port 61453 is sidecar's own inside"),
            ([], ["8053:53"], "--publish = '8053:53': port 53 is the DNS server's inside"),
            (["80", "80:81"], [], "--host-port = '80:81': port 80 is given twice"),
            ([], ["80", "80:81"], "--publish = '80:81': port 80 is given twice"),
            (
                ["80:8080"],
                ["8080:81"],
                "--host-port = '80:8080': leads to --publish 8080:81: take another",
            ),
            (
                ["80:81"],
                ["8080:80"],
                "--publish = '8080:80': leads to --host-port 80:81: take another",
            ),
            (
                [],
                [str(port + 1) for port in range(BRIDGES_MAX + 1)],
                f"--publish: at most {BRIDGES_MAX} can be given",
            ),
        ],
    )
    def test_bad(self, host_ports: list[str], published: list[str], problem: str) -> None:
        """What can't be is named, with the option that says it."""
        with pytest.raises(ConfigError) as caught:
            Bridges.of(host_ports, published)
        assert problem in str(caught.value)


class TestOpen:
    def test_all_or_nothing(self) -> None:
        """When one can't be had, the others are given back."""
        with listen("::1", 0) as taken, listen("127.0.0.1", 0) as free:
            port, other = taken.getsockname()[1], free.getsockname()[1]
            free.close()
            before = open_descriptors()
            with pytest.raises(ListenError) as caught:
                Bridges.of([], [f"{other}:80", f"{port}:80"]).open()
            assert before == open_descriptors()
        assert f"[::1]:{port} (--publish {port}:80)" == caught.value.where

    def test_no_ipv6(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where there is none, IPv4 will do."""
        monkeypatch.setattr("sidecar.sandbox.bridges.LOOPBACK", ("127.0.0.1", "2001:db8::1"))
        with listen("127.0.0.1", 0) as free:
            port = free.getsockname()[1]
        bridges = Bridges.of([], [str(port)])
        bridges.open()
        families = [sock.family for _, sock in bridges.listeners]
        bridges.close()
        assert [socket.AF_INET] == families
