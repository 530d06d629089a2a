"""What clients do: real ones as programs, and sockets that see resets."""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import struct
import sys
import termios
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from integration.netns import DEADLINE
from integration.proxy import eventually

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import subprocess

    from integration.netns import Namespace

__all__ = [
    "Fetched",
    "Outcome",
    "curl",
    "exchange",
    "local_address",
    "outcome_after_eof",
    "outcome_of_reading",
    "outcome_of_talking",
    "reset",
    "wget",
]


@dataclass(frozen=True)
class Fetched:
    """What curl reports of one request.

    Attributes:
        page: The body.
        source: From where it connected.
        sent, received: Bytes, heads included.
    """

    page: str
    source: SocketAddress
    sent: int
    received: int


def try_curl(namespace: Namespace, server: SocketAddress) -> subprocess.CompletedProcess[str]:
    """Run curl; standard output is the page and then a line of numbers."""
    facts = "%{local_ip} %{local_port} %{size_request} %{size_header} %{size_download}"
    command = ["curl", "--silent", "--show-error", "--fail", "--globoff", "--noproxy", "*"]
    command += ["--max-time", "15", "--write-out", facts, f"http://{server}/page"]
    return namespace.run(command, check=False)


def curl(namespace: Namespace, server: SocketAddress) -> Fetched:
    """Fetch a page with curl, over a connection of its own.

    Raises:
        AssertionError: It failed.
    """
    done = try_curl(namespace, server)
    assert done.returncode == 0, done
    page, newline, facts = done.stdout.rpartition("\n")
    host, port, request, header, body = facts.split()
    return Fetched(
        page + newline, SocketAddress(host, int(port)), int(request), int(header) + int(body)
    )


def wget(namespace: Namespace, server: SocketAddress) -> str:
    """Fetch a page with wget."""
    command = ["wget", "--quiet", "--no-proxy", "--tries=1", "--timeout=15", "--output-document=-"]
    return namespace.run([*command, f"http://{server}/page"]).stdout


def local_address(connection: socket.socket) -> SocketAddress:
    """Name a socket's own address."""
    return SocketAddress.from_kernel(connection.getsockname())


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send something and take as many bytes as come back from an echo."""
    connection.sendall(data)
    back = b""
    while len(back) < len(data):
        part = connection.recv(len(data) - len(back))
        if not part:
            break
        back += part
    return back


@dataclass(frozen=True)
class Outcome:
    """What a client found at the end of a connection.

    Attributes:
        data: All that it could read.
        reset: Whether the end was a reset; otherwise it was an orderly one.
    """

    data: bytes
    reset: bool


def outcome_of_reading(connection: socket.socket) -> Outcome:
    """Read up to the end or the reset."""
    data = bytearray()
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        return Outcome(bytes(data), reset=True)
    return Outcome(bytes(data), reset=False)


def outcome_after_eof(connection: socket.socket) -> Outcome:
    """Wait until a peer whose end has been read is gone altogether; that can only be a reset.

    After an end of file reading says nothing else any more: what follows shows in the
    socket's error alone.
    """
    poll = select.poll()
    poll.register(connection, 0)
    assert poll.poll(DEADLINE * 1000)
    error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return Outcome(b"", reset=error == errno.EPIPE)


def outcome_of_talking(
    namespace: Namespace, server: SocketAddress, data: bytes = b"hello"
) -> Outcome:
    """Connect, say something and read up to the end or the reset, whenever that comes."""
    with namespace.tcp_socket(server.family) as connection:
        # A reset may be there before connect() returns, or before anything is sent.
        try:
            connection.connect((server.host, server.port))
        except ConnectionResetError:
            return Outcome(b"", reset=True)
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(data)
            return outcome_of_reading(connection)
    return Outcome(b"", reset=True)


def reset(connection: socket.socket) -> None:
    """Close with RST, once all that was sent has arrived at the peer's kernel."""
    eventually(0, lambda: _unacknowledged(connection))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _unacknowledged(connection: socket.socket) -> int:
    """How many bytes the peer's kernel hasn't acknowledged (SIOCOUTQ, tcp(7))."""
    answer = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)
