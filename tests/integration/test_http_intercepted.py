"""Plain HTTP that rules bring here: each request of a kept connection is judged by its own Host.

Names and addresses are `names_stage`'s: `allowed.example` is at RIGHT, `other.example` at
WRONG; where clients connect to is in their URLs, whom they ask for is in Host.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from integration.http_origins import Conversation, Request, head, scripted
from integration.http_stage import facts
from integration.names_stage import (
    ALLOWED,
    OTHER,
    RIGHT,
    RIGHT6,
    WRONG,
    Stage,
    page_from,
    proxied,
    set_up,
)
from integration.proxy import ISTIO, ROOT

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from integration.netns import Pair

pytestmark = pytest.mark.thorough

# Clients that are slow on a busy machine aren't silent.
_LIMITS = "[limits]\nsilence = 20.0\n"
_ONE = f'{_LIMITS}[policy]\ndefault = "deny"\nallow = ["{ALLOWED}"]\n'
_BOTH = f'{_LIMITS}[policy]\ndefault = "deny"\nallow = ["{ALLOWED}", "{OTHER}"]\n'


@pytest.fixture(scope="module", name="stage")
def _stage(pair: Pair, outside: Path) -> Stage:
    return set_up(pair, outside)


def page(host: str) -> Callable[[Conversation, Request], None]:
    """Answer every request with the page of an address, and keep the connection."""

    def answer(conversation: Conversation, request: Request) -> None:
        for _ in conversation.content(request):
            pass
        body = page_from(host)
        conversation.send(head("200 OK", f"Content-Length: {len(body)}"), body)

    return answer


@contextmanager
def origins(stage: Stage, port: int, *hosts: str) -> Iterator[list[list[Request]]]:
    """Serve at several addresses; gives the requests of each."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(scripted(stage.far, SocketAddress(host, port), page(host)))
            for host in hosts
        ]


def curl(stage: Stage, server: SocketAddress, *names: str) -> tuple[list[str], str, str]:
    """Ask for these names, one after the other, over one connection.

    Returns:
        The statuses, the connection's address, and what was answered.
    """
    told = "%{stderr}%{http_code} %{num_connects} %{local_ip}:%{local_port}\n"
    command = ["curl", "-q"]
    for number, name in enumerate(names):
        # What curl is told holds as far as the next --next.
        command += ["--next"] if number else []
        command += ["--silent", "--show-error", "--globoff", "--noproxy", "*", "--max-time", "15"]
        command += ["--header", f"Host: {name}", "--write-out", told, f"http://{server}/page"]
    done = stage.near.run(command)
    numbers = [line.split() for line in done.stderr.splitlines()]
    assert ["1", *["0"] * (len(names) - 1)] == [connects for _, connects, _ in numbers], done
    return [status for status, _, _ in numbers], numbers[0][2], done.stdout


@pytest.mark.parametrize(
    ("mode", "right"), [("tproxy", RIGHT), ("tproxy", RIGHT6), ("redirect", RIGHT)]
)
def test_each_request(stage: Stage, port: int, mode: str, right: str) -> None:
    """One connection, two names: what isn't allowed is denied, what is goes on."""
    server = SocketAddress(right, port)
    identity = ROOT if mode == "tproxy" else ISTIO
    with (
        proxied(stage, _ONE, mode=mode, identity=identity, name="each.toml") as sidecar,
        origins(stage, port, right) as [requests],
    ):
        statuses, _, said = curl(stage, server, ALLOWED, OTHER, ALLOWED)
        assert ["200", "403", "200"] == statuses
        told, refused, again = said.splitlines()
        assert told == again == page_from(right).strip()
        assert f"sidecar: denied: default; to allow it: {OTHER}:{port}" == refused
        lines = sidecar.wait_for_lines(3)
    assert [
        ["outbound", ALLOWED, "host", "GET", 200, "allow", "rule", str(server), str(server)],
        ["outbound", OTHER, "host", "GET", 403, "deny", "default", str(server), None],
        ["outbound", ALLOWED, "host", "GET", 200, "allow", "rule", str(server), str(server)],
    ] == [
        facts(
            line,
            *("listener", "host", "host_from", "method", "status", "verdict", "reason"),
            *("destination", "upstream"),
        )
        for line in lines
    ]
    assert 1 == len({line["source"] for line in lines})
    assert [("GET /page HTTP/1.1", ALLOWED)] * 2 == [
        (request.line, request.one("host")) for request in requests
    ]


