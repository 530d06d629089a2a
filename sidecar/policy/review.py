"""Rules that are probably not what was meant: too broad, without effect, given twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sidecar.policy.index import PortIndex
from sidecar.policy.policy import Default
from sidecar.policy.ranges import common_class
from sidecar.policy.rules import HostKind, IPNetwork, PortRange, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sidecar.policy.policy import Policy

__all__ = ["Remark", "review"]

# A shorter prefix in an allow rule is remarked on. Registries give out no more at once.
_BROAD = {32: 8, 128: 16}

_Key = tuple[HostKind, object]


@dataclass(frozen=True)
class Remark:
    """A remark on one rule.

    Attributes:
        rule: The rule.
        text: What is odd about it, and because of which other rule.
    """

    rule: Rule
    text: str

    def __str__(self) -> str:
        place = f"{self.rule.place}: " if self.rule.place else ""
        return f"{place}{self.rule.text}: {self.text}"


def review(policy: Policy) -> list[Remark]:
    """Find what is odd, in the order of the rules; denials first.

    Takes time in proportion to the number of rules. A rule that only several others
    together cover is not found.
    """
    deny, allow = _Covers(policy.deny), _Covers(policy.allow)
    private = _Covers(policy.private_names)
    found = [(rule, deny.remark(rule)) for rule in policy.deny]
    found += [(rule, _remark_on_allow(rule, policy, deny, allow)) for rule in policy.allow]
    found += [(rule, private.remark(rule) or _breadth(rule)) for rule in policy.private_names]
    return [Remark(rule, text) for rule, text in found if text is not None]


def _remark_on_allow(rule: Rule, policy: Policy, deny: _Covers, allow: _Covers) -> str | None:
    if other := deny.find(rule):
        return f"never allows anything: {_named(other)} denies it all"
    if text := allow.remark(rule):
        return text
    if rule.is_for_names and policy.default is Default.ALLOW:
        return 'without effect: default = "allow" allows it anyway'
    if rule.is_for_names and policy.default is Default.PUBLIC and not policy.private_names:
        return 'without effect: default = "public" allows all that it could (no private_names)'
    return _breadth(rule)


def _named(rule: Rule) -> str:
    return f"{rule.text} ({rule.place})" if rule.place else rule.text


def _breadth(rule: Rule) -> str | None:
    """Say what is broad about an allow rule; None if nothing is."""
    if rule.kind is HostKind.ANY:
        return "allows every destination, private and metadata addresses included"
    if rule.kind in {HostKind.BELOW, HostKind.DOMAIN} and "." not in cast("str", rule.host):
        return f"allows a whole top-level domain, all names that end in .{rule.host}"
    if rule.kind is HostKind.NETWORK:
        network = cast("IPNetwork", rule.host)
        if network.prefixlen < _BROAD[network.max_prefixlen]:
            return f"allows {network.num_addresses} addresses"
    return None


def _key(rule: Rule) -> _Key:
    return rule.kind, rule.host


def _ports(rule: Rule) -> list[PortRange]:
    """A rule's ports in order, ranges that touch made one."""
    merged: list[PortRange] = []
    for first, last in sorted(rule.ports):
        if merged and first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(last, merged[-1].last))
        else:
            merged.append(PortRange(first, last))
    return merged


def _has_ports(rule: Rule, other: Rule) -> bool:
    """Whether a rule is for every port that another is for."""
    mine = _ports(rule)
    return all(
        any(first <= wanted.first and wanted.last <= last for first, last in mine)
        for wanted in _ports(other)
    )


class _Covers:
    """Finds a rule that covers another whole."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        by_key: dict[_Key, list[Rule]] = {}
        self._order: dict[int, int] = {}
        for order, rule in enumerate(rules):
            by_key.setdefault(_key(rule), []).append(rule)
            self._order[id(rule)] = order
        # Of many rules for one host, two are asked: the first with a port, the widest.
        self._first = {key: PortIndex(found) for key, found in by_key.items() if found[1:]}
        self._widest = {key: max(found, key=_width) for key, found in by_key.items()}

    def find(self, rule: Rule) -> Rule | None:
        """Find one that covers a rule; of two that cover one another, the earlier."""
        for key in _wider_hosts(rule):
            widest = self._widest.get(key)
            if widest is None:
                continue
            index = self._first.get(key)
            first = None if index is None else index.match(rule.ports[0].first)
            for other in (first, widest):
                if other is not None and self._covers(other, rule):
                    return other
        return None

    def remark(self, rule: Rule) -> str | None:
        """Say what makes a rule of this same list superfluous; None if nothing does."""
        other = self.find(rule)
        if other is None:
            return None
        if _key(rule) == _key(other) and _ports(rule) == _ports(other):
            return f"a duplicate of {_named(other)}"
        return f"without effect: {_named(other)} covers it"

    def _covers(self, other: Rule, rule: Rule) -> bool:
        if other is rule or not _has_ports(other, rule):
            return False
        mutual = _key(other) == _key(rule) and _has_ports(rule, other)
        own = self._order.get(id(rule))
        return not mutual or own is None or self._order[id(other)] < own


def _width(rule: Rule) -> int:
    return sum(last - first + 1 for first, last in _ports(rule))


def _wider_hosts(rule: Rule) -> Iterator[_Key]:
    """The hosts of rules that would cover a rule's host, itself first."""
    yield _key(rule)
    if rule.is_for_names:
        name = cast("str", rule.host)
        yield HostKind.DOMAIN, name
        while "." in name:
            name = name.partition(".")[2]
            yield HostKind.BELOW, name
            yield HostKind.DOMAIN, name
    elif rule.kind is HostKind.NETWORK:
        network = cast("IPNetwork", rule.host)
        for length in range(network.prefixlen - 1, -1, -1):
            network = network.supernet(new_prefix=length)
            yield HostKind.NETWORK, network
        if kind := common_class(cast("IPNetwork", rule.host)):
            yield HostKind.CLASS, kind
    yield HostKind.ANY, None
