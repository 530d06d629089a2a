"""Real clients reach real servers through sidecar, and none of them notices.

Every test runs for redirect and tproxy, outbound, inbound and forwarded, IPv4 and IPv6:
outbound and inbound with the sidecar in the application's own namespace, forwarded
with it on the router between client and server.
"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from integration import clients, origins
from integration.clients import Outcome
from integration.netns import DEADLINE, UNROUTABLE
from integration.origins import Origin
from integration.proxy import ISTIO, ROOT, applied, running

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.netns import Family, Gateway, Host, Pair
    from integration.proxy import Line, Sidecar

pytestmark = pytest.mark.thorough

# redirect works without any capability, told apart by its user; tproxy needs one, and
# is told apart by its mark.
_IDENTITIES = {"redirect": ISTIO, "tproxy": ROOT}
_EXCLUSIONS = {"redirect": ("--exclude-uid", "1337"), "tproxy": ("--exclude-mark", "0x539")}

# Bytes; what any receive buffer of default size takes without being read.
_SOME = bytes(range(256)) * 128
# Seconds in which bytes move if they can.
_PAUSE = 0.3
# KiB of a relay's own memory that bytes on their way may take.
_PIPE_AND_BUFFER = 2 * 1024


@dataclass(frozen=True)
class Way:
    """One way through a sidecar.

    Attributes:
        client, server: Who talks.
        listener: Which of the sidecar's listeners takes the connection.
        mode: By which mechanism.
        sidecar: Whose access log it is in.
        server_sees: From where the connection comes to the server, by family.
    """

    client: Host
    server: Host
    listener: str
    mode: str
    sidecar: Sidecar
    server_sees: dict[Family, str]

    def line(self, destination: SocketAddress, **expected: object) -> Line:
        """Wait for the one line of a connection and check what every line must say."""
        line = self.sidecar.line(destination=destination)
        wanted = {
            "v": 1,
            "listener": self.listener,
            "destination_from": self.mode,
            "verdict": "allow",
            "reason": "default",
            "rule": None,
            **{key: str(value) if key in _ADDRESSES else value for key, value in expected.items()},
        }
        assert wanted == {key: line[key] for key in wanted}
        assert self.client.at(_family_of(destination), 0).host in line["source"]
        return line


def _both(host: Host) -> dict[Family, str]:
    return {"ipv4": host.ipv4, "ipv6": host.ipv6}


_ADDRESSES = {"source", "upstream"}


def _family_of(address: SocketAddress) -> Family:
    return "ipv4" if address.family == socket.AF_INET else "ipv6"


@pytest.fixture(scope="module", params=["redirect", "tproxy"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture(scope="module")
def host_sidecar(mode: str, pair: Pair, outside: Path) -> Iterator[Sidecar]:
    with (
        running(pair.near.namespace, cwd=outside, identity=_IDENTITIES[mode]) as sidecar,
        applied(pair.near.namespace, "--mode", mode, *_EXCLUSIONS[mode]),
    ):
        yield sidecar


@pytest.fixture(scope="module")
def router_sidecar(mode: str, gateway: Gateway, outside: Path) -> Iterator[Sidecar]:
    with (
        running(gateway.router.namespace, cwd=outside, identity=_IDENTITIES[mode]) as sidecar,
        applied(gateway.router.namespace, "--mode", mode, "--forwarded", *_EXCLUSIONS[mode]),
    ):
        yield sidecar


@pytest.fixture(params=["outbound", "inbound", "forwarded"])
def way(
    request: pytest.FixtureRequest,
    mode: str,
    pair: Pair,
    gateway: Gateway,
    host_sidecar: Sidecar,
    router_sidecar: Sidecar,
) -> Way:
    # ::6 is an address that hosts don't have unless somebody gives it to them.
    passed_through: dict[Family, str] = {"ipv4": "127.0.0.6", "ipv6": pair.near.ipv6}
    ways = {
        "outbound": Way(pair.near, pair.far, "outbound", mode, host_sidecar, _both(pair.near)),
        "inbound": Way(pair.far, pair.near, "inbound", mode, host_sidecar, passed_through),
        "forwarded": Way(
            *(gateway.client, gateway.server, "outbound", mode, router_sidecar),
            _both(gateway.router_to_server),
        ),
    }
    return ways[request.param]


@pytest.fixture
def server(way: Way, family: Family, port: int) -> SocketAddress:
    """Where the server of this test is."""
    return way.server.at(family, port)


def test_curl_fetches_a_page(way: Way, server: SocketAddress, family: Family) -> None:
    """To curl comes the page, the server sees the proxy, and the log line says all of it."""
    with Origin(way.server.namespace, server, origins.http_page) as origin:
        fetched = clients.curl(way.client.namespace, server)

        assert origins.PAGE == fetched.page
        way.line(
            server,
            source=fetched.source,
            upstream=server,
            sent=fetched.sent,
            received=fetched.received,
            end="closed",
        )
        (peer,) = origin.peers
        assert peer != fetched.source
        assert way.server_sees[family] == peer.host


def test_wget_fetches_a_page(way: Way, server: SocketAddress) -> None:
    """To wget comes the page."""
    with Origin(way.server.namespace, server, origins.http_page):
        assert origins.PAGE == clients.wget(way.client.namespace, server)
        way.line(server, upstream=server, end="closed")


def test_download_arrives_intact(way: Way, server: SocketAddress) -> None:
    """200 MiB from the server have the same SHA-256 at the client."""
    with (
        Origin(way.server.namespace, server, origins.bulk_source),
        way.client.namespace.connect(server) as client,
    ):
        assert origins.bulk_digest() == origins.digest_of(client)
    way.line(server, sent=0, received=origins.BULK_SIZE, end="closed")


def test_upload_arrives_intact(way: Way, server: SocketAddress) -> None:
    """200 MiB from the client have the same SHA-256 at the server, which answers with it."""
    with (
        Origin(way.server.namespace, server, origins.digest_sink),
        way.client.namespace.connect(server) as client,
    ):
        origins.bulk_source(client)
        client.shutdown(socket.SHUT_WR)
        answer = origins.received(client).decode()
    assert origins.bulk_digest() == answer
    way.line(server, sent=origins.BULK_SIZE, received=len(answer), end="closed")


@pytest.mark.parametrize("way", ["outbound"], indirect=True)
def test_slow_server_stops_a_fast_client(way: Way, server: SocketAddress) -> None:
    """While the server doesn't read, the proxy takes only what the kernel's buffers hold."""
    blocks = [bytes(block) for block in origins.bulk()]
    with (
        way.server.namespace.listen(server) as listener,
        way.client.namespace.connect(server) as client,
        listener.accept()[0] as accepted,
    ):
        memory = way.sidecar.memory()
        client.setblocking(False)
        taken = 0
        # A pause that is too short for a busy machine makes this test weaker, not wrong.
        while select.select([], [client], [], _PAUSE)[1]:
            serial, offset = divmod(taken, len(blocks[0]))
            taken += client.send(memoryview(blocks[serial])[offset:])
        assert taken < origins.BULK_SIZE
        assert way.sidecar.memory() - memory < _PIPE_AND_BUFFER

        client.settimeout(DEADLINE)
        digest: list[str] = []
        reader = threading.Thread(target=lambda: digest.append(origins.digest_of(accepted)))
        reader.start()
        client.sendall(b"".join(blocks)[taken:])
        client.shutdown(socket.SHUT_WR)
        reader.join(DEADLINE)
        assert [origins.bulk_digest()] == digest
    way.line(server, sent=origins.BULK_SIZE, received=0, end="closed")


def test_both_directions_at_once_arrive_intact(way: Way, server: SocketAddress) -> None:
    """An echo of 16 MiB comes back whole while more of it is still being sent."""
    sent = b"".join(bytes(block) for block in _blocks(16))
    with (
        Origin(way.server.namespace, server, origins.echo),
        way.client.namespace.connect(server) as client,
    ):
        sender = threading.Thread(target=_send_all, args=(client, sent))
        sender.start()
        came_back = origins.received(client)
        sender.join()
    assert sent == came_back
    way.line(server, sent=len(sent), received=len(sent), end="closed")


def _blocks(count: int) -> Iterator[memoryview]:
    for _, block in zip(range(count), origins.bulk(), strict=False):
        yield block


def _send_all(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def test_half_close_of_the_client_delivers_the_reply(way: Way, server: SocketAddress) -> None:
    """`printf … | nc -N` gets the answer that the server gives only after EOF."""
    with Origin(way.server.namespace, server, origins.answer_after_eof):
        done = way.client.namespace.run(
            ["nc", "-N", server.host, str(server.port)], stdin="is this all?"
        )
    assert done.stdout == "you said: is this all?"
    way.line(server, sent=12, received=22, end="closed")


def test_half_close_of_the_server_lets_the_client_go_on(way: Way, server: SocketAddress) -> None:
    """A server that has said all still hears what the client says afterwards."""
    with (
        way.server.namespace.listen(server) as listener,
        way.client.namespace.connect(server) as client,
        listener.accept()[0] as accepted,
    ):
        accepted.sendall(b"said all")
        accepted.shutdown(socket.SHUT_WR)
        assert origins.received(client) == b"said all"
        client.sendall(b"but not I")
        client.close()
        assert origins.received(accepted) == b"but not I"
    way.line(server, sent=9, received=8, end="closed")


def test_reset_by_the_server_is_a_reset(way: Way, server: SocketAddress) -> None:
    """The client gets what was sent before the server's RST, and then RST, not EOF."""
    with (
        way.server.namespace.listen(server) as listener,
        way.client.namespace.connect(server) as client,
        listener.accept()[0] as accepted,
    ):
        client.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        accepted.sendall(_SOME)
        clients.reset(accepted)
        assert Outcome(_SOME, reset=True) == clients.outcome_of_reading(client)
    way.line(server, upstream=server, sent=5, received=len(_SOME), end="server_reset")


