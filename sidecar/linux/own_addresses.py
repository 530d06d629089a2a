"""The addresses that are this host's, as the kernel has them, and when they change.

Those of its interfaces, and those that a route makes local (AnyIP): load balancers' and
containers' that are delivered to the host though no interface has them.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.linux import netlink
from sidecar.linux.attributes import parse
from sidecar.linux.netlink import NETLINK_ROUTE, NLM_F_ROOT_MATCH, Message

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = ["OwnAddresses", "open_watch", "own_addresses", "something_changed"]

# linux/rtnetlink.h
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE = 0x40, 0x400
# linux/if_addr.h: struct ifaddrmsg. A point-to-point link's IFA_ADDRESS is its other end;
# where there is no IFA_LOCAL (IPv6), it is its own.
_ADDRESS = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
# linux/rtnetlink.h: struct rtmsg, and what a route leads to.
_ROUTE = struct.Struct("=BBBBBBBBI")
_RTN_LOCAL = 2
_RTA_DST = 1
# RT_TABLE_DEFAULT, MAIN and LOCAL: those that every packet is looked up in. Others are for packets
# that rules choose, such as those that TPROXY has marked.
_TABLES = frozenset({253, 254, 255})
_OCTETS = {socket.AF_INET: 4, socket.AF_INET6: 16}
_RECEIVE_OCTETS = 65536


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """Addresses, and whole networks of them.

    Attributes:
        addresses: In network byte order, 4 or 16 octets each.
        networks: The first and the last address of each.
    """

    addresses: frozenset[bytes]
    networks: tuple[tuple[bytes, bytes], ...]

    def __contains__(self, packed: object) -> bool:
        """Whether an address, in network byte order, is one of them."""
        if packed in self.addresses:
            return True
        return isinstance(packed, bytes) and any(
            len(packed) == len(first) and first <= packed <= last for first, last in self.networks
        )


def own_addresses() -> Container[bytes]:
    """List the addresses of this network namespace's host: of its interfaces, and by its routes.

    Loopback (127.0.0.0/8) is not listed as a network; nor is a route for all addresses, which
    makes none the host's own: it is there to intercept.

    Returns:
        In network byte order. A plain set where there are no networks, as on most hosts: each
        new flow asks it. Two that are equal have the same addresses.

    Raises:
        OSError: The kernel doesn't say.
    """
    addresses = _of_interfaces()
    networks = set()
    for family, octets in _OCTETS.items():
        for destination, length in _local_routes(family):
            if length == octets * 8:
                addresses.add(destination)
            elif length and not (family == socket.AF_INET and destination[0] == _LOOPBACK):
                networks.add(_bounds(destination, length))
    found = frozenset(addresses)
    return OwnAddresses(found, tuple(sorted(networks))) if networks else found


_LOOPBACK = 127


def _of_interfaces() -> set[bytes]:
    body = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found = set()
    for reply in netlink.dump(NETLINK_ROUTE, Message(_GETADDR, NLM_F_ROOT_MATCH, body)):
        if reply.kind == _NEWADDR:
            attributes = parse(reply.body[_ADDRESS.size :])
            own = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
            if own is not None:
                found.add(bytes(own))
    return found


def _local_routes(family: socket.AddressFamily) -> list[tuple[bytes, int]]:
    """Destinations and prefix lengths; destinations have all octets."""
    body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, _RTN_LOCAL, 0)
    request = Message(_GETROUTE, NLM_F_ROOT_MATCH, body)
    found = []
    # The kernel leaves out the others: a router may have a million.
    for reply in netlink.dump(NETLINK_ROUTE, request, strict=True):
        if _is_local_route(reply.kind, reply.body) and reply.body[0] == family:
            length = reply.body[1]
            destination = parse(reply.body[_ROUTE.size :]).get(_RTA_DST, bytes(_OCTETS[family]))
            found.append((bytes(destination), length))
    return found


def _is_local_route(kind: int, body: bytes) -> bool:
    if kind not in {_NEWROUTE, _DELROUTE} or len(body) < _ROUTE.size:
        return False
    _, _, _, _, table, _, _, leads_to, _ = _ROUTE.unpack_from(body)
    return leads_to == _RTN_LOCAL and table in _TABLES


def _bounds(destination: bytes, length: int) -> tuple[bytes, bytes]:
    octets = len(destination)
    hosts = (1 << octets * 8 - length) - 1
    first = int.from_bytes(destination, "big") & ~hosts
    return first.to_bytes(octets, "big"), (first | hosts).to_bytes(octets, "big")


def open_watch() -> socket.socket:
    """Open a socket that can be read once an address or a route has come or gone.

    Returns:
        Non-blocking; the caller's to close.

    Raises:
        OSError: The kernel doesn't say.
    """
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE)
    addresses = _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR
    try:
        sock.bind((0, addresses | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE))
    except OSError:
        sock.close()
        raise
    return sock


def something_changed(watch: socket.socket) -> bool:
    """Read all that there is from a socket of `open_watch`; say if any of it is of the host's own.

    Most routes that come and go are not.
    """
    changed = False
    with suppress(BlockingIOError):
        while True:
            changed |= _read(watch)
    return changed


def _read(watch: socket.socket) -> bool:
    try:
        data = watch.recv(_RECEIVE_OCTETS)
    except BlockingIOError:
        raise
    except OSError:
        # ENOBUFS: more than it could hold.
        return True
    return any(
        each.kind in {_NEWADDR, _DELADDR} or _is_local_route(each.kind, each.body)
        for each in netlink.split(data)
    )
