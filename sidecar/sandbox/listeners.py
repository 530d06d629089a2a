"""How the sockets that P is to serve are made, in the sandbox's network namespace."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from sidecar.linux.pktinfo import receive_destinations
from sidecar.linux.sockopt import set_transparent
from sidecar.sandbox.addresses import DNS_PORT, LOOPBACK, TPROXY_PORT
from sidecar.sandbox.handover import Listeners

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["open_listeners"]

# Connections that the kernel completes and keeps for us: a new namespace's
# net.core.somaxconn. A burst beyond it is delayed by a second (SYN retransmission), and
# what connects before the proxy is up waits here.
_BACKLOG = 4096
# Octets. A thousand questions at once, each of which takes some 800 of it.
_DATAGRAM_BUFFER = 1 << 20
# linux/netlink.h; Python has no name for it.
_NETLINK_SOCK_DIAG = 4


def open_listeners(host_ports: Sequence[int] = ()) -> Listeners:
    """Open all of them, in the calling process's network namespace.

    Args:
        host_ports: Of loopback, those that lead to the host's.

    Raises:
        OSError: A port is taken, or the kernel refused.
    """
    both = _families()
    tcp = _open(socket.SOCK_STREAM, TPROXY_PORT, both)
    tcp.listen(_BACKLOG)
    # Every address is local, so this is where DNS arrives without any rule.
    dns_tcp = _open(socket.SOCK_STREAM, DNS_PORT, both)
    dns_tcp.listen(_BACKLOG)
    dns_udp = tuple(_open(socket.SOCK_DGRAM, DNS_PORT, (family,)) for family in both)
    for sock in dns_udp:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DATAGRAM_BUFFER)
        receive_destinations(sock)
    diag = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
    return Listeners(tcp, (dns_tcp,), dns_udp, diag, _open_host_ports(host_ports, both))


def _open_host_ports(
    ports: Sequence[int], families: tuple[socket.AddressFamily, ...]
) -> tuple[socket.socket, ...]:
    if not ports:
        return ()
    from sidecar.sandbox.bridges import listen

    hosts = LOOPBACK if socket.AF_INET6 in families else LOOPBACK[:1]
    return tuple(listen(host, port) for port in ports for host in hosts)


def _families() -> tuple[socket.AddressFamily, ...]:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return (socket.AF_INET,)
    return (socket.AF_INET6, socket.AF_INET)


def _open(
    kind: socket.SocketKind, port: int, families: tuple[socket.AddressFamily, ...]
) -> socket.socket:
    """Bind a transparent socket to a port of every address of some families."""
    sock = socket.socket(families[0], kind)
    set_transparent(sock)
    # A literal: for an empty string Python would ask getaddrinfo.
    everywhere = "0.0.0.0"  # noqa: S104 - nobody but the sandbox is there
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, len(families) == 1)
        everywhere = "::"
    sock.bind((everywhere, port))
    return sock
