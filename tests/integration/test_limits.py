"""What sidecar does with very many connections, and with more than it may have."""

from __future__ import annotations

import resource
import select
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration import clients, origins
from integration.netns import DEADLINE
from integration.origins import Origin
from integration.proxy import ISTIO, OUTBOUND, Program, applied, eventually, running

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from integration.netns import Namespace, Pair
    from integration.proxy import Sidecar


from sidecar.addresses import SocketAddress

pytestmark = pytest.mark.thorough

_LOAD = Path(__file__).with_name("load.py")

# Connections open at once. Each has two descriptors in the proxy, which accepts no more
# when 90 % of its limit is in use.
_MANY = 5_000
_DESCRIPTORS_FOR_MANY = 12_000
# Connections one after another.
_VERY_MANY = 100_000
# Lots of `_MANY`. The first two warm up: the allocators keep arenas that aren't wholly
# empty, and the most that they need at once differs a little from lot to lot.
_LOTS = 3
# KiB that may be resident beyond what was after warming up, when all connections have
# gone. The smallest leak that there can be, a 64-byte object per connection, would come
# to 6 MiB after the very many.
_MEMORY_SLACK = 4 * 1024
# Seconds for the very many, on a machine that is busy with something else.
_PATIENCE = 100.0

# Descriptors for the test of what happens when there are too few.
_FEW_DESCRIPTORS = 64


@contextmanager
def _load(namespace: Namespace, outside: Path, *arguments: object) -> Iterator[Program]:
    command = [sys.executable, str(_LOAD), *(str(argument) for argument in arguments)]
    program = Program(namespace, command, cwd=outside)
    try:
        yield program
    finally:
        program.kill()


@contextmanager
def _echo(namespace: Namespace, outside: Path, address: SocketAddress) -> Iterator[None]:
    with _load(namespace, outside, "echo", address.host, address.port) as server:
        server.wait_until(lambda: "listening" in server.printed)
        yield


def _give_ports(namespace: Namespace) -> None:
    """Let clients have every port, and those that rest in TIME_WAIT again."""
    namespace.sysctl("ipv4/ip_local_port_range", "1024 65535")
    namespace.sysctl("ipv4/tcp_tw_reuse", "1")


def _with_descriptors(count: int) -> list[str]:
    return ["prlimit", f"--nofile={count}:{count}", "--"]


def _enough_descriptors() -> bool:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return hard >= _DESCRIPTORS_FOR_MANY


def _run(
    namespace: Namespace, outside: Path, role: str, address: SocketAddress, count: int
) -> None:
    """Run a load to its end."""
    with _load(namespace, outside, role, address.host, address.port, count) as client:
        client.wait_until(lambda: "closed" in client.printed, ends=True, deadline=_PATIENCE)


def _settled(sidecar: Sidecar, descriptors: int) -> int:
    """Wait until no connection is left; return the resident memory in KiB."""
    eventually(descriptors, sidecar.descriptors)
    return sidecar.memory()


@pytest.mark.skipif(
    not _enough_descriptors(), reason=f"needs a hard limit of {_DESCRIPTORS_FOR_MANY} descriptors"
)
def test_many_at_once(pair: Pair, outside: Path, port: int) -> None:
    """5,000 intercepted connections at once all work, and leave nothing behind."""
    server = pair.far.at("ipv4", port)
    near = pair.near.namespace
    # No connection may wait for the kernel's patience with an overflowing accept queue.
    near.sysctl("core/somaxconn", "8192")
    _give_ports(near)
    with (
        _echo(pair.far.namespace, outside, server),
        running(
            near,
            ["--outbound", f"transparent:{OUTBOUND}:backlog=8192"],
            ports=[OUTBOUND],
            cwd=outside,
            identity=ISTIO,
            wrapper=_with_descriptors(_DESCRIPTORS_FOR_MANY),
        ) as sidecar,
        applied(near, "--mode", "redirect", "--inbound-port", "none", "--exclude-uid", "1337"),
    ):
        descriptors = sidecar.descriptors()
        memory = []
        for _ in range(_LOTS):
            with _load(near, outside, "hold", server.host, server.port, _MANY) as clients_:
                clients_.wait_until(lambda: "used" in clients_.printed, deadline=_PATIENCE)
                eventually(descriptors + 2 * _MANY, sidecar.descriptors)
                clients_.end_input()
                clients_.wait_until(lambda: "closed" in clients_.printed, ends=True)
            memory.append(_settled(sidecar, descriptors))
        assert memory[-1] - max(memory[:2]) <= _MEMORY_SLACK
        lines = sidecar.wait_for_lines(_LOTS * _MANY, destination=server)
        size = 2 * len(b"are you there?")
        assert {("closed", size, size)} == {
            (line["end"], line["sent"], line["received"]) for line in lines
        }


