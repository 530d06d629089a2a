"""What is placed outside, and what reaches it: listeners, and a look at every packet.

All in the calling process's network namespace, which has no interface but lo, where every
address is local: whatever is sent, wherever to, can be seen here.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

from sidecar.cli.demo.names import answer_to, name_in
from sidecar.linux import pktinfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["ALLOWED_ADDRESS", "ALLOWED_NAME", "NETLINK_PORT", "PORT", "Listeners"]

PORT = 7411
"""Where all but DNS is listened to; nothing that anybody knows."""
NETLINK_PORT = 0x51DECA5

ALLOWED_NAME, ALLOWED_ADDRESS = "allowed.example", "198.51.100.200"
"""What the name server outside knows."""

_DNS_PORT = 53
_QUIC_PORT = 443
_IPPROTO_UDPLITE = 136
# linux/netlink.h
_NETLINK_USERSOCK = 2
# linux/if_ether.h, linux/if_packet.h: lo shows every packet as it goes and as it comes.
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_TCP_FASTOPEN_BACKLOG = 16
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP", 136: "UDP-Lite"}
_IPV6 = 6
_SAID_MAX = 60


class Listeners:
    """Everything that listens outside.

    Args:
        directory: Where the unix socket's path is made.
        abstract: The name of the abstract ones.

    Attributes:
        path: The unix socket's.
        sees_packets: Whether every packet is looked at; not without packet sockets.
        inheritable: One end of a TCP connection to here, for others to inherit.
    """

    def __init__(self, directory: Path, abstract: str) -> None:
        self._sockets: list[tuple[str, socket.socket, Callable[[socket.socket], str]]] = []
        self._connections: list[tuple[str, socket.socket]] = []
        self.path = str(directory / "socket")
        family, everywhere = _family()
        stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
        self._listen("TCP", socket.socket(family, stream), (everywhere, PORT))
        self._listen("DNS over TCP", socket.socket(family, stream), (everywhere, _DNS_PORT))
        for name, port in (("UDP", PORT), ("QUIC", _QUIC_PORT)):
            self._take(name, socket.socket(family, datagram), (everywhere, port))
        dns = socket.socket(family, datagram)
        self._take("DNS", dns, (everywhere, _DNS_PORT))
        pktinfo.receive_destinations(dns)
        self._sockets[-1] = ("DNS", dns, _answer)
        with suppress(OSError):
            lite = socket.socket(family, datagram, _IPPROTO_UDPLITE)
            self._take("UDP-Lite", lite, (everywhere, PORT))
        with suppress(OSError):
            sctp = socket.socket(family, stream, socket.IPPROTO_SCTP)
            self._listen("SCTP", sctp, (everywhere, PORT))
        unix = socket.AF_UNIX
        self._listen("abstract unix", socket.socket(unix, stream), f"\0{abstract}")
        self._take("abstract unix", socket.socket(unix, datagram), f"\0{abstract}-datagram")
        self._listen("unix, by path", socket.socket(unix, stream), self.path)
        netlink = socket.socket(socket.AF_NETLINK, datagram, _NETLINK_USERSOCK)
        self._take("netlink", netlink, (NETLINK_PORT, 0))
        self.inheritable = self._connected()
        # Last: what was needed to make the others is nobody's attempt.
        self._packets = self._open_packets()
        self.sees_packets = self._packets is not None

    def _listen(self, name: str, sock: socket.socket, address: object) -> None:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, _TCP_FASTOPEN_BACKLOG)
        sock.bind(address)  # type: ignore[arg-type]
        sock.listen()
        sock.setblocking(False)
        self._sockets.append((name, sock, self._accept))

    def _take(self, name: str, sock: socket.socket, address: object) -> None:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)  # type: ignore[arg-type]
        sock.setblocking(False)
        self._sockets.append((name, sock, _receive))

    def _connected(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", PORT))
        listener = self._sockets[0][1]
        server, _ = listener.accept()
        server.setblocking(False)
        self._connections.append(("a connection that was left open", server))
        return client

    @staticmethod
    def _open_packets() -> socket.socket | None:
        try:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        except OSError:
            return None
        sock.setblocking(False)
        return sock

    def filenos(self) -> list[int]:
        """What becomes readable when something arrives."""
        found = [sock.fileno() for _, sock, _ in self._sockets]
        found += [sock.fileno() for _, sock in self._connections]
        return found if self._packets is None else [*found, self._packets.fileno()]

    def arrived(self) -> list[str]:
        """What has arrived since the last call, in words."""
        found = []
        for name, sock, take in self._sockets:
            with suppress(BlockingIOError):
                while True:
                    found.append(f"{name}: {take(sock)}")
        for name, sock in self._connections:
            with suppress(OSError):
                data = sock.recv(_SAID_MAX)
                if data:
                    found.append(f"{name}: {data!r}")
        if self._packets is not None:
            with suppress(BlockingIOError):
                while True:
                    data, address = self._packets.recvfrom(128)
                    if address[2] == _PACKET_OUTGOING:
                        found.append(f"packet: {_describe(data)}")
        return found

    @staticmethod
    def _accept(listener: socket.socket) -> str:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(0.2)
            try:
                return repr(connection.recv(_SAID_MAX))
            except OSError:
                return "a connection, and nothing said"

    def close(self) -> None:
        """Close all, and remove the path."""
        for _, sock, _ in self._sockets:
            sock.close()
        for _, sock in self._connections:
            sock.close()
        self.inheritable.close()
        if self._packets is not None:
            self._packets.close()
        os.unlink(self.path)  # noqa: PTH108 - a socket


def _family() -> tuple[socket.AddressFamily, str]:
    """What to listen with: IPv6 serves IPv4 as well, where there is any."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return socket.AF_INET, "0.0.0.0"  # noqa: S104 - in a namespace of our own
    return socket.AF_INET6, "::"


def _receive(sock: socket.socket) -> str:
    return repr(sock.recv(_SAID_MAX))


def _answer(sock: socket.socket) -> str:
    """Take a DNS question and answer it, so that nobody asks again.

    `ALLOWED_NAME` has one IPv4 address; other names are not there.
    """
    question, ancillary, _, peer = sock.recvmsg(512, pktinfo.SPACE)
    answer = answer_to(question, {ALLOWED_NAME: [ip_address(ALLOWED_ADDRESS)]})
    if answer is not None:
        with suppress(OSError):
            # From the address that was asked: every one is this namespace's.
            source = pktinfo.answer_from(pktinfo.destination(ancillary))
            sock.sendmsg([answer], source, 0, peer)
    return repr(name_in(question))


def _describe(packet: bytes) -> str:
    """An IP packet's protocol and destination."""
    if packet and packet[0] >> 4 == _IPV6:
        number, where = packet[6], socket.inet_ntop(socket.AF_INET6, packet[24:40])
    elif len(packet) >= 20:  # noqa: PLR2004 - struct iphdr
        number, where = packet[9], socket.inet_ntoa(packet[16:20])
    else:
        return f"{len(packet)} octets"
    name = _PROTOCOLS.get(number, f"protocol {number}")
    if number in {6, 17, 136} and packet[0] >> 4 != _IPV6:
        offset = (packet[0] & 15) * 4
        port = struct.unpack_from(">H", packet, offset + 2)[0]
        return f"{name} to {where}:{port}"
    return f"{name} to {where}"
