"""What is to be intercepted: one rule set, as typed values, free of any tool's syntax.

Constants here are names that other people's tools must not collide with; they were
chosen clear of Istio's (mark 1337 in table 133) and Istio ambient's (0x539/0xfff).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from sidecar.errors import RulesError
from sidecar.linux import OWN_MARK, TPROXY_MARK

__all__ = [
    "INBOUND_PORT",
    "OUTBOUND_PORT",
    "OWN_MARK",
    "TABLE",
    "TPROXY_MARK",
    "TPROXY_REVERSED_MARK",
    "IPNetwork",
    "Mode",
    "PortRange",
    "RuleSet",
    "merge_ports",
]

IPNetwork = IPv4Network | IPv6Network

TABLE = "sidecar"
"""The one table, of family inet, that everything lives in."""

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006

TPROXY_REVERSED_MARK = 0x53B
"""Mark of connections that conntrack knows the wrong way round: it had forgotten them
(a flush), and then the proxy spoke first."""

_ID_MAX = 0xFFFFFFFE
_MARK_MAX = 0xFFFFFFFF
_PORT_MAX = 65535


class Mode(Enum):
    """How the kernel hands a connection over."""

    REDIRECT = "redirect"
    """NAT to a local port; the original destination is asked of conntrack."""
    TPROXY = "tproxy"
    """No NAT; the accepted socket's own address is the original destination."""


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Consecutive TCP ports, both ends included.

    Raises:
        RulesError: Not 1 <= first <= last <= 65535.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= _PORT_MAX:
            raise RulesError(f"{self.first}-{self.last} is no range of ports 1 to 65535")

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def merge_ports(ranges: tuple[PortRange, ...]) -> tuple[PortRange, ...]:
    """Sort ranges and join those that touch, so that equal sets are equal values."""
    merged: list[PortRange] = []
    for each in sorted(ranges):
        if merged and each.first <= merged[-1].last + 1:
            last = max(merged[-1].last, each.last)
            merged[-1] = PortRange(merged[-1].first, last)
        else:
            merged.append(each)
    return tuple(merged)


def _merge_networks(networks: tuple[IPNetwork, ...]) -> tuple[IPNetwork, ...]:
    four = [each for each in networks if isinstance(each, IPv4Network)]
    six = [each for each in networks if isinstance(each, IPv6Network)]
    return (*collapse_addresses(four), *collapse_addresses(six))


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """Which connections go to the proxy, and which never.

    Loopback destinations are never intercepted, TCP is all that ever is. Sets are
    kept sorted and merged, so two rule sets that mean the same are equal.

    Attributes:
        mode: How connections are handed over.
        outbound_port: Where the connections that this host's programs open go;
            None leaves them alone.
        inbound_port: Where the connections that come in from other hosts go; None
            leaves them alone.
        exclude_uids: Users whose outbound connections pass.
        exclude_gids: Groups whose outbound connections pass.
        exclude_mark: The mark of packets that pass; the proxy's own.
        include_cidrs: Outbound destinations to intercept; none given means all.
            Given for one family only, the other family passes.
        exclude_cidrs: Outbound destinations that pass; beats include_cidrs.
        include_ports: Outbound ports to intercept; none given means all.
        exclude_ports: Outbound ports that pass; beats include_ports.
        exclude_inbound_ports: Inbound ports that pass.
        syn_only: Take only connections that begin after the rules are in place.
            Without it, connections already alive break, but an intercepted one
            outlives a flush of conntrack.
        forwarded: Intercept, as outbound, what this host routes for others too.

    Raises:
        RulesError: Values that exclude each other.
    """

    mode: Mode = Mode.REDIRECT
    outbound_port: int | None = OUTBOUND_PORT
    inbound_port: int | None = INBOUND_PORT
    exclude_uids: tuple[int, ...] = ()
    exclude_gids: tuple[int, ...] = ()
    exclude_mark: int = OWN_MARK
    include_cidrs: tuple[IPNetwork, ...] = ()
    exclude_cidrs: tuple[IPNetwork, ...] = ()
    include_ports: tuple[PortRange, ...] = ()
    exclude_ports: tuple[PortRange, ...] = ()
    exclude_inbound_ports: tuple[PortRange, ...] = ()
    syn_only: bool = False
    forwarded: bool = False

    def __post_init__(self) -> None:
        self._refuse_contradictions()
        canonical = {
            "exclude_uids": tuple(sorted(set(self.exclude_uids))),
            "exclude_gids": tuple(sorted(set(self.exclude_gids))),
            "include_cidrs": _merge_networks(self.include_cidrs),
            "exclude_cidrs": _merge_networks(self.exclude_cidrs),
            "include_ports": merge_ports(self.include_ports),
            "exclude_ports": merge_ports(self.exclude_ports),
            "exclude_inbound_ports": merge_ports(self.exclude_inbound_ports),
        }
        for name, value in canonical.items():
            object.__setattr__(self, name, value)

    def _refuse_contradictions(self) -> None:
        if self.outbound_port is None and self.inbound_port is None:
            raise RulesError("neither outbound nor inbound is to be intercepted: no rules to make")
        for port in self.ports:
            if not 1 <= port <= _PORT_MAX:
                raise RulesError(f"{port} is not a port from 1 to 65535")
        if self.outbound_port == self.inbound_port:
            raise RulesError(
                f"outbound and inbound can't share port {self.outbound_port}: give each its own"
            )
        if self.forwarded and self.outbound_port is None:
            raise RulesError("forwarded connections go to the outbound port: give one")
        if not 1 <= self.exclude_mark <= _MARK_MAX:
            raise RulesError(f"mark {self.exclude_mark:#x} is not within 0x1 to 0xffffffff")
        if self.exclude_mark in {TPROXY_MARK, TPROXY_REVERSED_MARK}:
            raise RulesError(f"mark {self.exclude_mark:#x} is one that sidecar uses: take another")
        for number in (*self.exclude_uids, *self.exclude_gids):
            if not 0 <= number <= _ID_MAX:
                raise RulesError(f"{number} is not a user or group number")

    @property
    def ports(self) -> tuple[int, ...]:
        """The proxy's own ports, in ascending order."""
        given = (self.outbound_port, self.inbound_port)
        return tuple(sorted(port for port in given if port is not None))

    @property
    def needs_routing(self) -> bool:
        """Whether a policy-routing rule and a local route belong to the rules."""
        return self.mode is Mode.TPROXY and self.outbound_port is not None