def test_reset_by_the_server_waits_for_a_slow_client(way: Way, server: SocketAddress) -> None:
    """What the sidecar took before the RST reaches a client that reads only afterwards."""
    with ExitStack() as stack:
        listener = stack.enter_context(way.server.namespace.listen(server))
        client = stack.enter_context(way.client.namespace.tcp_socket(server.family))
        # Too little room for all of it, so that the sidecar has to keep the rest.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((server.host, server.port))
        accepted = stack.enter_context(listener.accept()[0])
        client.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        accepted.sendall(_SOME)
        clients.reset(accepted)
        assert Outcome(_SOME, reset=True) == clients.outcome_of_reading(client)
    way.line(server, sent=5, received=len(_SOME), end="server_reset")


def test_reset_by_the_server_at_once(way: Way, server: SocketAddress) -> None:
    """What a server sends before it resets arrives, however soon after the handshake that is."""
    with ExitStack() as stack:
        listener = stack.enter_context(way.server.namespace.listen(server))
        # The sidecar dials while this thread waits for the connection to accept.
        accepting = threading.Thread(target=_accept_send_reset, args=(listener,))
        accepting.start()
        client = stack.enter_context(way.client.namespace.tcp_socket(server.family))
        # A connect() that finds the reset would itself throw away what came before.
        client.setblocking(False)
        client.connect_ex((server.host, server.port))
        client.settimeout(DEADLINE)
        outcome = clients.outcome_of_reading(client)
        accepting.join()
    assert Outcome(_SOME, reset=True) == outcome
    way.line(server, sent=0, received=len(_SOME), end="server_reset")


