"""SIGHUP while the HTTP proxy's connections are open: what holds for the next request?"""

from __future__ import annotations

import os
import signal
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest
from integration.clients import outcome_of_reading
from integration.http_stage import HTTP, PROXY, HttpStage, facts, http_stage, needs
from integration.netns import DEADLINE

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from integration.proxy import Sidecar

_programs = needs("nginx")


@pytest.fixture(scope="module", name="stage")
def _stage(
    _namespaces: None, _programs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpStage]:
    with http_stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


def reload(stage: HttpStage, sidecar: Sidecar, text: str) -> None:
    """Put other settings into force."""
    (stage.directory / "reload.toml").write_text(text, encoding="ascii")
    before = sum("policy reloaded" in message for message in sidecar.messages())
    os.kill(sidecar.pid, signal.SIGHUP)
    sidecar.wait_until(
        lambda: sum("policy reloaded" in message for message in sidecar.messages()) > before
    )


@pytest.fixture(name="sidecar")
def _sidecar(stage: HttpStage) -> Iterator[Sidecar]:
    file = stage.directory / "reload.toml"
    file.write_text("", encoding="ascii")
    with stage.proxied("--config", str(file)) as made:
        yield made


def asking(stage: HttpStage, url: str) -> tuple[socket.socket, Callable[[], int]]:
    """Connect to the proxy; return a function that asks for a page and returns the status."""
    connection = HTTPConnection("127.0.0.1", PROXY, timeout=DEADLINE)
    connection.sock = stage.namespace.connect(SocketAddress("127.0.0.1", PROXY))

    def ask() -> int:
        connection.request("GET", url)
        response = connection.getresponse()
        response.read()
        return response.status

    return connection.sock, ask


def test_next_request(stage: HttpStage, sidecar: Sidecar) -> None:
    """After SIGHUP the next request is judged anew, on the same connection."""
    host = stage.host()
    client, ask = asking(stage, f"http://{host}:{HTTP}/page")
    with client:
        assert [200, 200] == [ask(), ask()]
        reload(stage, sidecar, f'[policy]\ndeny = ["{host}"]\n')
        assert [403, 403] == [ask(), ask()]
        reload(stage, sidecar, "")
        assert 200 == ask()
    lines = sidecar.wait_for_lines(5, host=host)
    assert 1 == len({line["source"] for line in lines})
    assert ["default"] * 2 + ["denied_by_rule"] * 2 + ["default"] == [
        line["reason"] for line in lines
    ]


def test_open_tunnel(stage: HttpStage, sidecar: Sidecar) -> None:
    """With `open_flows = "close"`, a tunnel that is denied now is ended."""
    host = stage.host()
    with stage.namespace.connect(SocketAddress("127.0.0.1", PROXY)) as client:
        client.sendall(f"CONNECT {host}:{HTTP} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        client.sendall(f"GET /page HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        reload(stage, sidecar, f'[policy]\nopen_flows = "close"\ndeny = ["{host}"]\n')
        assert outcome_of_reading(client).reset
    line = sidecar.line(host=host)
    assert ["deny", "denied_by_rule", "denied"] == facts(line, "verdict", "reason", "end")
