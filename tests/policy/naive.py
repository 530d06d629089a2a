"""Rules, matched one by one and in the plainest way; and strategies that make them."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from sidecar.policy import Rule, parse_rule
from sidecar.policy.ranges import AddressClass, classify, deny_classes, embedded

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ADDRESSES", "HOSTS", "PORTS", "RULES", "matching", "split"]

HOSTS = ["a", "x.a", "y.x.a", "xx.a", "b", "x.b", "c.x.a"]
ADDRESSES = [
    *("10.0.0.1", "10.1.0.1", "11.0.0.1", "8.8.8.8", "127.0.0.1", "169.254.169.254"),
    *("168.63.129.16", "224.0.0.1", "0.0.0.0", "255.255.255.255"),
    *("2606::1", "fd00::1", "::1", "fe80::1", "64:ff9b::a00:1", "2002:808:808::1", "ffff::1"),
]
PORTS = [1, 80, 443, 8080, 65535]

_hosts = st.sampled_from(
    [
        *HOSTS,
        *(f"*.{host}" for host in HOSTS),
        *(f".{host}" for host in HOSTS),
        *("10.0.0.0/8", "10.0.0.0/16", "10.0.0.1", "8.0.0.0/5", "0.0.0.0/0", "255.255.255.255"),
        *("[::/0]", "[2000::/3]", "[2606::1]", "[64:ff9b::/96]", "[ffff::/16]", "[::]"),
        *("*", "public", "private", "loopback", "link-local", "metadata", "multicast", "reserved"),
    ]
)
_ports = st.sampled_from(["", ":80", ":443", ":80,443", ":1-8080", ":443-65535", ":80,80-90,8080"])
RULES = st.lists(st.builds(lambda host, ports: parse_rule(host + ports), _hosts, _ports))


def split(text: str) -> tuple[str, list[range]]:
    """Part a rule's text, known to be sound, into host and ports."""
    if text.startswith("["):
        host, _, ports = text[1:].partition("]")
        ports = ports[1:]
    else:
        host, _, ports = text.partition(":")
    ranges = [part.partition("-") for part in ports.split(",") if part]
    return host, [range(int(a), int(b or a) + 1) for a, _, b in ranges] or [range(65536)]


def matching(
    rules: Iterable[Rule], port: int, host: str | None, address: str | None, *, deny: bool
) -> list[Rule]:
    """List the rules that match."""
    return [rule for rule in rules if _matches(rule.text, port, host, address, deny)]


def _matches(text: str, port: int, host: str | None, address: str | None, deny: bool) -> bool:
    pattern, ports = split(text)
    if not any(port in each for each in ports):
        return False
    if pattern == "*":
        return True
    if pattern in {kind.value for kind in AddressClass} or pattern[0].isdigit() or ":" in pattern:
        return address is not None and _matches_address(pattern, address, deny)
    if host is None:
        return False
    if pattern.startswith("*"):
        return host.endswith(pattern[1:])
    if pattern.startswith("."):
        return f".{host}".endswith(pattern)
    return host == pattern


def _matches_address(pattern: str, address: str, deny: bool) -> bool:
    meant = [ip_address(address)]
    packed = meant[0].packed
    if pattern in {kind.value for kind in AddressClass}:
        return AddressClass(pattern) in (deny_classes(packed) if deny else (classify(packed),))
    if deny:
        meant += [IPv4Address(each) for each in embedded(packed)]
    return any(each in ip_network(pattern) for each in meant)
