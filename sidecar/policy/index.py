"""Which of many rules matches: as fast for a hundred thousand as for ten.

Names are looked up in hash tables, once for each label of the name that is asked for.
Networks are flattened into disjoint stretches of the address space, found by bisection,
each with the narrowest network round it; wider ones are reached from there, at most one
per prefix length. Ports of one host are stretches as well.

Of several rules that match, the most specific is found: the whole name, then the
longest suffix; the narrowest network, then the class, then ``*``. Among equals, the
first given.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heappop, heappush
from typing import TYPE_CHECKING, cast

from sidecar.policy.ranges import AddressClass, classify, deny_classes, embedded
from sidecar.policy.rules import HostKind, IPNetwork, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["NameIndex", "NetworkIndex", "PortIndex", "RuleIndex"]

_PORTS = 65536
_IPV4_OCTETS = 4
# Up to here, looking at each range is faster than bisection.
_FEW_PORTS = 4


class PortIndex:
    """The rules of one host, by port.

    Args:
        rules: In the order given; the first that has a port is found for it.
    """

    __slots__ = ("_rules", "_starts")

    def __init__(self, rules: Iterable[Rule]) -> None:
        seen: dict[tuple[int, int], tuple[int, Rule]] = {}
        for order, rule in enumerate(rules):
            for ports in rule.ports:
                seen.setdefault(ports, (order, rule))
        pending = sorted((first, last, *found) for (first, last), found in seen.items())
        edges = sorted({0, *(p[0] for p in pending), *(p[1] + 1 for p in pending)} - {_PORTS})
        self._starts: list[int] = []
        self._rules: list[Rule | None] = []
        active: list[tuple[int, int, Rule]] = []
        position = 0
        for start in edges:
            while position < len(pending) and pending[position][0] == start:
                _, last, order, rule = pending[position]
                # `last` is different for each entry of one rule.
                heappush(active, (order, last, rule))
                position += 1
            while active and active[0][1] < start:
                heappop(active)
            self._starts.append(start)
            self._rules.append(active[0][2] if active else None)

    def match(self, port: int) -> Rule | None:
        """Find the rule for a port."""
        return self._rules[bisect_right(self._starts, port) - 1]

    @property
    def edges(self) -> Sequence[int]:
        """The ports where another rule begins to match, or none."""
        return self._starts

    @property
    def gaps(self) -> list[int]:
        """The ports where some rule begins to match after none did, and the other way round."""
        found: list[int] = []
        covered = False
        for start, rule in zip(self._starts, self._rules, strict=True):
            if (rule is not None) is not covered:
                covered = not covered
                found.append(start)
        return found


def _by_port(rules: Sequence[Rule]) -> Rule | PortIndex:
    """One rule with few ports is its own index."""
    if len(rules) == 1 and len(rules[0].ports) <= _FEW_PORTS:
        return rules[0]
    return PortIndex(rules)


def _edges(entry: Rule | PortIndex | None) -> Iterable[int]:
    """Where, among the ports, what the entry has to say may change."""
    if entry is None:
        return ()
    if isinstance(entry, PortIndex):
        return entry.edges
    return [edge for first, last in entry.ports for edge in (first, last + 1)]


class NameIndex:
    """Rules for names.

    Args:
        rules: In the order given; only rules for names.
    """

    __slots__ = ("_below", "_exact", "_ports")

    def __init__(self, rules: Iterable[Rule]) -> None:
        exact: dict[str, list[Rule]] = {}
        below: dict[str, list[Rule]] = {}
        given = list(rules)
        for rule in given:
            name = cast("str", rule.host)
            if rule.kind is not HostKind.BELOW:
                exact.setdefault(name, []).append(rule)
            if rule.kind is not HostKind.NAME:
                below.setdefault(name, []).append(rule)
        self._exact = {name: _by_port(found) for name, found in exact.items()}
        self._below = {name: _by_port(found) for name, found in below.items()}
        self._ports = PortIndex(given)

    def covers(self, port: int) -> bool:
        """Whether some name could match on this port."""
        return self._ports.match(port) is not None

    @property
    def gaps(self) -> list[int]:
        """Where, among the ports, `covers` changes its answer."""
        return self._ports.gaps

    def edges(self, host: str) -> set[int]:
        """Where, among the ports, the rule for a name may be another."""
        found = set(_edges(self._exact.get(host)))
        dot = host.find(".")
        while dot >= 0:
            found.update(_edges(self._below.get(host[dot + 1 :])))
            dot = host.find(".", dot + 1)
        return found

    def match(self, host: str, port: int) -> Rule | None:
        """Find the rule for a canonical name and a port."""
        entry = self._exact.get(host)
        if entry is not None and (rule := entry.match(port)) is not None:
            return rule
        below = self._below
        if not below:
            return None
        dot = host.find(".")
        while dot >= 0:
            entry = below.get(host[dot + 1 :])
            if entry is not None and (rule := entry.match(port)) is not None:
                return rule
            dot = host.find(".", dot + 1)
        return None


class _Node:
    """A network that has rules."""

    __slots__ = ("entry", "last", "parent")

    def __init__(self, entry: Rule | PortIndex, last: int, parent: _Node | None) -> None:
        self.entry = entry
        self.last = last
        self.parent = parent


class NetworkIndex:
    """Rules for networks of one family.

    Args:
        rules: In the order given.
        octets: 4 or 16.
    """

    __slots__ = ("_nodes", "_starts")

    def __init__(self, rules: Iterable[Rule], octets: int) -> None:
        by_network: dict[tuple[int, int, int], list[Rule]] = {}
        for rule in rules:
            network = cast("IPNetwork", rule.host)
            if network.max_prefixlen == octets * 8:
                key = (
                    int(network.network_address),
                    network.prefixlen,
                    int(network.broadcast_address),
                )
                by_network.setdefault(key, []).append(rule)
        stretches: dict[int, _Node | None] = {0: None}
        inside: _Node | None = None
        for first, _, last in sorted(by_network):
            while inside is not None and inside.last < first:
                stretches[inside.last + 1] = inside.parent
                inside = inside.parent
            found = by_network[first, _, last]
            inside = stretches[first] = _Node(_by_port(found), last, inside)
        while inside is not None:
            stretches[inside.last + 1] = inside.parent
            inside = inside.parent
        stretches.pop(1 << octets * 8, None)
        starts = sorted(stretches)
        self._starts = [start.to_bytes(octets, "big") for start in starts]
        self._nodes = [stretches[start] for start in starts]

    def match(self, packed: bytes, port: int) -> Rule | None:
        """Find the rule for an address, in octets of this family, and a port."""
        node = self._nodes[bisect_right(self._starts, packed) - 1]
        while node is not None:
            if (rule := node.entry.match(port)) is not None:
                return rule
            node = node.parent
        return None

    def edges(self, packed: bytes) -> set[int]:
        """Where, among the ports, the rule for an address may be another."""
        found: set[int] = set()
        node = self._nodes[bisect_right(self._starts, packed) - 1]
        while node is not None:
            found.update(_edges(node.entry))
            node = node.parent
        return found


class RuleIndex:
    """A list of rules, all allow or all deny.

    Args:
        rules: In the order given.

    Attributes:
        names: Those for names.
    """

    __slots__ = ("_any", "_classes", "_ports", "_several", "_v4", "_v6", "names")

    def __init__(self, rules: Iterable[Rule]) -> None:
        names: list[Rule] = []
        by_kind: dict[HostKind, list[Rule]] = {kind: [] for kind in HostKind}
        for rule in rules:
            if rule.is_for_names:
                names.append(rule)
            else:
                by_kind[rule.kind].append(rule)
        self.names = NameIndex(names)
        self._v4 = NetworkIndex(by_kind[HostKind.NETWORK], 4)
        self._v6 = NetworkIndex(by_kind[HostKind.NETWORK], 16)
        self._classes: dict[AddressClass, PortIndex] = {}
        for kind in AddressClass:
            found = [rule for rule in by_kind[HostKind.CLASS] if rule.host is kind]
            if found:
                self._classes[kind] = PortIndex(found)
        self._any = PortIndex(by_kind[HostKind.ANY])
        networks, classes = by_kind[HostKind.NETWORK], by_kind[HostKind.CLASS]
        self._ports = PortIndex(networks + classes)
        self._several = PortIndex([rule for rule in networks if not _is_single(rule)] + classes)

    def match_any(self, port: int) -> Rule | None:
        """Find a ``*`` rule for a port."""
        return self._any.match(port)

    def covers_some_address(self, port: int) -> bool:
        """Whether a rule for some addresses, but not all, has this port."""
        return self._ports.match(port) is not None

    def covers_network(self, port: int) -> bool:
        """Whether a rule for several addresses, but not all, has this port."""
        return self._several.match(port) is not None

    @property
    def any_edges(self) -> Sequence[int]:
        """Where, among the ports, `match_any` may find another rule."""
        return self._any.edges

    @property
    def network_gaps(self) -> list[int]:
        """Where, among the ports, `covers_network` changes its answer."""
        return self._several.gaps

    def edges(self, packed: bytes) -> set[int]:
        """Where, among the ports, the rule for an address may be another."""
        is_ipv4 = len(packed) == _IPV4_OCTETS
        found = (self._v4 if is_ipv4 else self._v6).edges(packed)
        if not is_ipv4:
            for inside in embedded(packed):
                found |= self._v4.edges(inside)
        for kind in {classify(packed), *deny_classes(packed)} & self._classes.keys():
            found.update(self._classes[kind].edges)
        return found.union(self._any.edges)

    def match_address(self, packed: bytes, port: int) -> Rule | None:
        """Find the rule that names an address as it is: what an allow rule takes."""
        networks = self._v4 if len(packed) == _IPV4_OCTETS else self._v6
        rule = networks.match(packed, port)
        if rule is None and self._classes:
            found = self._classes.get(classify(packed))
            if found is not None:
                rule = found.match(port)
        return rule if rule is not None else self._any.match(port)

    def match_hidden_address(self, packed: bytes, port: int) -> Rule | None:
        """Find the rule that names an address or what is inside: what a deny rule takes.

        A metadata address counts as one of the range round it, too.
        """
        is_ipv4 = len(packed) == _IPV4_OCTETS
        rule = (self._v4 if is_ipv4 else self._v6).match(packed, port)
        if rule is not None:
            return rule
        if not is_ipv4:
            for inside in embedded(packed):
                if (rule := self._v4.match(inside, port)) is not None:
                    return rule
        if self._classes:
            for kind in deny_classes(packed):
                found = self._classes.get(kind)
                if found is not None and (rule := found.match(port)) is not None:
                    return rule
        return self._any.match(port)


def _is_single(rule: Rule) -> bool:
    """Whether a rule for a network has a single address."""
    network = cast("IPNetwork", rule.host)
    return network.prefixlen == network.max_prefixlen
