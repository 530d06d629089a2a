"""Rules that come and go, and a proxy that dies, while programs talk to one another."""

from __future__ import annotations

import errno
import select
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from integration import clients, origins
from integration.clients import exchange, local_address
from integration.netns import DEADLINE, FAMILIES
from integration.origins import Origin
from integration.proxy import INBOUND, ISTIO, OUTBOUND, ROOT, applied, rules, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.netns import Family, Host, Pair

    from sidecar.addresses import SocketAddress

pytestmark = pytest.mark.thorough

_MODES = ("redirect", "tproxy")
_IDENTITIES = {"redirect": ISTIO, "tproxy": ROOT}

# TCP_SYNCNT: how often connect() asks again. Once is 3 s until ETIMEDOUT, unless the
# answer is a refusal.
_FEWEST_RETRIES = 1


def _options(mode: str) -> tuple[str, ...]:
    return ("--mode", mode, *(("--exclude-uid", "1337") if mode == "redirect" else ()))


@dataclass(frozen=True)
class Conversation:
    """A server and its clients.

    Attributes:
        client: From where to connect.
        address: Where the server is.
        origin: The server, an echo.
    """

    client: Host
    address: SocketAddress
    origin: Origin

    def connect(self) -> tuple[socket.socket, bool]:
        """Connect, use it, and say whether it went straight to the server."""
        connection = self.client.namespace.connect(self.address)
        assert exchange(connection, b"hello") == b"hello"
        return connection, local_address(connection) in self.origin.peers


@contextmanager
def _conversations(pair: Pair, port: int) -> Iterator[list[Conversation]]:
    """Start a server at both ends, in both families."""
    with ExitStack() as stack:
        yield [
            Conversation(client, address, stack.enter_context(_echo(server, address)))
            for client, server in ((pair.near, pair.far), (pair.far, pair.near))
            for address in (server.at(family, port) for family in FAMILIES)
        ]


def _echo(server: Host, address: SocketAddress) -> Origin:
    return Origin(server.namespace, address, origins.echo)


@pytest.mark.parametrize("mode", _MODES)
def test_applying_spares_what_is_alive(pair: Pair, outside: Path, mode: str, port: int) -> None:
    """With --syn-only direct connections live on, in and out; new ones are relayed."""
    near = pair.near.namespace
    with (
        running(near, cwd=outside, identity=_IDENTITIES[mode]) as sidecar,
        _conversations(pair, port) as conversations,
        ExitStack() as stack,
    ):
        alive = []
        for conversation in conversations:
            connection, direct = conversation.connect()
            alive.append(stack.enter_context(connection))
            assert direct
        with applied(near, *_options(mode), "--syn-only"):
            for connection in alive:
                assert exchange(connection, b"still there") == b"still there"
                assert exchange(connection, origins.some(300_000)) == origins.some(300_000)
            for conversation in conversations:
                connection, direct = conversation.connect()
                with connection:
                    assert not direct
        for connection in alive:
            assert exchange(connection, b"and after") == b"and after"
        assert len(conversations) == len(sidecar.wait_for_lines(len(conversations), end="closed"))


@pytest.mark.parametrize("syn_only", [False, True])
@pytest.mark.parametrize("mode", _MODES)
def test_removing_spares_what_is_relayed(
    pair: Pair, outside: Path, mode: str, syn_only: bool, port: int
) -> None:
    """Relayed connections live on without the rules, in and out; new ones go direct."""
    near = pair.near.namespace
    options = (*_options(mode), *(["--syn-only"] if syn_only else []))
    with (
        running(near, cwd=outside, identity=_IDENTITIES[mode]) as sidecar,
        _conversations(pair, port) as conversations,
        ExitStack() as stack,
    ):
        alive = []
        with applied(near, *options):
            for conversation in conversations:
                connection, direct = conversation.connect()
                alive.append(stack.enter_context(connection))
                assert not direct
        for connection in alive:
            assert exchange(connection, b"still there") == b"still there"
            assert exchange(connection, origins.some(300_000)) == origins.some(300_000)
        for conversation in conversations:
            connection, direct = conversation.connect()
            with connection:
                assert direct
        # Until the last of them is gone there can be a second application, too.
        with applied(near, *options):
            for connection in alive:
                assert exchange(connection, b"to the end") == b"to the end"
        stack.close()
        lines = sidecar.wait_for_lines(len(conversations))
        assert ["closed"] * len(conversations) == [line["end"] for line in lines]


@pytest.mark.parametrize("mode", _MODES)
def test_applying_again_changes_nothing_for_what_is_relayed(
    pair: Pair, outside: Path, mode: str, port: int
) -> None:
    """Rules applied over the same rules don't disturb connections."""
    near = pair.near.namespace
    with (
        running(near, cwd=outside, identity=_IDENTITIES[mode]),
        _conversations(pair, port) as conversations,
        applied(near, *_options(mode)),
        ExitStack() as stack,
    ):
        alive = [stack.enter_context(each.connect()[0]) for each in conversations]
        rules(near, "apply", *_options(mode))
        for connection in alive:
            assert exchange(connection, b"still there") == b"still there"