def _accept_send_reset(listener: socket.socket) -> None:
    accepted, _ = listener.accept()
    accepted.sendall(_SOME)
    clients.reset(accepted)


def test_reset_by_the_client_is_a_reset(way: Way, server: SocketAddress) -> None:
    """The server gets what was sent before the client's RST, and then RST, not EOF."""
    with ExitStack() as stack:
        listener = stack.enter_context(way.server.namespace.listen(server))
        client = stack.enter_context(way.client.namespace.connect(server))
        accepted = stack.enter_context(listener.accept()[0])
        accepted.sendall(b"hello")
        assert client.recv(5) == b"hello"
        client.sendall(_SOME)
        clients.reset(client)
        assert Outcome(_SOME, reset=True) == clients.outcome_of_reading(accepted)
    way.line(server, upstream=server, sent=len(_SOME), received=5, end="client_reset")


def test_refused_is_no_empty_answer(way: Way, server: SocketAddress) -> None:
    """Where nobody listens curl doesn't say "empty reply" (52) but that there's no connection."""
    done = clients.try_curl(way.client.namespace, server)
    # 56 "connection reset", 55 where the reset is there before the request is sent, and 7
    # "couldn't connect" where it is there before curl has looked.
    assert done.returncode in {7, 55, 56}, done
    way.line(server, upstream=server, received=0, end="connection_refused")


def test_refused_is_a_reset(way: Way, server: SocketAddress) -> None:
    """Where nobody listens the client reads ECONNRESET."""
    outcome = clients.outcome_of_talking(way.client.namespace, server)
    assert Outcome(b"", reset=True) == outcome
    way.line(server, upstream=server, received=0, end="connection_refused")


# Not inbound: what arrives for a host has a way to it.
@pytest.mark.parametrize("way", ["outbound", "forwarded"], indirect=True)
def test_unroutable_is_a_reset(way: Way, family: Family, port: int) -> None:
    """Where no way leads the client reads ECONNRESET."""
    nowhere = SocketAddress(UNROUTABLE[family], port)
    outcome = clients.outcome_of_talking(way.client.namespace, nowhere)
    assert Outcome(b"", reset=True) == outcome
    way.line(nowhere, upstream=nowhere, received=0, end="destination_unroutable")


def test_client_that_is_gone_at_once_is_a_line(way: Way, server: SocketAddress) -> None:
    """A client that resets before it says anything is known by its destination all the same."""
    with Origin(way.server.namespace, server, origins.echo):
        client = way.client.namespace.connect(server)
        source = clients.local_address(client)
        clients.reset(client)
        way.line(server, source=source, sent=0, received=0, end="client_reset")
