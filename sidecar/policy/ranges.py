"""Which class an IP address is of, and which addresses hide inside it.

Our own table, after the IANA registries (2025-10):

- iana-ipv4-special-registry (RFC 6890) and iana-ipv6-special-registry
- ipv6-address-space: only 2000::/3 is assigned as global unicast

Python's `is_global` says yes to NAT64, 6to4, compatible and site-local addresses,
whatever is inside. Where the registries call a part of a reserved block reachable
(192.0.0.9, 2001:1::1 and the like: anycast services that are found by routers, not by
programs) this table is stricter and leaves the whole block reserved.

An IPv6 address that stands for an IPv4 one is never of a better class than that.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import Enum
from functools import cache
from ipaddress import ip_network
from typing import TYPE_CHECKING

from sidecar.addresses import pack

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

__all__ = ["AddressClass", "classify", "common_class", "deny_classes", "embedded"]


class AddressClass(Enum):
    """What kind of place an address is; each value is a word of the rule language."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    METADATA = "metadata"
    MULTICAST = "multicast"
    RESERVED = "reserved"


# A narrower network stands inside a wider one; what none names is public in IPv4 and
# reserved in IPv6.
_RANGES = {
    AddressClass.PUBLIC: ("2000::/3",),
    AddressClass.PRIVATE: (
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # shared address space, RFC 6598
        "fc00::/7",  # unique local, RFC 4193
        "fec0::/10",  # site-local, RFC 3879
        "64:ff9b:1::/48",  # local-use NAT64, RFC 8215
    ),
    AddressClass.LOOPBACK: (
        "127.0.0.0/8",
        "::1/128",
        # Linux connects both to itself.
        "0.0.0.0/32",
        "::/128",
    ),
    AddressClass.LINK_LOCAL: ("169.254.0.0/16", "fe80::/10"),
    AddressClass.MULTICAST: ("224.0.0.0/4", "ff00::/8"),
    AddressClass.RESERVED: (
        "0.0.0.0/8",  # RFC 791 §3.2
        "192.0.0.0/24",  # protocol assignments, RFC 6890
        "192.0.2.0/24",  # documentation, RFC 5737
        "198.51.100.0/24",
        "203.0.113.0/24",
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "198.18.0.0/15",  # benchmarks, RFC 2544
        "240.0.0.0/4",  # RFC 1112, and the broadcast address
        "::/0",
        "2001::/23",  # protocol assignments, RFC 2928
        "2001:db8::/32",  # documentation, RFC 3849
        "3fff::/20",  # documentation, RFC 9637
    ),
    # Where clouds keep what a program may do, by plain HTTP.
    AddressClass.METADATA: (
        "169.254.169.254/32",  # AWS, Google, Azure, OpenStack, DigitalOcean, Oracle
        "169.254.170.2/32",  # AWS: containers' credentials
        "169.254.170.23/32",  # AWS: pods' credentials
        "fd00:ec2::254/128",  # AWS
        "fd00:ec2::23/128",
        "fd20:ce::254/128",  # Google
        "168.63.129.16/32",  # Azure's wire server: a public address
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle
    ),
}

_NAT64 = pack("64:ff9b::")[:12]  # RFC 6052 §2.1
_NAT64_LOCAL = pack("64:ff9b:1::")[:6]  # RFC 8215
_6TO4 = pack("2002::")[:2]  # RFC 3056
_TEREDO = pack("2001::")[:4]  # RFC 4380 §4
_COMPATIBLE = bytes(12)  # RFC 4291 §2.5.5.1
_TRANSLATED = pack("::ffff:0:0:0")[:12]  # RFC 2765 §2.1
_MAPPED = bytes(10) + b"\xff\xff"
_EMBEDDING = (_NAT64, _NAT64_LOCAL, _6TO4, _TEREDO, _COMPATIBLE, _TRANSLATED, _MAPPED)


