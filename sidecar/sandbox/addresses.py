"""Which addresses and ports the sandbox's network namespace has for its own.

Everything else is intercepted, wherever it leads outside.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

__all__ = [
    "DNS_PORT",
    "EVERYWHERE",
    "LOOPBACK",
    "OWN",
    "SOURCES",
    "SOURCE_IPV4",
    "SOURCE_IPV6",
    "SOURCE_IPV6_UNIQUE_LOCAL",
    "TPROXY_PORT",
]

# Above the ports that the kernel gives to clients (32768 to 60999, a new namespace's
# default) and that people give to servers: whatever listens inside can't have it.
TPROXY_PORT = 61453
# DNS is asked at this port of whatever address, so that is where the server listens.
DNS_PORT = 53

# What programs inside connect from. Addresses for documentation (RFC 5737, RFC 3849),
# which are no server's; of lo, but not loopback addresses, for getaddrinfo's
# AI_ADDRCONFIG asks whether there are others.
SOURCE_IPV4 = IPv4Address("192.0.2.1")
SOURCE_IPV6 = IPv6Address("2001:db8::5:1dec:a2")
# In its place where the host has no global IPv6 address: by RFC 6724 it is no source
# of choice for global destinations, so that programs try IPv4 first.
SOURCE_IPV6_UNIQUE_LOCAL = IPv6Address("fd5d:ec0a:2a2::1")

SOURCES = (SOURCE_IPV4, SOURCE_IPV6, SOURCE_IPV6_UNIQUE_LOCAL)

OWN: tuple[IPv4Network | IPv6Network, ...] = (
    IPv4Network("127.0.0.0/8"),
    IPv4Network(SOURCE_IPV4),
    IPv6Network("::1"),
    IPv6Network(SOURCE_IPV6),
    IPv6Network(SOURCE_IPV6_UNIQUE_LOCAL),
)
"""Networks whose packets stay between the programs inside."""

LOOPBACK = ("127.0.0.1", "::1")
"""What programs mean by localhost, in the order in which they try."""

EVERYWHERE = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
"""Every address is the namespace's own (AnyIP), so that nothing needs a way out."""