def test_very_many_one_after_another(pair: Pair, outside: Path) -> None:
    """100,000 connections that come and go leave nothing behind."""
    near = pair.near.namespace
    _give_ports(near)
    listen, echo = SocketAddress("127.0.0.1", 8001), SocketAddress("127.0.0.1", 8002)
    forward = f"tcp:{listen.port}:interface={listen.host}:backlog=1024 tcp:{echo}"
    with (
        _echo(near, outside, echo),
        running(near, ["--forward", forward], ports=[listen.port], cwd=outside) as sidecar,
    ):
        descriptors = sidecar.descriptors()
        _run(near, outside, "churn", listen, _VERY_MANY // 10)
        after_warming_up = _settled(sidecar, descriptors)
        _run(near, outside, "churn", listen, _VERY_MANY)
        after = _settled(sidecar, descriptors)
        assert after - after_warming_up <= _MEMORY_SLACK
        sidecar.wait_for_lines(_VERY_MANY + _VERY_MANY // 10, end="closed")


def _answered(waiting: list[socket.socket]) -> list[socket.socket]:
    """Wait until the server answers some; return those."""
    readable, _, _ = select.select(waiting, [], [], DEADLINE)
    assert readable
    for connection in readable:
        assert connection.recv(16) == b"hello"
    return readable


def test_at_the_descriptor_limit(pair: Pair, outside: Path, port: int) -> None:
    """With too few descriptors for all clients those that are served are, the others wait."""
    server = pair.far.at("ipv4", port)
    near = pair.near.namespace
    with (
        Origin(pair.far.namespace, server, origins.echo),
        running(
            near,
            ["--outbound", f"transparent:{OUTBOUND}"],
            ports=[OUTBOUND],
            cwd=outside,
            identity=ISTIO,
            wrapper=_with_descriptors(_FEW_DESCRIPTORS),
        ) as sidecar,
        applied(near, "--mode", "redirect", "--inbound-port", "none", "--exclude-uid", "1337"),
        ExitStack() as stack,
    ):
        started = time.monotonic()
        descriptors = sidecar.descriptors()
        waiting = []
        for _ in range(_FEW_DESCRIPTORS):
            waiting.append(stack.enter_context(near.connect(server)))
            waiting[-1].sendall(b"hello")
        sidecar.wait_until(lambda: bool(_pauses(sidecar)))
        served: list[socket.socket] = []
        rounds = 0
        while waiting:
            answered = _answered(waiting)
            waiting = [connection for connection in waiting if connection not in answered]
            served += answered
            if waiting and not select.select(waiting, [], [], 0)[0]:
                # All that are being served still are; then they make room.
                for connection in served:
                    assert clients.exchange(connection, b"again") == b"again"
                    connection.close()
                served = []
                rounds += 1
        assert rounds
        for connection in served:
            connection.close()
        eventually(descriptors, sidecar.descriptors)
        # One a second at most.
        assert 1 <= len(_pauses(sidecar)) <= 1 + time.monotonic() - started
        lines = sidecar.wait_for_lines(_FEW_DESCRIPTORS, destination=server)
        assert {"closed"} == {line["end"] for line in lines}


def _pauses(sidecar: Sidecar) -> list[str]:
    return [message for message in sidecar.messages() if "accepting pauses" in message]


def test_descriptors_taken_away(pair: Pair, outside: Path, port: int) -> None:
    """Where the kernel itself refuses (EMFILE), accepting pauses and then goes on by itself."""
    server = pair.far.at("ipv4", port)
    near = pair.near.namespace
    with (
        Origin(pair.far.namespace, server, origins.echo),
        running(
            near, ["--outbound", f"transparent:{OUTBOUND}"], ports=[OUTBOUND], cwd=outside
        ) as sidecar,
        applied(near, "--mode", "redirect", "--inbound-port", "none"),
        near.connect(server) as early,
    ):
        assert clients.exchange(early, b"early") == b"early"
        soft, hard = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (sidecar.descriptors(), hard))
        started = time.monotonic()
        with near.connect(server) as late:
            sidecar.wait_until(lambda: bool(_pauses(sidecar)))
            assert clients.exchange(early, b"still") == b"still"
            resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert clients.exchange(late, b"late") == b"late"
        assert 1 <= len(_pauses(sidecar)) <= 1 + time.monotonic() - started
