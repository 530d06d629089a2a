"""Real sockets where the kernel can be had without rules; tests/integration has the rest."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, cast

import pytest

from sidecar.addresses import SocketAddress
from sidecar.destinations import (
    DestinationFinder,
    InterceptMode,
    NotIntercepted,
    OriginalDestination,
)
from sidecar.flow import DestinationSource

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 15001
IPV4_CLIENT = SocketAddress("192.0.2.7", 40000)
IPV6_CLIENT = SocketAddress("2001:db8::7", 40000)
REMOTE = ("198.51.100.1", 443)
REMOTE6 = ("2001:db8:1::1", 443)
NO_ENTRY = OSError(errno.ENOENT, "no such connection")


class FakeConnection:
    """What the kernel says of an accepted socket, where it takes rules to make it say so.

    Args:
        local: What getsockname() answers.
        original: What SO_ORIGINAL_DST answers at each level, or how it fails.
    """

    def __init__(
        self,
        local: tuple[str, int] | tuple[str, int, int, int],
        original: dict[int, tuple[str, int] | OSError] | OSError = NO_ENTRY,
    ) -> None:
        self._local = local
        self._original = original
        self.asked: list[tuple[int, int]] = []

    def getsockname(self) -> object:
        return self._local

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        self.asked.append((level, option))
        answer = self._original
        if isinstance(answer, dict):
            answer = answer.get(level, OSError(errno.ENOPROTOOPT, "no such option"))  # type: ignore[assignment] # narrowed below
        if isinstance(answer, OSError):
            raise answer
        host, port = cast("tuple[str, int]", answer)
        if ":" in host:
            packed = socket.inet_pton(socket.AF_INET6, host)
            raw = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, packed, 0)
        else:
            packed = socket.inet_pton(socket.AF_INET, host)
            raw = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, packed)
        assert size == len(raw)
        return raw


def find(
    finder: DestinationFinder, connection: FakeConnection, source: SocketAddress = IPV4_CLIENT
) -> OriginalDestination | NotIntercepted:
    """Ask about a fake connection."""
    return finder.find(cast("socket.socket", connection), source)


def tproxy(host: str, port: int) -> OriginalDestination:
    """Name what TPROXY brought."""
    return OriginalDestination(SocketAddress(host, port), DestinationSource.TPROXY)


def redirect(host: str, port: int) -> OriginalDestination:
    """Name what REDIRECT brought."""
    return OriginalDestination(SocketAddress(host, port), DestinationSource.REDIRECT)


class TestOrder:
    @pytest.mark.parametrize("mode", [InterceptMode.AUTO, InterceptMode.TPROXY])
    @pytest.mark.parametrize(
        ("local", "expected"),
        [
            (REMOTE, tproxy(*REMOTE)),
            (("::ffff:198.51.100.1", 443, 0, 0), tproxy(*REMOTE)),
            ((*REMOTE6, 0, 0), tproxy(*REMOTE6)),
            # One of this host's own: inbound.
            (("127.0.0.1", 80), tproxy("127.0.0.1", 80)),
        ],
    )
    def test_tproxy(
        self, mode: InterceptMode, local: tuple[str, int], expected: OriginalDestination
    ) -> None:
        """A socket that names another port is TPROXY's; conntrack isn't asked."""
        connection = FakeConnection(local, {socket.SOL_IP: ("203.0.113.9", 9)})
        assert expected == find(DestinationFinder(mode, PORT, transparent=True), connection)
        assert [] == connection.asked

    def test_tproxy_at_our_port(self) -> None:
        """Somebody else's host at a port that is by chance ours is TPROXY's as well."""
        finder = DestinationFinder(InterceptMode.AUTO, PORT, transparent=True)
        connection = FakeConnection(("198.51.100.1", PORT))
        assert tproxy("198.51.100.1", PORT) == find(finder, connection)

    @pytest.mark.parametrize("mode", [InterceptMode.AUTO, InterceptMode.REDIRECT])
    @pytest.mark.parametrize("transparent", [False, True])
    def test_redirect(self, mode: InterceptMode, transparent: bool) -> None:
        """A socket that names our port, and conntrack another destination: REDIRECT's."""
        connection = FakeConnection(("127.0.0.1", PORT), {socket.SOL_IP: REMOTE})
        finder = DestinationFinder(mode, PORT, transparent=transparent)
        assert redirect(*REMOTE) == find(finder, connection)

    def test_level_of_the_peer(self) -> None:
        """An IPv4 peer of a dual-stack socket is asked about at the level of IPv4."""
        connection = FakeConnection(("::ffff:127.0.0.1", PORT, 0, 0), {socket.SOL_IP: REMOTE})
        finder = DestinationFinder(InterceptMode.REDIRECT, PORT, transparent=False)
        assert redirect(*REMOTE) == find(finder, connection)
        assert [(socket.SOL_IP, 80)] == connection.asked

    def test_ipv6(self) -> None:
        """An IPv6 peer at that of IPv6."""
        connection = FakeConnection(("::1", PORT, 0, 0), {socket.IPPROTO_IPV6: REMOTE6})
        finder = DestinationFinder(InterceptMode.REDIRECT, PORT, transparent=False)
        assert redirect(*REMOTE6) == find(finder, connection, IPV6_CLIENT)
        assert [(socket.IPPROTO_IPV6, 80)] == connection.asked

    @pytest.mark.parametrize("mode", list(InterceptMode))
    @pytest.mark.parametrize(
        "said",
        [
            OSError(errno.ENOENT, "no entry"),
            OSError(errno.EOPNOTSUPP, "not TCP"),
            OSError(errno.ENOPROTOOPT, "no conntrack"),
            {socket.SOL_IP: ("127.0.0.1", PORT)},
        ],
        ids=str,
    )
    def test_dialled_directly(
        self, mode: InterceptMode, said: dict[int, tuple[str, int] | OSError] | OSError
    ) -> None:
        """Our own address, and nobody who knows of another: dialled directly."""
        connection = FakeConnection(("127.0.0.1", PORT), said)
        finder = DestinationFinder(mode, PORT, transparent=mode is not InterceptMode.REDIRECT)
        expected = NotIntercepted(SocketAddress("127.0.0.1", PORT))
        assert expected == find(finder, connection)

    def test_tproxy_mode_does_not_ask_conntrack(self) -> None:
        """Where only TPROXY is expected, what conntrack says doesn't count."""
        connection = FakeConnection(("127.0.0.1", PORT), {socket.SOL_IP: REMOTE})
        finder = DestinationFinder(InterceptMode.TPROXY, PORT, transparent=True)
        assert isinstance(find(finder, connection), NotIntercepted)
        assert [] == connection.asked

    def test_redirect_mode_does_not_trust_the_socket(self) -> None:
        """Where only REDIRECT is expected, another local port is not a destination."""
        connection = FakeConnection(REMOTE)
        finder = DestinationFinder(InterceptMode.REDIRECT, PORT, transparent=False)
        assert NotIntercepted(SocketAddress(*REMOTE)) == find(finder, connection)


@pytest.fixture(params=["127.0.0.1", "::1", "::"])
def accepted(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, SocketAddress]]:
    """A real connection that nobody intercepted; "::" stands for IPv4 on dual stack."""
    host: str = request.param
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        target = "127.0.0.1" if host == "::" else host
        with socket.create_connection((target, port)):
            connection, sockaddr = listener.accept()
            with connection:
                yield connection, SocketAddress.from_kernel(sockaddr)


class TestKernel:
    @pytest.mark.parametrize("mode", list(InterceptMode))
    def test_direct(
        self, accepted: tuple[socket.socket, SocketAddress], mode: InterceptMode
    ) -> None:
        """A real direct connection is known as one, in each mode and family."""
        connection, source = accepted
        local = SocketAddress.from_kernel(connection.getsockname())
        finder = DestinationFinder(mode, local.port, transparent=True)
        assert NotIntercepted(local) == finder.find(connection, source)
