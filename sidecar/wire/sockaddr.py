"""What a kernel sockaddr says: an address family, an IP address, a port."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

__all__ = ["SOCKADDR_IN6_SIZE", "SOCKADDR_IN_SIZE", "decode_sockaddr_in", "decode_sockaddr_in6"]

# struct sockaddr_in and struct sockaddr_in6, linux/in.h and linux/in6.h. The
# family is in host byte order, the port in network byte order; hence two formats.
SOCKADDR_IN_SIZE = 16
SOCKADDR_IN6_SIZE = 28

_AF_INET = 2
_AF_INET6 = 10
_family = struct.Struct("=H")
_in = struct.Struct("!2xH4s8x")
_in6 = struct.Struct("!2xHI16s4x")


def decode_sockaddr_in(data: bytes) -> tuple[IPv4Address, int]:
    """Read a struct sockaddr_in (linux/in.h).

    Args:
        data: 16 bytes.

    Returns:
        The address and the port.

    Raises:
        ValueError: Wrong length or family.
    """
    if len(data) != SOCKADDR_IN_SIZE or _family.unpack_from(data)[0] != _AF_INET:
        raise ValueError(f"not a struct sockaddr_in: {data.hex()}")
    port, host = _in.unpack(data)
    return IPv4Address(host), port


def decode_sockaddr_in6(data: bytes) -> tuple[IPv6Address, int]:
    """Read a struct sockaddr_in6 (linux/in6.h); flow label and scope are dropped.

    Args:
        data: 28 bytes.

    Returns:
        The address and the port.

    Raises:
        ValueError: Wrong length or family.
    """
    if len(data) != SOCKADDR_IN6_SIZE or _family.unpack_from(data)[0] != _AF_INET6:
        raise ValueError(f"not a struct sockaddr_in6: {data.hex()}")
    port, _flow_label, host = _in6.unpack(data)
    return IPv6Address(host), port
