"""The addresses of this host, as the kernel has them, and when they change."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from sidecar.linux import netlink
from sidecar.linux.attributes import parse
from sidecar.linux.netlink import NETLINK_ROUTE, NLM_F_ROOT_MATCH, Message

__all__ = ["open_watch", "own_addresses", "something_changed"]

# linux/rtnetlink.h
_NEWADDR, _GETADDR = 20, 22
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
# linux/if_addr.h: struct ifaddrmsg. A point-to-point link's IFA_ADDRESS is its other end;
# where there is no IFA_LOCAL (IPv6), it is its own.
_HEADER = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RECEIVE_OCTETS = 65536


def own_addresses() -> frozenset[bytes]:
    """List the addresses of all interfaces of this network namespace.

    Returns:
        In network byte order, 4 or 16 octets each.

    Raises:
        OSError: The kernel doesn't say.
    """
    body = _HEADER.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found = set()
    for reply in netlink.dump(NETLINK_ROUTE, Message(_GETADDR, NLM_F_ROOT_MATCH, body)):
        if reply.kind == _NEWADDR:
            attributes = parse(reply.body[_HEADER.size :])
            own = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
            if own is not None:
                found.add(bytes(own))
    return frozenset(found)


def open_watch() -> socket.socket:
    """Open a socket that can be read once an address has come or gone.

    Returns:
        Non-blocking; the caller's to close.

    Raises:
        OSError: The kernel doesn't say.
    """
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE)
    try:
        sock.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    except OSError:
        sock.close()
        raise
    return sock


def something_changed(watch: socket.socket) -> bool:
    """Read all that there is from a socket of `open_watch`; say if there was any."""
    changed = False
    with suppress(BlockingIOError):
        while True:
            changed |= _read(watch)
    return changed


def _read(watch: socket.socket) -> bool:
    try:
        return bool(watch.recv(_RECEIVE_OCTETS))
    except BlockingIOError:
        raise
    except OSError:
        # ENOBUFS: more than it could hold.
        return True
