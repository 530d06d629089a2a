"""To which address was a datagram sent, and sending one from an address of one's choice.

ip(7) IP_PKTINFO, ipv6(7) IPV6_PKTINFO. On a dual-stack socket the latter serves IPv4 as well,
with mapped addresses (linux/net/ipv4/ip_sockglue.c, ip_cmsg_send).
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    Ancillary = list[tuple[int, int, bytes]]

__all__ = ["SPACE", "answer_from", "destination", "receive_destinations"]

# linux/in.h; Python has it since 3.13.
_IP_PKTINFO = 8
# struct in_pktinfo: interface, the local address, the destination in the header.
_INFO4 = struct.Struct("=i4s4s")
# struct in6_pktinfo: the destination, interface.
_INFO6 = struct.Struct("=16si")

SPACE = socket.CMSG_SPACE(_INFO6.size) + socket.CMSG_SPACE(_INFO4.size)
"""Bytes of ancillary data to make room for in recvmsg()."""


def receive_destinations(sock: socket.socket) -> None:
    """Have the kernel tell, with each datagram, to which address it was sent."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.SOL_IP, _IP_PKTINFO, 1)


def destination(ancillary: Iterable[tuple[int, int, bytes]]) -> bytes | None:
    """The address that a datagram was sent to: 4 or 16 octets; None if it isn't told."""
    found: bytes | None = None
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            if len(data) == _INFO6.size:
                found = _INFO6.unpack(data)[0]
        elif level == socket.SOL_IP and kind == _IP_PKTINFO and len(data) == _INFO4.size:
            found = _INFO4.unpack(data)[2]
    return found


def answer_from(packed: bytes | None) -> Ancillary:
    """What makes sendmsg() send from an address.

    Args:
        packed: As `destination` gave it, from a datagram of the same socket; None leaves the
            choice to the kernel.
    """
    if packed is None:
        return []
    if len(packed) == _OCTETS_V4:
        info = _INFO4.pack(0, packed, bytes(_OCTETS_V4))
        return [(socket.SOL_IP, _IP_PKTINFO, info)]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _INFO6.pack(packed, 0))]


_OCTETS_V4 = 4
