from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from turning import Turning, turning
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.interfaces import (
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin, getPlugins
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.destinations import InterceptMode
from sidecar.endpoint_strings import TransparentClientParser, TransparentServerParser
from sidecar.endpoints import BACKLOG, TransparentClientEndpoint, TransparentServerEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


class TestServer:
    def test_discovered(self) -> None:
        """Twisted finds the parser among its plugins."""
        found = [
            p for p in getPlugins(IStreamServerEndpointStringParser) if p.prefix == "transparent"
        ]
        assert [TransparentServerParser] == [type(parser) for parser in found]

    def test_interface(self) -> None:
        """The parser is what Twisted expects."""
        assert verifyObject(IStreamServerEndpointStringParser, TransparentServerParser())
        assert verifyObject(IPlugin, TransparentServerParser())

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("15001", (15001, "", InterceptMode.AUTO, BACKLOG)),
            ("0", (0, "", InterceptMode.AUTO, BACKLOG)),
            ("15001:interface=127.0.0.1", (15001, "127.0.0.1", InterceptMode.AUTO, BACKLOG)),
            (r"15001:interface=\:\:1", (15001, "::1", InterceptMode.AUTO, BACKLOG)),
            (
                r"15001:interface=\:\:ffff\:127.0.0.1",
                (15001, "127.0.0.1", InterceptMode.AUTO, BACKLOG),
            ),
            ("15001:mode=auto", (15001, "", InterceptMode.AUTO, BACKLOG)),
            ("15001:mode=tproxy", (15001, "", InterceptMode.TPROXY, BACKLOG)),
            (
                "15001:backlog=5:mode=redirect:interface=10.0.0.1",
                (15001, "10.0.0.1", InterceptMode.REDIRECT, 5),
            ),
        ],
    )
    def test_parsed(
        self, turning: Turning, text: str, expected: tuple[int, str, InterceptMode, int]
    ) -> None:
        """A description becomes the endpoint that it describes."""
        endpoint = serverFromString(turning.reactor, f"transparent:{text}")
        assert isinstance(endpoint, TransparentServerEndpoint)
        assert verifyObject(IStreamServerEndpoint, endpoint)
        assert expected == (endpoint._port, endpoint._interface, endpoint._mode, endpoint._backlog)

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("", "port="),
            ("http", "port=http"),
            ("65536", "port=65536"),
            ("-1", "port=-1"),
            ("+80", r"port=\+80"),
            ("8_0", "port=8_0"),
            ("\N{ARABIC-INDIC DIGIT FOUR}", "port="),
            ("15001:80", "transparent:PORT"),
            ("port=15001", "transparent:PORT"),
            ("15001:interface=localhost", "localhost"),
            ("15001:interface=eth0", "eth0"),
            ("15001:interface=127.1", "127.1"),
            (r"15001:interface=fe80\:\:1%lo", "fe80::1%lo"),
            ("15001:mode=", "mode="),
            ("15001:mode=TPROXY", "mode=TPROXY"),
            ("15001:mode=nat", "auto, redirect, tproxy"),
            ("15001:backlog=0", "backlog=0"),
            ("15001:backlog=many", "backlog=many"),
            ("15001:backlog=2147483648", "backlog=2147483648"),
            ("15001:source=127.0.0.1", "source="),
            ("15001:mark=1", "mark="),
            ("15001:Interface=127.0.0.1", "Interface="),
        ],
    )
    def test_rejected(self, turning: Turning, text: str, names: str) -> None:
        """What is wrong is named."""
        with pytest.raises(ValueError, match=names):
            serverFromString(turning.reactor, f"transparent:{text}")


class TestClient:
    def test_discovered(self) -> None:
        """Twisted finds the parser among its plugins."""
        parsers = getPlugins(IStreamClientEndpointStringParserWithReactor)
        found = [parser for parser in parsers if parser.prefix == "transparent"]
        assert [TransparentClientParser] == [type(parser) for parser in found]

    def test_interface(self) -> None:
        """The parser is what Twisted expects."""
        assert verifyObject(IStreamClientEndpointStringParserWithReactor, TransparentClientParser())
        assert verifyObject(IPlugin, TransparentClientParser())

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("192.0.2.1:80:source=10.0.0.7", ("192.0.2.1", 80, "10.0.0.7", None)),
            (
                r"2001\:db8\:\:1:80:source=2001\:db8\:\:7:mark=0x539",
                ("2001:db8::1", 80, "2001:db8::7", 0x539),
            ),
            ("192.0.2.1:80:source=10.0.0.7:mark=7", ("192.0.2.1", 80, "10.0.0.7", 7)),
            (
                "192.0.2.1:80:source=10.0.0.7:mark=4294967295",
                ("192.0.2.1", 80, "10.0.0.7", 2**32 - 1),
            ),
        ],
    )
    def test_parsed(
        self, turning: Turning, text: str, expected: tuple[str, int, str, int | None]
    ) -> None:
        """A description becomes the endpoint that it describes."""
        endpoint = clientFromString(turning.reactor, f"transparent:{text}")
        assert isinstance(endpoint, TransparentClientEndpoint)
        assert verifyObject(IStreamClientEndpoint, endpoint)
        host, port, source, mark = expected
        assert (SocketAddress(host, port), source, mark) == (
            endpoint._address,
            endpoint._source.of(endpoint._address.family),
            endpoint._mark,
        )

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("192.0.2.1:80", "source=ADDR"),
            ("192.0.2.1:source=10.0.0.7", "HOST:PORT"),
            ("source=10.0.0.7", "HOST:PORT"),
            ("192.0.2.1:80:90:source=10.0.0.7", "HOST:PORT"),
            ("localhost:80:source=10.0.0.7", "localhost"),
            ("127.1:80:source=10.0.0.7", "127.1"),
            ("192.0.2.1:0:source=10.0.0.7", "'0'"),
            ("192.0.2.1:http:source=10.0.0.7", "http"),
            ("192.0.2.1:80:source=eth0", "eth0"),
            (r"192.0.2.1:80:source=\:\:1", "source=::1"),
            ("192.0.2.1:80:source=10.0.0.7:mark=0", "mark=0"),
            ("192.0.2.1:80:source=10.0.0.7:mark=0x", "mark=0x"),
            ("192.0.2.1:80:source=10.0.0.7:mark=4294967296", "mark=4294967296"),
            ("192.0.2.1:80:source=10.0.0.7:mode=auto", "mode="),
            ("192.0.2.1:80:source=10.0.0.7:timeout=5", "timeout="),
        ],
    )
    def test_rejected(self, turning: Turning, text: str, names: str) -> None:
        """What is wrong is named."""
        with pytest.raises(ValueError, match=names):
            clientFromString(turning.reactor, f"transparent:{text}")


def test_light() -> None:
    """Every twistd on the machine imports the parsers, so they import next to nothing."""
    program = (
        "import sys, sidecar.endpoint_strings;"
        "print([name for name in sys.modules if name.startswith('sidecar')],"
        " 'twisted.internet.reactor' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "['sidecar', 'sidecar.endpoint_strings'] False" == done.stdout.strip()
