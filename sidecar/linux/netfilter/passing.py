"""Which packets pass an interception untouched: the rules that every chain begins with."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from sidecar.linux.netfilter.model import PortRange, merge_ports
from sidecar.linux.netfilter.vocabulary import (
    OWNER_COMMENTS,
    Destination,
    Family,
    LocalAddress,
    LoopbackInterface,
    Mark,
    Owner,
    OwnerKind,
    Ports,
    Return,
    Rule,
    Side,
    Tcp,
)

if TYPE_CHECKING:
    from sidecar.linux.netfilter.model import IPNetwork, RuleSet

__all__ = [
    "RETURN",
    "destination_filter",
    "forwarded_entry",
    "inbound_filter",
    "local_filter",
    "singles",
]

RETURN = (Return(),)
_LOOPBACK_4 = (IPv4Network("127.0.0.0/8"),)
_LOOPBACK_6 = (IPv6Network("::1/128"),)


def local_filter(rules: RuleSet) -> tuple[Rule, ...]:
    """What passes of the packets that this host sends."""
    passing = [_not_tcp(), Rule((Mark(rules.exclude_mark),), RETURN, "sidecar's own")]
    if rules.exclude_uids:
        owner = Owner(OwnerKind.USER, rules.exclude_uids)
        passing.append(Rule((owner,), RETURN, OWNER_COMMENTS[0]))
    if rules.exclude_gids:
        owner = Owner(OwnerKind.GROUP, rules.exclude_gids)
        passing.append(Rule((owner,), RETURN, OWNER_COMMENTS[1]))
    passing += (
        Rule((Destination(networks),), RETURN, "loopback")
        for networks in (_LOOPBACK_4, _LOOPBACK_6)
    )
    return (*passing, *destination_filter(rules))


def destination_filter(rules: RuleSet) -> tuple[Rule, ...]:
    """What passes by its destination's address and port."""
    passing = []
    for version in (4, 6):
        networks = _of_family(rules.exclude_cidrs, version)
        if networks:
            passing.append(Rule((_within(networks),), RETURN, "excluded address"))
    if rules.include_cidrs:
        for version in (4, 6):
            networks = _of_family(rules.include_cidrs, version)
            if not networks:
                passing.append(Rule((Family(version),), RETURN, "address not included"))
            elif networks[0].prefixlen > 0:
                outside = Destination(networks, negated=True)
                passing.append(Rule((outside,), RETURN, "address not included"))
    if rules.exclude_ports:
        ports = Ports(Side.DESTINATION, rules.exclude_ports)
        passing.append(Rule((ports,), RETURN, "excluded port"))
    if rules.include_ports:
        ports = Ports(Side.DESTINATION, rules.include_ports, negated=True)
        passing.append(Rule((ports,), RETURN, "port not included"))
    return tuple(passing)


def inbound_filter(rules: RuleSet) -> tuple[Rule, ...]:
    """What passes of the packets that arrive here for this host."""
    own_ports = Ports(Side.DESTINATION, singles(rules.ports))
    passing = [
        _not_tcp(),
        _from_here(),
        Rule((LocalAddress(Side.DESTINATION, negated=True),), RETURN, "for another host"),
        # The proxy sees for itself that nobody was intercepted, and refuses.
        Rule((own_ports,), RETURN, "dials the proxy itself"),
    ]
    if rules.exclude_inbound_ports:
        ports = Ports(Side.DESTINATION, rules.exclude_inbound_ports)
        passing.append(Rule((ports,), RETURN, "excluded port"))
    return tuple(passing)


def forwarded_entry() -> tuple[Rule, ...]:
    """What passes of the packets that arrive here, whatever is forwarded."""
    here = Rule((LocalAddress(Side.DESTINATION),), RETURN, "for this host")
    return (_not_tcp(), _from_here(), here)


def _not_tcp() -> Rule:
    return Rule((Tcp(negated=True),), RETURN, "not TCP")


def _from_here() -> Rule:
    return Rule((LoopbackInterface(Side.SOURCE),), RETURN, "from this host")


def _of_family(networks: tuple[IPNetwork, ...], version: int) -> tuple[IPNetwork, ...]:
    return tuple(each for each in networks if each.version == version)


def _within(networks: tuple[IPNetwork, ...]) -> Destination | Family:
    # nft has no spelling of its own for /0 in a match: it means the family.
    whole = networks[0].prefixlen == 0
    return Family(networks[0].version) if whole else Destination(networks)


def singles(ports: tuple[int, ...]) -> tuple[PortRange, ...]:
    """Ports as ranges of one."""
    return merge_ports(tuple(PortRange(port, port) for port in ports))
