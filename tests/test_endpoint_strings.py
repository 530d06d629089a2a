from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from turning import Turning, turning
from twisted.internet.endpoints import HostnameEndpoint, clientFromString, serverFromString
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
from sidecar.endpoint_strings import (
    ConnectClientParser,
    TransparentClientParser,
    TransparentServerParser,
)
from sidecar.endpoints import BACKLOG, TransparentClientEndpoint, TransparentServerEndpoint
from sidecar.protocols.connect import ConnectClientEndpoint
from sidecar.wire.basic import basic_authorization

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


class TestConnect:
    def test_discovered(self) -> None:
        """Twisted finds the parser among its plugins."""
        parsers = getPlugins(IStreamClientEndpointStringParserWithReactor)
        found = [parser for parser in parsers if parser.prefix == "connect"]
        assert [ConnectClientParser] == [type(parser) for parser in found]

    def test_interface(self) -> None:
        """The parser is what Twisted expects."""
        assert verifyObject(IStreamClientEndpointStringParserWithReactor, ConnectClientParser())
        assert verifyObject(IPlugin, ConnectClientParser())

    @pytest.mark.parametrize(
        ("text", "proxy", "authority", "credentials", "timeout"),
        [
            ("p.example:3128:h.example:443", ("p.example", 3128), "h.example:443", None, 30),
            ("P.Example.:3128:H.EXAMPLE.:443", ("p.example", 3128), "h.example:443", None, 30),
            ("192.0.2.1:80:192.0.2.2:22", ("192.0.2.1", 80), "192.0.2.2:22", None, 30),
            (r"\:\:1:80:2001\:db8\:\:1:22", ("::1", 80), "[2001:db8::1]:22", None, 30),
            (r"[\:\:1]:80:[2001\:db8\:\:1]:22", ("::1", 80), "[2001:db8::1]:22", None, 30),
            ("[::1]:80:[2001:db8::1]:22", ("::1", 80), "[2001:db8::1]:22", None, 30),
            ("[::1]:80:h.example:22", ("::1", 80), "h.example:22", None, 30),
            ("p:1:h:2:user=me", ("p", 1), "h:2", ("me", ""), 30),
            ("p:1:h:2:user=me:password=x", ("p", 1), "h:2", ("me", "x"), 30),
            (r"p:1:h:2:user=me:password=a\:b\=c", ("p", 1), "h:2", ("me", "a:b=c"), 30),
            ("p:1:h:2:timeout=5", ("p", 1), "h:2", None, 5),
        ],
    )
    def test_parsed(
        self,
        turning: Turning,
        text: str,
        proxy: tuple[str, int],
        authority: str,
        credentials: tuple[str, str] | None,
        timeout: float,
    ) -> None:
        """A description becomes the endpoint that it describes."""
        endpoint = clientFromString(turning.reactor, f"connect:{text}")
        assert isinstance(endpoint, ConnectClientEndpoint)
        assert verifyObject(IStreamClientEndpoint, endpoint)
        assert isinstance(endpoint._proxy, HostnameEndpoint)
        assert proxy == (endpoint._proxy._hostText, endpoint._proxy._port)
        assert (authority, timeout) == (endpoint._authority, endpoint._timeout)
        expected = None if credentials is None else basic_authorization(*credentials)
        assert expected == endpoint._authorization

    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_password_file(self, turning: Turning, tmp_path: Path, end: str) -> None:
        """A password that others shall not see is a file's one line."""
        file = tmp_path / "password"
        file.write_bytes(f"s\xe9cret :word{end}".encode())
        text = f"connect:p:1:h:2:user=me:password-file={file}"
        endpoint = clientFromString(turning.reactor, text)
        assert isinstance(endpoint, ConnectClientEndpoint)
        assert basic_authorization("me", "s\xe9cret :word") == endpoint._authorization

    @pytest.mark.parametrize(
        "content", [b"", b"\n", b"a\nb\n", b"\xff\n", b"x" * 1025, b"a\x00b\n"]
    )
    def test_no_password_in_file(self, turning: Turning, tmp_path: Path, content: bytes) -> None:
        """Anything else in the file is an error that doesn't show it."""
        file = tmp_path / "password"
        file.write_bytes(content)
        with pytest.raises(ValueError, match="password"):
            clientFromString(turning.reactor, f"connect:p:1:h:2:user=me:password-file={file}")

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("", "connect:PROXYHOST"),
            ("p:1", "connect:PROXYHOST"),
            ("p:1:h", "connect:PROXYHOST"),
            ("p:1:h:2:3", "connect:PROXYHOST"),
            ("::1:1:h:2", "connect:PROXYHOST"),
            ("host=p:port=1:h:2", "connect:PROXYHOST"),
            ("127.1:1:h:2", r"127\.1"),
            ("p:0:h:2", "'0'"),
            ("p:http:h:2", "http"),
            ("p:1:h h:2", "h h"),
            (r"p:1:fe80\:\:1%lo:2", "fe80::1%lo"),
            ("p:1:[::1:2", "connect:PROXYHOST"),
            ("p:1:h:65536", "65536"),
            ("p:1:h:+2", r"\+2"),
            (r"p:1:h:2:user=a\:b", "colon"),
            ("p:1:h:2:user=a\nb", "control"),
            ("p:1:h:2:password=x", "user="),
            ("p:1:h:2:password-file=/x", "password-file=/x: No such file"),
            ("p:1:h:2:password-file=/etc/hostname", "user="),
            ("p:1:h:2:user=a:password=x:password-file=/x", "one of them"),
            ("p:1:h:2:timeout=0", "timeout=0"),
            ("p:1:h:2:timeout=3601", "timeout=3601"),
            ("p:1:h:2:timeout=1.5", r"timeout=1\.5"),
            ("p:1:h:2:timeout=", "timeout="),
            ("p:1:h:2:mark=1", "mark="),
            ("p:1:h:2:bindAddress=127.0.0.1", "bindAddress="),
            ("p:1:h:2:User=a", "User="),
        ],
    )
    def test_rejected(self, turning: Turning, text: str, names: str) -> None:
        """What is wrong is named."""
        with pytest.raises(ValueError, match=names):
            clientFromString(turning.reactor, f"connect:{text}")


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
