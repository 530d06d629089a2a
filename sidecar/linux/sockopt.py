"""Which socket options Linux has that Python does not name, each defined once.

Every function works on the socket it is given and keeps no state.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import termios
from typing import TYPE_CHECKING

from sidecar.wire.sockaddr import (
    SOCKADDR_IN6_SIZE,
    SOCKADDR_IN_SIZE,
    decode_sockaddr_in,
    decode_sockaddr_in6,
)

if TYPE_CHECKING:
    from sidecar.addresses import SocketAddress

__all__ = [
    "bind_late",
    "bind_non_local",
    "is_local_address",
    "keep_alive",
    "original_destination",
    "reset_on_close",
    "set_mark",
    "set_transparent",
    "tcp_state",
    "unacknowledged",
    "unread",
]

# linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h. The same number at
# two levels; the level must be that of the address family conntrack saw, which on a
# dual-stack socket is the unwrapped peer's, not the socket's.
SO_ORIGINAL_DST = 80
IP6T_SO_ORIGINAL_DST = 80
# linux/in.h, linux/in6.h. Need CAP_NET_ADMIN or CAP_NET_RAW. One call at the
# socket's own level also serves the other family of a dual-stack socket.
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
# linux/in.h, since 4.2; serves both families.
IP_BIND_ADDRESS_NO_PORT = 24

# linux/tcp_states.h
TCP_SYN_SENT = 2
TCP_CLOSE = 7

_linger_reset = struct.pack("ii", 1, 0)
_linger_off = struct.pack("ii", 0, 0)
_int = struct.Struct("i")
_unsigned = struct.Struct("I")


def original_destination(connection: socket.socket, peer_is_ipv4: bool) -> SocketAddress:
    """Ask conntrack for the destination of the connection's first packet.

    Success does not prove that the connection was redirected: without NAT the
    answer is what getsockname says.

    Args:
        connection: An accepted TCP socket; its peer may already have reset it.
        peer_is_ipv4: Whether the peer, unwrapped from IPv4-mapped, is IPv4.

    Raises:
        OSError: ENOENT, conntrack has no such connection (no NAT rule, NOTRACK,
            TPROXY); EOPNOTSUPP or ENOPROTOOPT, wrong level or not TCP.
    """
    # What makes sandboxes has no need of it, and no time to import it.
    from sidecar.addresses import SocketAddress

    if peer_is_ipv4:
        raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, SOCKADDR_IN_SIZE)
        host, port = decode_sockaddr_in(raw)
        return SocketAddress(str(host), port)
    raw = connection.getsockopt(socket.IPPROTO_IPV6, IP6T_SO_ORIGINAL_DST, SOCKADDR_IN6_SIZE)
    host6, port = decode_sockaddr_in6(raw)
    return SocketAddress(str(host6), port)


def set_transparent(sock: socket.socket) -> None:
    """Let the socket use addresses that are not this host's (TPROXY).

    Raises:
        OSError: EPERM without CAP_NET_ADMIN and CAP_NET_RAW.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)


def bind_non_local(sock: socket.socket, source: str) -> None:
    """Bind an unconnected socket to an address that need not be this host's.

    Raises:
        OSError: EPERM without CAP_NET_ADMIN and CAP_NET_RAW.
    """
    set_transparent(sock)
    sock.bind((source, 0))


def bind_late(sock: socket.socket, source: str) -> None:
    """Bind an unconnected socket to an address, leaving the port to connect().

    A port chosen by bind() is taken for every destination; one chosen by connect()
    only for that one, so a source address lasts for more than 28,000 connections.

    Raises:
        OSError: EADDRNOTAVAIL, the address isn't this host's.
    """
    sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((source, 0))


def keep_alive(sock: socket.socket, idle: int) -> None:
    """Have the kernel ask a silent peer whether it is still there (tcp(7)).

    Args:
        sock: A listener's sockets inherit the setting.
        idle: Seconds of silence before the first probe, 1 to 32767.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)


def set_mark(sock: socket.socket, mark: int) -> None:
    """Set the firewall mark of the packets the socket sends (SO_MARK, asm/socket.h).

    Raises:
        OSError: EPERM without CAP_NET_ADMIN and (since Linux 5.17) CAP_NET_RAW.
    """
    # Packed: what Python takes as a number is signed.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _unsigned.pack(mark))


def is_local_address(host: str) -> bool:
    """Whether packets to this IP literal are delivered to this host.

    The unspecified addresses count: connecting to them reaches this host.
    """
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            # Only local addresses can be bound, so the kernel answers for every
            # interface at once; a datagram socket takes no port from anyone.
            probe.bind((host, 0))
        except OSError as error:
            if error.errno in {errno.EADDRNOTAVAIL, errno.EINVAL, errno.EACCES}:
                return False
            raise
    return True


def reset_on_close(sock: socket.socket, *, on: bool = True) -> None:
    """Make close() send RST and drop what is unsent (SO_LINGER with zero, socket(7)).

    Args:
        sock: All descriptors of the same socket share the setting.
        on: False for the default: close() sends what is unsent, then FIN.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _linger_reset if on else _linger_off)


def tcp_state(sock: socket.socket) -> int:
    """The TCP state, socket.TCP_*-like numbers of linux/tcp_states.h; takes no pending error."""
    # The first byte of struct tcp_info is tcpi_state (linux/tcp.h).
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def unread(sock: socket.socket) -> int:
    """How many received bytes wait to be read (SIOCINQ, tcp(7)), also after a reset."""
    answer = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(_int.size))
    value: int = _int.unpack(answer)[0]
    return value


def unacknowledged(fd: int) -> int:
    """How many bytes sent on a TCP socket its peer has not acknowledged (SIOCOUTQ, tcp(7))."""
    answer = fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(_int.size))
    value: int = _int.unpack(answer)[0]
    return value
