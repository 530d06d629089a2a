"""Could this be allowed on any port at all? For questions that come before a port is known.

An answer changes only where a rule's ports begin or end, so one port of each such stretch
is asked for; of the rules that have the name or the address, which are a handful however
many there are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec.structs import replace

from sidecar.flow import Protocol
from sidecar.policy.decisions import Outcome
from sidecar.policy.policy import Default, Through

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidecar.policy.decisions import Decision
    from sidecar.policy.policy import Policy
    from sidecar.policy.rules import Rule

__all__ = ["CurrentReach", "Reach"]

_LAST = 65535
# The port that an answer is preferred for: what most programs want.
_HTTPS = 443
# Answers kept, of half a kilobyte each.
_REMEMBERED = 2048


class Reach:
    """What a policy could allow on some port.

    Args:
        policy: Which one.

    Attributes:
        policy: The same.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        # Where rules for networks, which any name may lead to, begin and end.
        self._network_ports = _ports(policy.network_edges())
        self.name = lru_cache(_REMEMBERED)(self._name)
        self.address = lru_cache(_REMEMBERED)(self._address)

    def _name(self, host: str, leads: bool = True) -> Decision:  # noqa: FBT002 - cached
        """Judge a name whose addresses are not known yet, for a lookup of it.

        A rule for a single address doesn't let names be looked up that might lead there:
        that would be all of them. One for a network or a class does.

        Args:
            host: Canonical.
            leads: Whether what is looked up could lead to an address; if not, rules for
                networks and classes don't count, either.

        Returns:
            Of all ports, the first answer that isn't DENY (NEED_MORE: the addresses decide); with
            a rule for the name if there is one; the DENY of one port if there is no other.
        """
        through = Through.NETWORKS if leads else Through.NOTHING
        best: Decision | None = None
        for port in (_HTTPS, *_ports(self.policy.edges(host, None))):
            decision = self.policy.judge_name(host, port, through=through)
            if decision.outcome is not Outcome.DENY and decision.rule is not None:
                return decision
            if best is None or (
                best.outcome is Outcome.DENY and decision.outcome is not Outcome.DENY
            ):
                best = decision
        assert best is not None  # noqa: S101 - there is at least one port
        if best.outcome is Outcome.DENY and leads and self.policy.default is Default.DENY:
            for port in self._network_ports:
                decision = self.policy.judge_name(host, port, through=through)
                if decision.outcome is not Outcome.DENY:
                    return decision
        return best

    def _address(self, address: str, host: str | None) -> Decision:
        """Judge an address that was found for a name.

        Args:
            address: Canonical.
            host: The name, canonical; None for the address alone.

        Returns:
            ALLOW of the first port that has it; else the DENY of one port: if there are any, of
            those that a rule for the name has, and no rule denies. Its hint is for the ports
            of these rules, or for all.
        """
        ports = (_HTTPS, *_ports(self.policy.edges(host, address)))
        denials = {}
        for port in ports:
            decision = self.policy.judge(address, port, host=host, protocol=Protocol.TCP)
            if decision.outcome is Outcome.ALLOW:
                return decision
            denials[port] = decision
        rules = {} if host is None else self._rules_for(host, ports)
        # What a rule denies on one port may be allowed on another.
        best = next(
            (denials[port] for port in (*rules, *ports) if denials[port].hint), denials[_HTTPS]
        )
        if not best.hint:
            return best
        # Which port is meant, nobody has said yet.
        texts = dict.fromkeys(rule.text.partition(":")[2] for rule in rules.values())
        wanted = "" if "" in texts else ",".join(texts)
        shown = f"[{address}]" if wanted and ":" in address else address
        return replace(best, hint=f"{shown}:{wanted}" if wanted else shown)

    def _rules_for(self, host: str, ports: Iterable[int]) -> dict[int, Rule]:
        """The rules that allow a name as such, each with the first port that has it."""
        found: dict[int, Rule] = {}
        for port in ports:
            rule = self.policy.judge_name(host, port, through=Through.NOTHING).rule
            if rule is not None and rule.is_for_names and rule not in found.values():
                found[port] = rule
        return found


class CurrentReach:
    """What the policy in force could allow on some port; made anew when that is another.

    Args:
        policy: Tells which one is in force.
    """

    def __init__(self, policy: Callable[[], Policy]) -> None:
        self._policy = policy
        self._reach: Reach | None = None

    def __call__(self) -> Reach:
        """As it is now."""
        policy = self._policy()
        if self._reach is None or self._reach.policy is not policy:
            self._reach = Reach(policy)
        return self._reach


def _ports(edges: Iterable[int]) -> list[int]:
    """Those that are ports, in order."""
    return sorted(port for port in edges if 1 <= port <= _LAST)
