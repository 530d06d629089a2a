"""How many intercepted connections are alive, by asking for the proxy's sockets.

Of sockets and not of conntrack: a flush empties conntrack, and it goes on listing
for days what a proxy that died left behind; sockets are what would be cut.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING

from sidecar.addresses import unwrap_mapped
from sidecar.linux import netlink
from sidecar.linux.attributes import parse
from sidecar.linux.netlink import (
    NETLINK_SOCK_DIAG,
    NLM_F_ROOT_MATCH,
    Message,
    RequestError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.addresses import IPAddress

from dataclasses import dataclass

__all__ = ["TcpSocket", "count_redirected", "count_transparent", "listens", "tcp_sockets"]

# linux/sock_diag.h, linux/inet_diag.h
_SOCK_DIAG_BY_FAMILY = 20
_INET_DIAG_SOCKOPT = 22
_SOCKOPT_TRANSPARENT = 1 << 5  # struct inet_diag_sockopt: sixth bit of the first octet
_REQUEST = struct.Struct("=BBBBI48s")
_ANSWER = struct.Struct("=BBBBHH16s16s")
_PORTS = struct.Struct(">HH")
_HEADER_OCTETS = 72  # struct inet_diag_msg
# net/tcp_states.h
_TIME_WAIT, _CLOSE, _LISTEN = 6, 7, 10
_ALL_STATES = 0xFFF


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One TCP socket of this network namespace."""

    local: IPAddress
    local_port: int
    peer: IPAddress
    peer_port: int
    listens: bool
    transparent: bool


def tcp_sockets(*, listening: bool) -> Iterator[TcpSocket]:
    """The namespace's TCP sockets; needs no privilege.

    Args:
        listening: Listeners; else what is connected or connecting, without those
            that only wait for time to pass (TIME_WAIT).
    """
    wanted = 1 << _LISTEN
    states = wanted if listening else _ALL_STATES & ~(wanted | 1 << _TIME_WAIT | 1 << _CLOSE)
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states, bytes(48))
        message = Message(_SOCK_DIAG_BY_FAMILY, NLM_F_ROOT_MATCH, request, "sock_diag (inet_diag)")
        try:
            replies = netlink.dump(NETLINK_SOCK_DIAG, message)
        except RequestError:
            continue
        for reply in replies:
            yield _decode(reply.body)


def count_redirected(ports: tuple[int, ...]) -> int:
    """How many connections the proxy's ports hold (redirect mode)."""
    return sum(each.local_port in ports for each in tcp_sockets(listening=False))


def count_transparent() -> int:
    """How many connections transparent sockets hold (tproxy mode).

    No intercepted one is on a loopback address; those are the proxy's own, made to
    reach the application from 127.0.0.6.
    """
    return sum(
        each.transparent and not each.local.is_loopback for each in tcp_sockets(listening=False)
    )


def listens(port: int, *, version: int, transparent: bool) -> bool:
    """Whether a listener would take what is intercepted for this port.

    Args:
        port: The proxy's.
        version: 4 or 6.
        transparent: Whether it must be a transparent one.
    """
    for each in tcp_sockets(listening=True):
        # A listener on [::] serves IPv4 too, unless it is IPV6_V6ONLY, which only
        # a probe can tell.
        serves = each.local.version == version or (each.local.version == 6 and version == 4)  # noqa: PLR2004
        if each.local_port == port and serves and (each.transparent or not transparent):
            return True
    return False


def _decode(body: bytes) -> TcpSocket:
    family, state, _, _, _, _, source, destination = _ANSWER.unpack_from(body)
    source_port, destination_port = _PORTS.unpack_from(body, 4)
    length = 16 if family == socket.AF_INET6 else 4
    options = parse(body[_HEADER_OCTETS:]).get(_INET_DIAG_SOCKOPT, b"\0")
    return TcpSocket(
        local=unwrap_mapped(ip_address(source[:length])),
        local_port=source_port,
        peer=unwrap_mapped(ip_address(destination[:length])),
        peer_port=destination_port,
        listens=state == _LISTEN,
        transparent=bool(options[0] & _SOCKOPT_TRANSPARENT),
    )