@pytest.mark.parametrize("mode", _MODES)
def test_flushing_conntrack_cuts_nothing(pair: Pair, outside: Path, mode: str, port: int) -> None:
    """When the kernel forgets all connections (`conntrack -F`) those being relayed live on."""
    near = pair.near.namespace
    with (
        running(near, cwd=outside, identity=_IDENTITIES[mode]) as sidecar,
        _conversations(pair, port) as conversations,
        applied(near, *_options(mode)),
    ):
        with ExitStack() as stack:
            alive = [stack.enter_context(each.connect()[0]) for each in conversations]
            near.run(["conntrack", "-F"])
            for connection in alive:
                assert exchange(connection, b"still there") == b"still there"
        lines = sidecar.wait_for_lines(len(conversations))
        assert ["closed"] * len(conversations) == [line["end"] for line in lines]


def _connect_all(attempts: list[tuple[Host, SocketAddress]]) -> list[int]:
    """Try to connect everywhere at once; return the error numbers."""
    with ExitStack() as stack:
        poll = select.poll()
        connections = {}
        for host, address in attempts:
            connection = stack.enter_context(host.namespace.tcp_socket(address.family))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, _FEWEST_RETRIES)
            connection.setblocking(False)
            connection.connect_ex((address.host, address.port))
            connections[connection.fileno()] = connection
            poll.register(connection, select.POLLOUT)
        answers = dict.fromkeys(connections, 0)
        while connections:
            ready = poll.poll(DEADLINE * 1000)
            assert ready
            for descriptor, _ in ready:
                connection = connections.pop(descriptor)
                answers[descriptor] = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                poll.unregister(descriptor)
        return list(answers.values())


@pytest.mark.parametrize("mode", _MODES)
def test_nothing_passes_a_dead_proxy(pair: Pair, outside: Path, mode: str, port: int) -> None:
    """After SIGKILL new connections fail, in and out, none arrives, and a new proxy mends it."""
    near = pair.near.namespace
    ends = [
        (client, server.at(family, port))
        for client, server in ((pair.near, pair.far), (pair.far, pair.near))
        for family in FAMILIES
    ]
    with ExitStack() as stack:
        servers = [pair.far, pair.far, pair.near, pair.near]
        listeners = [
            stack.enter_context(server.namespace.listen(address))
            for server, (_, address) in zip(servers, ends, strict=True)
        ]
        stack.enter_context(applied(near, *_options(mode)))
        with running(near, cwd=outside, identity=_IDENTITIES[mode]) as sidecar:
            for listener, (client, address) in zip(listeners, ends, strict=True):
                # Interception works, so that it can be seen to fail closed.
                with client.namespace.connect(address) as connection:
                    accepted, peer = listener.accept()
                    with accepted:
                        assert peer[:2] != connection.getsockname()[:2]
            sidecar.kill()
        failures = _connect_all(ends)
        assert 0 not in failures
        # NAT to a port without a listener is refused; TPROXY without one drops.
        expected = {errno.ECONNREFUSED} if mode == "redirect" else {errno.ETIMEDOUT}
        assert expected == set(failures)
        for listener in listeners:
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
            listener.settimeout(DEADLINE)
        with running(near, cwd=outside, identity=_IDENTITIES[mode]):
            for listener, (client, address) in zip(listeners, ends, strict=True):
                with client.namespace.connect(address), listener.accept()[0]:
                    pass


@pytest.mark.parametrize("mode", _MODES)
def test_death_of_the_proxy_is_noticed(
    pair: Pair, outside: Path, mode: str, family: Family, port: int
) -> None:
    """A connection that is being relayed ends at both sides when the proxy is killed."""
    near = pair.near.namespace
    server = pair.far.at(family, port)
    with (
        pair.far.namespace.listen(server) as listener,
        running(near, cwd=outside, identity=_IDENTITIES[mode]) as sidecar,
        applied(near, *_options(mode)),
        near.connect(server) as client,
        listener.accept()[0] as accepted,
    ):
        sidecar.kill()
        assert clients.outcome_of_reading(client).data == b""
        assert clients.outcome_of_reading(accepted).data == b""


def _check(pair: Pair) -> tuple[int, str]:
    done = rules(pair.near.namespace, "check", check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("mode", _MODES)
def test_check_tells_the_truth(pair: Pair, outside: Path, mode: str) -> None:
    """`rules check` says yes exactly while rules and proxy both work, and leaves no trace."""
    near = pair.near.namespace
    assert _check(pair)[0] == 1
    with running(near, cwd=outside, identity=_IDENTITIES[mode]) as sidecar:
        status, words = _check(pair)
        assert status == 1, words
        with applied(near, *_options(mode)):
            before = near.run(["nft", "list", "ruleset"]).stdout
            status, words = _check(pair)
            assert status == 0, words
            assert before == near.run(["nft", "list", "ruleset"]).stdout
            sidecar.kill()
            status, words = _check(pair)
            assert status == 1, words
        status, words = _check(pair)
        assert status == 1, words


@pytest.mark.parametrize(("missing", "kept"), [(INBOUND, OUTBOUND), (OUTBOUND, INBOUND)])
def test_check_sees_half_a_proxy(pair: Pair, outside: Path, missing: int, kept: int) -> None:
    """`rules check` says no, and which direction, where only one of two listeners is there."""
    near = pair.near.namespace
    option = "--outbound" if kept == OUTBOUND else "--inbound"
    with (
        running(near, [option, f"transparent:{kept}"], ports=[kept], cwd=outside),
        applied(near, "--mode", "redirect"),
    ):
        status, words = _check(pair)
    assert status == 1, words
    assert "inbound" in words if missing == INBOUND else "outbound" in words