def test_redialled(stage: Stage, port: int) -> None:
    """Where both names are allowed, each request is answered by the server of its name."""
    with (
        proxied(stage, _BOTH, name="both.toml") as sidecar,
        origins(stage, port, RIGHT, WRONG) as [right, wrong],
    ):
        statuses, _, said = curl(stage, SocketAddress(RIGHT, port), ALLOWED, OTHER, ALLOWED, OTHER)
        assert ["200"] * 4 == statuses
        assert [page_from(RIGHT), page_from(WRONG)] * 2 == said.splitlines(keepends=True)
        lines = sidecar.wait_for_lines(4)
    assert [f"{RIGHT}:{port}", f"{WRONG}:{port}"] * 2 == [line["upstream"] for line in lines]
    assert {f"{RIGHT}:{port}"} == {line["destination"] for line in lines}
    assert [{ALLOWED}, {OTHER}] == [
        {request.one("host") for request in requests} for requests in (right, wrong)
    ]


def test_first_denied(stage: Stage, port: int) -> None:
    """A connection whose first request is denied may go on with one that isn't."""
    with (
        proxied(stage, _ONE, name="first.toml") as sidecar,
        origins(stage, port, RIGHT) as [requests],
    ):
        statuses, _, _ = curl(stage, SocketAddress(RIGHT, port), OTHER, ALLOWED)
        assert ["403", "200"] == statuses
        assert ["deny", "allow"] == [line["verdict"] for line in sidecar.wait_for_lines(2)]
    assert 1 == len(requests)


def test_reload(stage: Stage, port: int) -> None:
    """After SIGHUP the next request of an open connection is judged by the new policy."""
    server = SocketAddress(RIGHT, port)
    with (
        proxied(stage, _ONE, name="again.toml") as sidecar,
        origins(stage, port, RIGHT) as [requests],
        stage.near.connect(server) as client,
        client.makefile("rb") as heard,
    ):

        def ask() -> bytes:
            client.sendall(f"GET / HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n".encode())
            status = heard.readline()
            fields = dict(line.split(b": ", 1) for line in iter(heard.readline, b"\r\n"))
            heard.read(int(fields[b"Content-Length"]))
            return status.split()[1]

        assert b"200" == ask()
        file = stage.directory / "again.toml"
        file.write_text(file.read_text().replace("allow =", "deny ="), encoding="ascii")
        os.kill(sidecar.pid, signal.SIGHUP)
        sidecar.wait_until(lambda: any("policy reloaded" in text for text in sidecar.printed))
        assert b"403" == ask()
        assert ["rule", "denied_by_rule"] == [
            line["reason"] for line in sidecar.wait_for_lines(2, destination=server)
        ]
    assert 1 == len(requests)


def test_sni_proxy(stage: Stage, port: int) -> None:
    """--sni-proxy leads each request of a connection to the name in its own Host."""
    listener = stage.pair.near.at("ipv4", port)
    flags = ("--sni-proxy", f"tcp:{port}:interface={listener.host}")
    with (
        proxied(
            stage, _BOTH, *flags, listener=None, ports=(port,), name="sni_each.toml"
        ) as sidecar,
        origins(stage, port, RIGHT, WRONG),
    ):
        statuses, source, said = curl(stage, listener, ALLOWED, OTHER, "x.example", ALLOWED)
        assert ["200", "200", "403", "200"] == statuses
        assert [page_from(RIGHT), page_from(WRONG)] == said.splitlines(keepends=True)[:2]
        lines = sidecar.wait_for_lines(4, listener="sni-proxy", source=source)
    assert [ALLOWED, OTHER, "x.example", ALLOWED] == [line["host"] for line in lines]
