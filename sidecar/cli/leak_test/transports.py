"""Ways out by TCP and by what is like it, through sockets that anybody may make."""

from __future__ import annotations

import socket
import struct

from sidecar.cli.leak_test.attempts import Attempt, Expected, Outside, converse, say
from sidecar.linux import OWN_MARK
from sidecar.linux.sockopt import set_mark, set_transparent

__all__ = ["ATTEMPTS"]

# linux/in.h, linux/socket.h, linux/tcp.h, asm-generic/socket.h; what Python has no name for.
_IPPROTO_DCCP, _IPPROTO_MPTCP, _IPPROTO_SMC = 33, 262, 256
_SOCK_DCCP = 6
_AF_SMC = 43
_IP_FREEBIND = 15
_TCP_REPAIR, _TCP_FASTOPEN_CONNECT = 19, 30
_MSG_FASTOPEN = 0x20000000
_SOURCE_PORT = 40123
# struct timeval: 0.4 s
_TIMEOUT = struct.pack("@ll", 0, 400_000)
# sidecar.sandbox.addresses.TPROXY_PORT, which is no secret.
_PROXY_PORT = 61453


def _tcp(family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM, protocol)


def _to(outside: Outside) -> tuple[str, int]:
    return outside.ipv4, outside.port


def _plain(outside: Outside) -> str:
    return converse(_tcp(), _to(outside), say(outside))


def _allowed(outside: Outside) -> str:
    # By its name: DNS is a part of it.
    found = socket.getaddrinfo(outside.allowed, outside.port, socket.AF_INET, socket.SOCK_STREAM)
    return converse(_tcp(), (str(found[0][4][0]), outside.port), say(outside))


def _ipv6(outside: Outside) -> str:
    sock = _tcp(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return converse(sock, (outside.ipv6, outside.port), say(outside))


def _mapped(outside: Outside) -> str:
    to = f"::ffff:{outside.ipv4}", outside.port
    return converse(_tcp(socket.AF_INET6), to, say(outside))


def _host(outside: Outside) -> str:
    return converse(_tcp(), (outside.host, outside.port), say(outside))


def _loopback(outside: Outside) -> str:
    return converse(_tcp(), ("127.0.0.1", outside.port), say(outside))


def _unspecified(outside: Outside) -> str:
    # As a destination: this host.
    return converse(_tcp(socket.AF_INET6), ("::", outside.port), say(outside))


def _proxy(outside: Outside) -> str:
    return converse(_tcp(), (outside.ipv4, _PROXY_PORT), say(outside))


def _bound(outside: Outside) -> str:
    sock = _tcp()
    sock.bind(("0.0.0.0", _SOURCE_PORT))  # noqa: S104 - the source
    return converse(sock, _to(outside), say(outside))


def _free_source(outside: Outside) -> str:
    sock = _tcp()
    sock.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
    sock.bind((outside.host, 0))
    return converse(sock, _to(outside), say(outside))


def _transparent(outside: Outside) -> str:
    sock = _tcp()
    set_transparent(sock)
    sock.bind((outside.host, 0))
    return converse(sock, _to(outside), say(outside))


def _marked(outside: Outside) -> str:
    sock = _tcp()
    set_mark(sock, OWN_MARK)
    return converse(sock, _to(outside), say(outside))


def _to_device(outside: Outside) -> str:
    sock = _tcp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    return converse(sock, _to(outside), say(outside))


def _repair(outside: Outside) -> str:
    sock = _tcp()
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    # In repair mode connecting sends nothing: out of it, there is a connection.
    sock.connect(_to(outside))
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
    with sock:
        sock.sendall(say(outside))
    return "established without a handshake"


def _fast_open(outside: Outside) -> str:
    with _tcp() as sock:
        # Not settimeout(): a socket that does not block would say no more than "in progress".
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, _TIMEOUT)
        sock.sendto(say(outside), _MSG_FASTOPEN, _to(outside))
        return "answered" if sock.recv(1) else "closed without an answer"


def _fast_open_connect(outside: Outside) -> str:
    sock = _tcp()
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)
    return converse(sock, _to(outside), say(outside))


def _mptcp(outside: Outside) -> str:
    return converse(_tcp(protocol=_IPPROTO_MPTCP), _to(outside), say(outside))


def _sctp(outside: Outside) -> str:
    return converse(_tcp(protocol=socket.IPPROTO_SCTP), _to(outside), say(outside))


def _dccp(outside: Outside) -> str:
    sock = socket.socket(socket.AF_INET, _SOCK_DCCP, _IPPROTO_DCCP)
    return converse(sock, _to(outside), say(outside))


def _smc(outside: Outside) -> str:
    return converse(_tcp(protocol=_IPPROTO_SMC), _to(outside), say(outside))


def _smc_family(outside: Outside) -> str:
    return converse(_tcp(_AF_SMC), _to(outside), say(outside))


ATTEMPTS = (
    Attempt("allowed", "TCP to a name that the policy allows", _allowed, Expected.ARRIVES),
    Attempt("tcp", "TCP to what it doesn't allow", _plain),
    Attempt("tcp_ipv6", "TCP over IPv6 alone", _ipv6),
    Attempt("tcp_mapped", "TCP to an IPv4-mapped address", _mapped),
    Attempt("tcp_host", "TCP to the host's own address", _host),
    Attempt("tcp_loopback", "TCP to the host's loopback", _loopback),
    Attempt("tcp_unspecified", "TCP to ::", _unspecified),
    Attempt("tcp_proxy", "TCP to the proxy's own port", _proxy, control=False),
    Attempt("tcp_source_port", "TCP from a port of its choice", _bound),
    Attempt("tcp_free_source", "TCP from the host's address (IP_FREEBIND)", _free_source),
    Attempt(
        "tcp_transparent",
        "TCP from the host's address (IP_TRANSPARENT)",
        _transparent,
        Expected.REFUSED,
    ),
    Attempt("tcp_mark", "TCP with sidecar's own mark (SO_MARK)", _marked, Expected.REFUSED),
    Attempt("tcp_device", "TCP bound to a device (SO_BINDTODEVICE)", _to_device),
    Attempt("tcp_repair", "TCP without a handshake (TCP_REPAIR)", _repair, Expected.REFUSED, False),
    Attempt("tcp_fast_open", "TCP Fast Open (MSG_FASTOPEN)", _fast_open),
    Attempt("tcp_fast_open_connect", "TCP Fast Open (TCP_FASTOPEN_CONNECT)", _fast_open_connect),
    Attempt("mptcp", "Multipath TCP", _mptcp),
    Attempt("sctp", "SCTP", _sctp),
    Attempt("dccp", "DCCP", _dccp),
    Attempt("smc", "SMC (IPPROTO_SMC)", _smc),
    Attempt("smc_family", "SMC (AF_SMC)", _smc_family, Expected.REFUSED),
)
