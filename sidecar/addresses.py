"""Which texts are host names, IP addresses, ports and authorities, and in what one form.

The only door by which text from outside becomes something that is judged or dialled.
One canonical form each: host names lower-case, without the root's dot; IPv4 dotted
decimal; IPv6 as RFC 5952; IPv4-mapped IPv6 (RFC 4291 §2.5.5.2) unwrapped to IPv4; no
zone identifiers.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NewType

import msgspec

from sidecar.errors import AddressError

__all__ = [
    "Authority",
    "HostName",
    "IPAddress",
    "SocketAddress",
    "pack",
    "parse_authority",
    "parse_host",
    "parse_ip",
    "parse_port",
    "unwrap_mapped",
]

IPAddress = IPv4Address | IPv6Address

# A name that parse_host has found well-formed, in its canonical form. At run time it
# is a str: `isinstance(host, str)` tells it from an address.
HostName = NewType("HostName", str)

_MAPPED = "::ffff:"
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
_PORT_DIGITS = 5
_PORT_MAX = 65535

# Octets of a name without the root's dot (RFC 1035 §2.3.4: 255 on the wire).
_NAME_MAX = 253
# RFC 5890 §2.3.1: letters, digits, hyphens, none at a label's ends; underscores as
# well, for service names (RFC 8552) and hosts that have them against all rules.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
# What inet_aton(3) and the WHATWG URL standard ("ends in a number") take for IPv4.
_NUMERIC_END = re.compile(r"(?:\A|\.)(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?\Z", re.ASCII)
_DIGITS = frozenset("0123456789")
_FOREIGN = re.compile(r"[^A-Za-z0-9_.-]", re.ASCII)


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


def parse_host(text: str | bytes) -> HostName | IPAddress:
    """Read the host that a peer or a configuration names.

    Args:
        text: A host name or an IP literal, IPv6 with or without brackets; bytes as
            they came over the wire. One trailing dot after a name is dropped.

    Returns:
        The name in lower case, or the address; an IPv4-mapped one as IPv4.

    Raises:
        AddressError: It is neither. Refused is whatever two programs could read
            differently: a byte other than ASCII letters, digits, hyphen, underscore
            and dot; an empty or over-long label or name; a name that ends in a
            number, which C libraries take for IPv4 (inet_aton(3)); brackets round
            anything but IPv6; zone identifiers; names that are not in ASCII.
    """
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    name = text.removesuffix(".")
    # A last label that starts with a digit may still be a name: example.3com.
    if (
        len(name) <= _NAME_MAX
        and _NAME.fullmatch(name)
        and not (name[name.rfind(".") + 1] in _DIGITS and _NUMERIC_END.search(name))
    ):
        return HostName(name.lower())
    if text.startswith("[") and text.endswith("]") and ":" in text:
        return _parse_in_brackets(text)
    try:
        return parse_ip(text)
    except AddressError:
        raise AddressError(text, _fault_of_host(text)) from None


def _parse_in_brackets(text: str) -> IPAddress:
    try:
        return parse_ip(text[1:-1])
    except AddressError as error:
        raise AddressError(text, _fault_of_host(text[1:-1]) or error.problem) from None


def _fault_of_host(text: str) -> str:
    """Say why a text is no host; the first fault that applies, in fixed words."""
    if not text:
        return "no host"
    if not text.isascii():
        return "not in ASCII; write an international name in its A-label form (xn--…)"
    if "%" in text and ":" in text:
        return "zone identifiers are not accepted"
    if "[" in text or "]" in text:
        return "brackets belong only round IPv6 addresses"
    if text.count(":") > 1:
        return "not an IP address (write it as 192.0.2.1 or 2001:db8::1)"
    if _FOREIGN.search(text):
        return "a character that no host has (letters, digits, hyphens, underscores and dots)"
    if _NUMERIC_END.search(text):
        return "ends in a number but is not an IPv4 address (write it as 192.0.2.1)"
    return _fault_of_labels(text)


def _fault_of_labels(text: str) -> str:
    labels = text.removesuffix(".").split(".")
    if "" in labels:
        return "an empty label (two dots in a row, or one at the start)"
    if len(text.removesuffix(".")) > _NAME_MAX:
        return f"a name longer than {_NAME_MAX} characters"
    if any(label.startswith("-") or label.endswith("-") for label in labels):
        return "a label that starts or ends with a hyphen"
    return "a label longer than 63 characters"


def pack(host: str) -> bytes:
    """Turn the canonical text of an address into 4 or 16 octets, network order.

    Args:
        host: As `SocketAddress.host` has it.

    Raises:
        AddressError: Text that is no address.
    """
    try:
        if ":" not in host:
            return socket.inet_pton(socket.AF_INET, host)
        packed = socket.inet_pton(socket.AF_INET6, host)
    except (OSError, ValueError):
        raise AddressError(
            host, "not an IP address (write it as 192.0.2.1 or 2001:db8::1)"
        ) from None
    return packed[12:] if packed.startswith(_MAPPED_PREFIX) else packed


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


class Authority(msgspec.Struct, frozen=True):
    """A host and a port, as in CONNECT, Host and what people type (RFC 3986 §3.2).

    Attributes:
        host: A name, or an address.
        port: 1 to 65535.
    """

    host: HostName | IPAddress
    port: int

    def __str__(self) -> str:
        bracketed = isinstance(self.host, IPv6Address)
        return f"[{self.host}]:{self.port}" if bracketed else f"{self.host}:{self.port}"


def parse_authority(text: str | bytes, default_port: int | None = None) -> Authority:
    """Read ``host:port``: ``example.org:443``, ``192.0.2.1:80``, ``[2001:db8::1]:80``.

    Args:
        text: The authority, without scheme, user information and path; bytes as they
            came over the wire.
        default_port: The port where the text has none; None if it must have one.

    Raises:
        AddressError: Not in that form, or the host or port is none.
    """
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    host, colon, port = text, "", ""
    if not text.endswith("]"):
        host, colon, port = text.rpartition(":")
        if not colon:
            host = text
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        problem = "an IPv6 address with a port needs brackets: [2001:db8::1]:80"
        raise AddressError(text, problem)
    if not colon and default_port is None:
        raise AddressError(text, "no port (write example.org:443 or [2001:db8::1]:443)")
    number = parse_port(port) if colon else default_port
    assert number is not None  # noqa: S101 - one of the two is there
    return Authority(parse_host(host), number)


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
