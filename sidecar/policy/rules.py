"""What a rule's text means: ``HOST[:PORTS]``.

example.org             this name
*.example.org           every name below it, at any depth; not itself
.example.org            both
192.0.2.1  10.0.0.0/8   an address, a network
2001:db8::/32           likewise; in brackets where ports follow: [2001:db8::/32]:443
private                 a class of addresses (`sidecar.policy.ranges`)
*                       everything
…:443  …:80,443,8000-8999   only these ports
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple

from sidecar.addresses import parse_host, parse_ip, parse_port
from sidecar.errors import AddressError
from sidecar.policy.ranges import AddressClass

__all__ = [
    "ALL_PORTS",
    "HostKind",
    "IPNetwork",
    "NameRule",
    "PortRange",
    "Rule",
    "parse_name_rule",
    "parse_rule",
]

IPNetwork = IPv4Network | IPv6Network

_CLASSES = {kind.value: kind for kind in AddressClass}
# What people paste; of others they know the port.
_PORT_OF_SCHEME = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ssh": 22, "git": 9418}
_MAPPED = IPv6Network("::ffff:0:0/96")


class HostKind(Enum):
    """What the part before the ports names."""

    ANY = "any"
    NAME = "name"
    BELOW = "below"  # *.x
    DOMAIN = "domain"  # .x
    NETWORK = "network"
    CLASS = "class"


class PortRange(NamedTuple):
    """Ports from first to last, both included."""

    first: int
    last: int


ALL_PORTS = PortRange(0, 65535)


class Rule:
    """One rule, and where it stands. A value: never changed.

    Not a dataclass: `msgspec` would decode that from a table, and a rule is a string.

    Args:
        text: As it was written.
        kind: What its host part names.
        host: That name (canonical, without the wildcard), network or class; None
            for everything.
        ports: At least one range.
        place: ``policy.toml:12``, or the flag.

    Attributes:
        is_for_names: Whether it matches by the name, rather than by the address.
    """

    __slots__ = ("host", "is_for_names", "kind", "place", "ports", "text")

    def __init__(
        self,
        text: str,
        kind: HostKind,
        host: str | IPNetwork | AddressClass | None,
        ports: tuple[PortRange, ...],
        place: str,
    ) -> None:
        self.text = text
        self.kind = kind
        self.host = host
        self.ports = ports
        self.place = place
        self.is_for_names = isinstance(host, str)

    def match(self, port: int) -> Rule | None:
        """Return itself if it is for this port."""
        for first, last in self.ports:
            if first <= port <= last:
                return self
        return None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule):
            return NotImplemented
        return (self.text, self.place) == (other.text, other.place)

    def __hash__(self) -> int:
        return hash((self.text, self.place))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.text!r} {self.place}>"

    def __str__(self) -> str:
        return self.text


class NameRule(Rule):
    """A rule for names, on all ports (``private_names``)."""

    __slots__ = ()


def parse_rule(text: str, place: str = "") -> Rule:
    """Read a rule.

    Args:
        text: ``HOST[:PORTS]``.
        place: Where it stands.

    Raises:
        AddressError: It is none; the problem says what is accepted instead.
    """
    if "://" in text:
        raise AddressError(text, f"a URL; write {_instead_of_url(text)}")
    host, ports = _split(text)
    try:
        kind, value = _parse_pattern(host)
        ranges = (ALL_PORTS,) if ports is None else _parse_ports(ports)
    except AddressError as error:
        raise AddressError(text, error.problem) from None
    return Rule(text, kind, value, ranges, place)


def parse_name_rule(text: str, place: str = "") -> NameRule:
    """Read the pattern of a name: ``example.org``, ``*.example.org``, ``.example.org``.

    Raises:
        AddressError: It is none.
    """
    rule = parse_rule(text, place)
    if not rule.is_for_names or rule.ports != (ALL_PORTS,):
        raise AddressError(text, "expected a name alone, like db.example, *.example or .example")
    return NameRule(text, rule.kind, rule.host, rule.ports, place)


def _instead_of_url(text: str) -> str:
    """Name the rule that is for the server of a URL (RFC 3986 §3)."""
    scheme, _, rest = text.partition("://")
    server = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    if re.search(":[0-9]*$", server.rpartition("]")[2]) is None:
        server = f"{server}:{_PORT_OF_SCHEME.get(scheme.lower(), 'PORT')}"
    try:
        parse_rule(server.replace(":PORT", ""))
    except AddressError:
        return "HOST:PORT"
    return server


def _split(text: str) -> tuple[str, str | None]:
    """Part the host from the ports; None if there are none."""
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise AddressError(text, "expected [IPV6]:PORTS, like [2001:db8::/32]:443")
        if ":" not in inside:
            raise AddressError(text, "brackets belong only round IPv6 addresses")
        return inside, rest[1:] if rest else None
    if text.count(":") > 1:
        return text, None
    host, colon, ports = text.partition(":")
    return host, ports if colon else None


def _parse_pattern(
    text: str,
) -> tuple[HostKind, str | IPNetwork | AddressClass | None]:
    if text == "*":
        return HostKind.ANY, None
    if text in _CLASSES:
        return HostKind.CLASS, _CLASSES[text]
    if "*" in text.removeprefix("*."):
        raise AddressError(text, "a * stands alone, or for whole labels at the start: *.example")
    if text.startswith("*."):
        return HostKind.BELOW, _parse_name(text, text[2:])
    if text.startswith("."):
        return HostKind.DOMAIN, _parse_name(text, text[1:])
    if "/" in text:
        return HostKind.NETWORK, _parse_network(text)
    try:
        host = parse_host(text)
    except AddressError as error:
        if text.count(":") > 1:
            problem = "not an IPv6 address; with ports it needs brackets: [2001:db8::1]:443"
            raise AddressError(text, problem) from None
        raise AddressError(text, error.problem) from None
    if isinstance(host, str):
        return HostKind.NAME, host
    return HostKind.NETWORK, _host_network(host)


def _host_network(address: IPv4Address | IPv6Address) -> IPNetwork:
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def _parse_name(text: str, name: str) -> str:
    host = parse_host(name)
    if not isinstance(host, str):
        raise AddressError(text, "an address has no names below it; a network is 10.0.0.0/8")
    return host


def _parse_network(text: str) -> IPNetwork:
    address, _, length = text.partition("/")
    problem = "not a network (write it as 10.0.0.0/8 or 2001:db8::/32)"
    if not (length.isascii() and length.isdigit() and str(int(length)) == length):
        raise AddressError(text, problem)
    parse_ip(address)
    try:
        network = ip_network(text)
    except ValueError:
        try:
            wider = ip_network(text, strict=False)
        except ValueError:
            raise AddressError(text, problem) from None
        raise AddressError(text, f"bits set behind the prefix; did you mean {wider}?") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        # What is dialled never is a mapped address: it is unwrapped at the door.
        mapped = network.network_address.ipv4_mapped
        return IPv4Network((int(mapped or 0), network.prefixlen - _MAPPED.prefixlen))
    return network


@lru_cache(maxsize=1024)
def _parse_ports(text: str) -> tuple[PortRange, ...]:
    ranges = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            low = parse_port(first)
            high = parse_port(last) if dash else low
        except AddressError:
            raise AddressError(text, _PORTS) from None
        if high < low:
            raise AddressError(text, _PORTS)
        ranges.append(PortRange(low, high))
    return tuple(ranges)


_PORTS = "not ports (write numbers from 1 to 65535: 443, or 80,443,8000-8999)"
