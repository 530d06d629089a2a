"""Which texts are IP addresses, ports and socket addresses, and in what one form.

The only door by which text from outside becomes something that is dialled. One
canonical form each: IPv4 dotted decimal; IPv6 as RFC 5952; IPv4-mapped IPv6
(RFC 4291 §2.5.5.2) unwrapped to IPv4; no zone identifiers.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from sidecar.errors import AddressError

__all__ = ["IPAddress", "SocketAddress", "parse_ip", "parse_port", "unwrap_mapped"]

IPAddress = IPv4Address | IPv6Address

_MAPPED = "::ffff:"
_PORT_DIGITS = 5
_PORT_MAX = 65535


def parse_ip(text: str) -> IPAddress:
    """Read an IP literal, without brackets.

    Args:
        text: Canonical IPv4 or any RFC 4291 spelling of IPv6. Octal, hex, short
            and single-number IPv4 spellings, zone identifiers and non-ASCII
            digits are refused.

    Returns:
        The address; an IPv4-mapped IPv6 address as the IPv4 address it maps.

    Raises:
        AddressError: It is none.
    """
    if not text.isascii() or "%" in text:
        raise AddressError(text, "not an IP address (write it as 192.0.2.1 or 2001:db8::1)")
    try:
        address = ip_address(text)
    except ValueError:
        raise AddressError(
            text, "not an IP address (write it as 192.0.2.1 or 2001:db8::1)"
        ) from None
    return unwrap_mapped(address)


def unwrap_mapped(address: IPAddress) -> IPAddress:
    """Turn ::ffff:a.b.c.d into a.b.c.d and leave every other address as it is."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_port(text: str) -> int:
    """Read a TCP port: one to five ASCII digits, 1 to 65535.

    Raises:
        AddressError: Anything else, signs and white space included.
    """
    if not (0 < len(text) <= _PORT_DIGITS and text.isascii() and text.isdigit()):
        raise AddressError(text, "not a port (write a number from 1 to 65535)")
    port = int(text)
    if not 0 < port <= _PORT_MAX:
        raise AddressError(text, "not a port (write a number from 1 to 65535)")
    return port


class SocketAddress(msgspec.Struct, frozen=True, gc=False):
    """An IP address and a TCP port.

    Attributes:
        host: Canonical text of the address, without brackets.
        port: 0 to 65535; 0 only where the kernel is to choose.
    """

    host: str
    port: int

    @classmethod
    def from_kernel(cls, sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> SocketAddress:
        """Take what accept, getsockname or getpeername gave; unwrap IPv4-mapped."""
        host = sockaddr[0]
        if host.startswith(_MAPPED) and "." in host:
            host = host[len(_MAPPED) :]
        elif "%" in host:
            host = host.partition("%")[0]
        return cls(host, sockaddr[1])

    @classmethod
    def parse(cls, text: str) -> SocketAddress:
        """Read ``192.0.2.1:80`` or ``[2001:db8::1]:80``.

        Raises:
            AddressError: Not in that form, or no IP literal, or no port.
        """
        host, colon, port = text.rpartition(":")
        if not colon:
            raise AddressError(text, "no port (write 192.0.2.1:80 or [2001:db8::1]:80)")
        if host.startswith("[") and host.endswith("]"):
            address = parse_ip(host[1:-1])
            if ":" not in host:
                raise AddressError(text, "brackets belong only round IPv6 addresses")
        elif ":" in host:
            raise AddressError(text, "an IPv6 address with a port needs brackets: [2001:db8::1]:80")
        else:
            address = parse_ip(host)
        return cls(str(address), parse_port(port))

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def ip(self) -> IPAddress:
        """The address as a value of the standard library."""
        return ip_address(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