def embedded(packed: bytes) -> tuple[bytes, ...]:
    """Find the IPv4 addresses that an IPv6 address stands for.

    Args:
        packed: 4 or 16 octets.

    Returns:
        Four octets each; nothing for IPv4 and for addresses that stand for
        themselves. More than one where a form leaves open which is meant (RFC 6052
        §2.2: local NAT64 prefixes) or names two (Teredo: server and client).
    """
    if not packed.startswith(_EMBEDDING) or len(packed) == _IPV4_OCTETS:
        return ()
    if packed.startswith(_6TO4):
        return (packed[2:6],)
    if packed.startswith(_TEREDO):
        return (packed[4:8], bytes(octet ^ 0xFF for octet in packed[12:]))
    if packed.startswith(_NAT64_LOCAL):
        # As under a /96, a /64, a /56 and a /48 (octet 8 is left out).
        return (
            packed[12:],
            packed[9:13],
            packed[7:8] + packed[9:12],
            packed[6:8] + packed[9:11],
        )
    if packed in (_UNSPECIFIED, _LOOPBACK):
        return ()
    return (packed[12:],)


_IPV4_OCTETS = 4
_UNSPECIFIED = bytes(16)
_LOOPBACK = bytes(15) + b"\x01"


def classify(packed: bytes) -> AddressClass:
    """Say what class an address is of.

    Args:
        packed: 4 or 16 octets.
    """
    own = _lookup(packed)
    if len(packed) == _IPV4_OCTETS:
        return own
    inside = embedded(packed)
    if not inside:
        return own
    classes = {_lookup(each) for each in inside}
    if AddressClass.METADATA in classes:
        return AddressClass.METADATA
    if packed.startswith(_NAT64_LOCAL):
        # What is inside depends on a prefix length that can't be seen.
        return own
    classes.discard(AddressClass.PUBLIC)
    if classes:
        return min(classes, key=_SEVERITY.index)
    # Compatible and translated addresses lead nowhere, whatever they hold.
    alive = packed.startswith((_NAT64, _6TO4, _TEREDO, _MAPPED))
    return AddressClass.PUBLIC if alive else AddressClass.RESERVED


# Which class counts where an address holds several.
_SEVERITY = (
    AddressClass.METADATA,
    AddressClass.LOOPBACK,
    AddressClass.LINK_LOCAL,
    AddressClass.PRIVATE,
    AddressClass.MULTICAST,
    AddressClass.RESERVED,
    AddressClass.PUBLIC,
)


def deny_classes(packed: bytes) -> tuple[AddressClass, ...]:
    """List the classes by which a deny rule catches an address.

    More than the one by which an allow rule does: also that of the range round a
    metadata address, and those of all addresses inside. What is only embedded in
    such an address can't be public to it.
    """
    classes = {classify(packed), _lookup(packed, metadata=False)}
    for each in embedded(packed):
        classes.add(_lookup(each))
        classes.add(_lookup(each, metadata=False))
    return tuple(classes)


def common_class(network: IPv4Network | IPv6Network) -> AddressClass | None:
    """Say what class all addresses of a network are of; None if of several.

    Also None for networks of addresses with others inside.
    """
    first, last = network.network_address.packed, network.broadcast_address.packed
    starts, classes = _table(len(first), metadata=True)
    if bisect_right(starts, first) != bisect_right(starts, last):
        return None
    return None if embedded(first) or embedded(last) else classes[bisect_right(starts, first) - 1]


def _lookup(packed: bytes, *, metadata: bool = True) -> AddressClass:
    """The class of the narrowest range that holds the address as it is."""
    starts, classes = _table(len(packed), metadata=metadata)
    return classes[bisect_right(starts, packed) - 1]


@cache
def _table(octets: int, *, metadata: bool) -> tuple[list[bytes], list[AddressClass]]:
    """Flatten the ranges into stretches: where each starts, and its class."""
    networks = [
        (int(network.network_address), int(network.broadcast_address), network.prefixlen, kind)
        for kind, texts in _RANGES.items()
        if metadata or kind is not AddressClass.METADATA
        for network in map(ip_network, texts)
        if network.max_prefixlen == octets * 8
    ]
    edges = {0} | {first for first, *_ in networks} | {last + 1 for _, last, *_ in networks}
    starts = sorted(edge for edge in edges if edge < 1 << octets * 8)
    rest = AddressClass.PUBLIC if octets == _IPV4_OCTETS else AddressClass.RESERVED
    classes = [
        max(
            ((length, kind) for first, last, length, kind in networks if first <= start <= last),
            key=lambda found: found[0],
            default=(0, rest),
        )[1]
        for start in starts
    ]
    return [start.to_bytes(octets, "big") for start in starts], classes
