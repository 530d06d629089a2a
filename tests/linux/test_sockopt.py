from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from privileges import without_capabilities

from sidecar.addresses import SocketAddress
from sidecar.linux.sockopt import (
    IP_TRANSPARENT,
    IPV6_TRANSPARENT,
    bind_late,
    bind_non_local,
    is_local_address,
    keep_alive,
    original_destination,
    reset_on_close,
    set_mark,
    set_transparent,
    unacknowledged,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def sock(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(request.param) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as near:
            far, _ = listener.accept()
            with far:
                yield near, far


class TestTransparent:
    @needs_root
    def test_set(self, sock: socket.socket) -> None:
        """The option is set at the socket's own level."""
        set_transparent(sock)
        if sock.family == socket.AF_INET6:
            assert 1 == sock.getsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT)
        else:
            assert 1 == sock.getsockopt(socket.SOL_IP, IP_TRANSPARENT)

    @needs_root
    def test_non_local(self, sock: socket.socket) -> None:
        """With it an address of somebody else's can be bound."""
        host = "2001:db8::7" if sock.family == socket.AF_INET6 else "192.0.2.7"
        bind_non_local(sock, host)
        assert host == sock.getsockname()[0]

    def test_not_permitted(self) -> None:
        """Without the capability it is EPERM."""
        done = without_capabilities(
            "import socket; from sidecar.linux.sockopt import set_transparent;"
            "set_transparent(socket.socket())"
        )
        assert "PermissionError" in done.stderr


class TestMark:
    @needs_root
    def test_set(self, sock: socket.socket) -> None:
        """The mark is on the socket; all 32 bits of it."""
        set_mark(sock, 0x539)
        assert 0x539 == sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        set_mark(sock, 2**32 - 1)
        assert 2**32 - 1 == sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) % 2**32

    def test_not_permitted(self) -> None:
        """Without the capability it is EPERM."""
        done = without_capabilities(
            "import socket; from sidecar.linux.sockopt import set_mark;set_mark(socket.socket(), 1)"
        )
        assert "PermissionError" in done.stderr


class TestBindLate:
    def test_port_comes_later(self, sock: socket.socket) -> None:
        """The address is bound, the port isn't chosen yet; also on IPv6 sockets."""
        host = "::1" if sock.family == socket.AF_INET6 else "127.0.0.6"
        bind_late(sock, host)
        assert (host, 0) == sock.getsockname()[:2]

    def test_same_port_twice(self) -> None:
        """A port can serve for two destinations."""
        with socket.socket() as first, socket.socket() as second:
            for sock in (first, second):
                sock.bind(("127.0.0.1", 0))
                sock.listen()
            with socket.socket() as one:
                bind_late(one, "127.0.0.6")
                one.connect(first.getsockname())
                assert 0 != one.getsockname()[1]

    def test_not_ours(self, sock: socket.socket) -> None:
        """An address that isn't this host's is refused."""
        host = "2001:db8::7" if sock.family == socket.AF_INET6 else "192.0.2.7"
        with pytest.raises(OSError, match="annot assign") as caught:
            bind_late(sock, host)
        assert errno.EADDRNOTAVAIL == caught.value.errno


class TestLocal:
    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("127.0.0.1", True),
            ("127.200.3.4", True),
            ("::1", True),
            ("0.0.0.0", True),
            ("::", True),
            ("192.0.2.7", False),
            ("2001:db8::7", False),
            ("ff02::1", False),
            ("fe80::dead:beef", False),
        ],
    )
    def test_address(self, host: str, expected: bool) -> None:
        """An address is local if what is sent to it comes back to this host alone."""
        assert expected == is_local_address(host)


class TestOriginalDestination:
    def test_direct(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Without NAT it is the address that was dialled, or there is no answer."""
        _, far = pair
        local = SocketAddress.from_kernel(far.getsockname())
        try:
            answer = original_destination(far, True)
        except (FileNotFoundError, ProcessLookupError):
            answer = local
        assert local == answer

    def test_wrong_level(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Asked at the wrong level the kernel refuses."""
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says more
            original_destination(pair[1], False)
        assert caught.value.errno in {errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOENT}


class TestRest:
    def test_keep_alive(self, sock: socket.socket) -> None:
        """Keepalive is on, with the idle time given."""
        keep_alive(sock, 77)
        assert 1 == sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert 77 == sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)

    def test_reset_on_close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Closing sends RST."""
        near, far = pair
        reset_on_close(near)
        near.close()
        with pytest.raises(ConnectionResetError):
            far.recv(1)

    def test_reset_on_close_off(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Or FIN again."""
        near, far = pair
        reset_on_close(near)
        reset_on_close(near, on=False)
        near.close()
        assert b"" == far.recv(1)

    def test_unacknowledged(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """What the peer's kernel has not taken is counted."""
        near, far = pair
        assert 0 == unacknowledged(near.fileno())
        near.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while True:
                sent += near.send(bytes(1 << 16))
        assert 0 < unacknowledged(near.fileno()) < sent
        far.close()


def test_no_work_at_import() -> None:
    """The module is for Linux only, and says nothing about the machine it is imported on."""
    assert "linux" == sys.platform
