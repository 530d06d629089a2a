"""Whether a connection from outside would be intercepted, by making one arrive.

A pair of virtual interfaces is put up for the moment, with addresses that are nobody's
(RFC 5737, RFC 3849), and a SYN for a port on which nobody listens is written into its
far end. Whoever answers SYN-ACK has been given the packet by the rules. A reset
follows at once, so the proxy never gets to accept anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.linux import netlink
from sidecar.linux.attributes import attribute, nested, text
from sidecar.linux.netfilter import alive
from sidecar.linux.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.addresses import IPAddress
    from sidecar.linux.netfilter.model import PortRange

__all__ = ["free_port", "is_answered"]

# linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h
_NEWLINK, _DELLINK, _NEWADDR, _NEWNEIGH = 16, 17, 20, 28
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO = 1, 3, 18
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80
_IFF_UP = 0x1
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_HERE_MAC, _THERE_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
_TCP = struct.Struct(">HHIIBBHHH")
_SYN, _RST, _SYN_ACK = 0x02, 0x04, 0x12
_SEQUENCE = 1000
_ANSWER_SECONDS = 2.0
_RETRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Addresses:
    family: socket.AddressFamily
    ether_type: int
    here: bytes
    there: bytes
    prefix_length: int


_ADDRESSES = {
    4: _Addresses(
        socket.AF_INET,
        0x0800,
        socket.inet_pton(socket.AF_INET, "192.0.2.1"),
        socket.inet_pton(socket.AF_INET, "192.0.2.2"),
        30,
    ),
    6: _Addresses(
        socket.AF_INET6,
        0x86DD,
        socket.inet_pton(socket.AF_INET6, "2001:db8:5:1dec:a::1"),
        socket.inet_pton(socket.AF_INET6, "2001:db8:5:1dec:a::2"),
        126,
    ),
}


def free_port(excluded: tuple[PortRange, ...]) -> int:
    """A port on which nobody listens, and which is not excluded.

    Raises:
        OSError: There is none.
    """
    taken = {each.local_port for each in alive.tcp_sockets(listening=True)}
    for port in range(9, 1 << 16):
        if port not in taken and not any(port in each for each in excluded):
            return port
    raise OSError(errno.EADDRNOTAVAIL, "no port is free")


def is_answered(version: int, port: int, destination: IPAddress | None = None) -> bool:
    """Whether a SYN from outside for this port, at which nobody listens, is accepted.

    Args:
        version: 4 or 6.
        port: The port.
        destination: Another host's address, to look as if this host were to route
            the connection; None for an address of this host.

    Raises:
        OSError: The interfaces can't be made: EPERM without CAP_NET_ADMIN and
            CAP_NET_RAW, EOPNOTSUPP without the module veth, EEXIST where the
            addresses are in use.
    """
    addresses = _ADDRESSES[version]
    target = addresses.here if destination is None else destination.packed
    with _interfaces(addresses) as far_end:
        return _try(addresses, far_end, target, port)


def _try(addresses: _Addresses, interface: str, target: bytes, port: int) -> bool:
    everything = 0x0003  # linux/if_ether.h: ETH_P_ALL
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(everything)) as wire:
        wire.bind((interface, everything))
        # Another each time: conntrack remembers the last one for a while.
        ports = (32768 + secrets.randbelow(28000), port)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while (now := time.monotonic()) < deadline:
            # Until the kernel has seen that the link is up, it drops what is sent.
            wire.send(_frame(addresses, target, ports, _SYN, _SEQUENCE))
            flags = _answer(addresses, wire, ports, now + _RETRY_SECONDS)
            if flags is None:
                continue
            if flags & _SYN_ACK == _SYN_ACK:
                wire.send(_frame(addresses, target, ports, _RST, _SEQUENCE + 1))
                return True
            return False
    return False


def _answer(
    addresses: _Addresses, wire: socket.socket, ports: tuple[int, int], deadline: float
) -> int | None:
    """The TCP flags of the answer, None if there is none until then."""
    while (left := deadline - time.monotonic()) > 0 and select.select([wire], [], [], left)[0]:
        flags = _flags(addresses, wire.recv(2048), ports)
        if flags is not None:
            return flags
    return None


def _flags(addresses: _Addresses, frame: bytes, ports: tuple[int, int]) -> int | None:
    """The TCP flags of an answer to our SYN; None of anything else."""
    if struct.unpack_from(">H", frame, 12)[0] != addresses.ether_type:
        return None
    packet = frame[14:]
    header = (packet[0] & 0xF) * 4 if addresses.family == socket.AF_INET else 40
    protocol = packet[9 if addresses.family == socket.AF_INET else 6]
    if protocol != socket.IPPROTO_TCP or len(packet) < header + _TCP.size:
        return None
    source, destination, _, _, _, flags, *_ = _TCP.unpack_from(packet, header)
    return int(flags) if (destination, source) == ports else None


def _frame(
    addresses: _Addresses, target: bytes, ports: tuple[int, int], flags: int, sequence: int
) -> bytes:
    ends = addresses.there + target
    pseudo = ends + struct.pack(">II", _TCP.size, socket.IPPROTO_TCP)
    bare = _TCP.pack(*ports, sequence, 0, _TCP.size << 2, flags, 65535, 0, 0)
    tcp = bare[:16] + struct.pack(">H", _checksum(pseudo + bare)) + bare[18:]
    if addresses.family == socket.AF_INET:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0)
        total = _checksum(head + ends)
        header = head[:10] + struct.pack(">H", total) + ends
    else:
        header = struct.pack(">IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, 64) + ends
    return _HERE_MAC + _THERE_MAC + struct.pack(">H", addresses.ether_type) + header + tcp


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of octets."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextlib.contextmanager
def _interfaces(addresses: _Addresses) -> Iterator[str]:
    """Put up the pair, yield the far end's name, and take it down again."""
    near, far = f"sidecar-a{os.getpid()}"[:15], f"sidecar-b{os.getpid()}"[:15]
    _request(_NEWLINK, _veth(near, far), "a pair of virtual interfaces (veth)")
    index = socket.if_nametoindex(near)
    try:
        for each in (index, socket.if_nametoindex(far)):
            up = _IFINFO.pack(socket.AF_UNSPEC, 0, each, _IFF_UP, _IFF_UP)
            netlink.transact(NETLINK_ROUTE, [Message(_NEWLINK, NLM_F_ACK, up, "an interface")])
        family = addresses.family
        flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
        address = _IFADDR.pack(family, addresses.prefix_length, flags, 0, index)
        address += attribute(_IFA_LOCAL, addresses.here) + attribute(_IFA_ADDRESS, addresses.here)
        _request(_NEWADDR, address, "an address")
        neighbour = _NEIGHBOUR.pack(family, index, _NUD_PERMANENT, 0, 0)
        neighbour += attribute(_NDA_DST, addresses.there) + attribute(_NDA_LLADDR, _THERE_MAC)
        _request(_NEWNEIGH, neighbour, "a neighbour")
        yield far
    finally:
        gone = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0)
        netlink.transact(NETLINK_ROUTE, [Message(_DELLINK, NLM_F_ACK, gone, "an interface")])


def _veth(near: str, far: str) -> bytes:
    header = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    peer = header + text(_IFLA_IFNAME, far) + attribute(_IFLA_ADDRESS, _THERE_MAC)
    data = nested(_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "veth"), data)
    return header + text(_IFLA_IFNAME, near) + attribute(_IFLA_ADDRESS, _HERE_MAC) + info


def _request(kind: int, body: bytes, subject: str) -> None:
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    netlink.transact(NETLINK_ROUTE, [Message(kind, flags, body, subject)])
