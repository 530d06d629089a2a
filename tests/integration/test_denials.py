"""What clients of every kind see of a denial, and of a name's addresses that don't answer."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from integration import clients, netns, origins
from integration.names_stage import (
    HOME,
    RIGHT,
    WRONG,
    Stage,
    page_from,
    plain_page,
    proxied,
    set_up,
)
from integration.origins import Origin

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from integration.proxy import Line, Sidecar

# Bytes: more than any buffer on the way holds, less than is read of a denied client.
_UPLOAD = 12 << 20


@pytest.fixture(scope="module")
def stage(outside: Path) -> Iterator[Stage]:
    with netns.pair("deny") as pair:
        yield set_up(pair, outside)


@pytest.fixture(scope="module")
def sidecar(stage: Stage) -> Iterator[Sidecar]:
    """One whose rules are for addresses, and for one name."""
    settings = """
[policy]
default = "deny"
allow = ["mixed.example:8080", "9.9.9.2:25"]
deny = ["9.9.9.1"]
private_names = ["mixed.example"]
"""
    with proxied(stage, settings, name="denials.toml") as made:
        yield made


def _curl(
    stage: Stage, url: str, address: SocketAddress, *flags: str
) -> subprocess.CompletedProcess[str]:
    host = url.split("/")[2].rsplit(":", 1)[0]
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "15"]
    command += ["--resolve", f"{host}:{address.port}:{address.host}", *flags, url]
    return stage.near.run(command, check=False)


def _facts(line: Line, *keys: str) -> list[object]:
    return [line[key] for key in keys]


class TestByAddress:
    """Denied whatever it says; it is told in its language all the same, and nobody is dialled."""

    @pytest.fixture
    def server(self, stage: Stage, port: int) -> Iterator[SocketAddress]:
        address = SocketAddress(RIGHT, port)
        with Origin(stage.far, address, origins.echo) as origin:
            yield address
            assert [] == origin.peers

    def _line(self, sidecar: Sidecar, server: SocketAddress) -> Line:
        line = sidecar.line(destination=server)
        assert ["deny", "denied_by_rule", None, "denied", 0, 0] == _facts(
            line, "verdict", "reason", "upstream", "end", "sent", "received"
        )
        return line

    def test_tls(self, stage: Stage, sidecar: Sidecar, server: SocketAddress) -> None:
        """Curl hears the alert access_denied, and the log has what it asked for."""
        done = _curl(stage, f"https://any.example:{server.port}/", server)
        assert 35 == done.returncode
        assert "access denied" in done.stderr
        line = self._line(sidecar, server)
        assert ["tls", "any.example"] == _facts(line, "protocol", "host")

    def test_http(self, stage: Stage, sidecar: Sidecar, server: SocketAddress) -> None:
        """Curl shows a 403 with the reason."""
        url = f"http://any.example:{server.port}/"
        done = _curl(stage, url, server, "--write-out", "%{http_code}")
        assert "sidecar: denied: denied_by_rule\n403" == done.stdout
        assert ["http", "any.example"] == _facts(self._line(sidecar, server), "protocol", "host")

    def test_hint(self, stage: Stage, sidecar: Sidecar, port: int) -> None:
        """And the rule that would allow it, where one would."""
        server = SocketAddress(WRONG, port)
        done = _curl(stage, f"http://any.example:{port}/", server)
        assert f"sidecar: denied: default; to allow it: {WRONG}:{port}\n" == done.stdout
        sidecar.line(destination=server, reason="default")

    def test_silent(self, stage: Stage, sidecar: Sidecar, server: SocketAddress) -> None:
        """A client that waits for its server to speak is reset."""
        with stage.near.connect(server) as connection:
            assert clients.Outcome(b"", reset=True) == clients.outcome_of_reading(connection)
        self._line(sidecar, server)

    def test_other(self, stage: Stage, sidecar: Sidecar, server: SocketAddress) -> None:
        """One that speaks neither is reset at its first words."""
        with stage.near.connect(server) as connection:
            with suppress(ConnectionError):
                connection.sendall(b"\x00\x01\x02\x03")
            assert clients.Outcome(b"", reset=True) == clients.outcome_of_reading(connection)
        self._line(sidecar, server)


class TestUpload:
    """A denied client that is still uploading sees why, not a reset."""

    def test_curl(self, stage: Stage, sidecar: Sidecar, tmp_path: Path, port: int) -> None:
        """Curl shows the 403."""
        server = SocketAddress(RIGHT, port)
        body = tmp_path / "body"
        body.write_bytes(bytes(_UPLOAD))
        flags = ("--data-binary", f"@{body}", "--header", "Expect:", "--write-out", "%{http_code}")
        done = _curl(stage, f"http://any.example:{port}/", server, *flags)
        assert done.stdout == "sidecar: denied: denied_by_rule\n403", done
        sidecar.line(destination=server)

    def test_whole(self, stage: Stage, sidecar: Sidecar, port: int) -> None:
        """So does a client that reads nothing before it has sent it all."""
        server = SocketAddress(RIGHT, port)
        head = f"POST / HTTP/1.1\r\nHost: any.example\r\nContent-Length: {_UPLOAD}\r\n\r\n"
        with stage.near.connect(server) as connection:
            connection.sendall(head.encode() + bytes(_UPLOAD))
            connection.shutdown(socket.SHUT_WR)
            outcome = clients.outcome_of_reading(connection)
        assert outcome.data.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert not outcome.reset
        sidecar.line(destination=server)


class TestSeveralAddresses:
    """Of a name's addresses, each that the policy accepts is tried."""

    PORT = 8080

    @pytest.mark.parametrize("host", [HOME, WRONG])
    def test_one_answers(self, stage: Stage, sidecar: Sidecar, host: str) -> None:
        """Whichever answers is the upstream."""
        dialled = SocketAddress("9.9.9.3", self.PORT)
        answering = SocketAddress(host, self.PORT)
        with Origin(stage.far, answering, plain_page(host)):
            done = _curl(stage, f"http://mixed.example:{self.PORT}/", dialled)
            assert page_from(host) == done.stdout, done
            line = sidecar.line(destination=dialled, upstream=answering)
        assert ["allow", "closed"] == _facts(line, "verdict", "end")
