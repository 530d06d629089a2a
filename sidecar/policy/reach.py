"""Could this be allowed on any port at all? For questions that come before a port is known.

An answer changes only where a rule's ports begin or end, so one port of each such stretch
is asked for; of the rules that have the name or the address, which are a handful however
many there are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sidecar.flow import Protocol
from sidecar.policy.decisions import Outcome
from sidecar.policy.policy import Default, Through

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.policy.decisions import Decision
    from sidecar.policy.policy import Policy

__all__ = ["Reach"]

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
            ALLOW of the first port that has it; else the DENY of one port.
        """
        best: Decision | None = None
        for port in (_HTTPS, *_ports(self.policy.edges(host, address))):
            decision = self.policy.judge(address, port, host=host, protocol=Protocol.TCP)
            if decision.outcome is Outcome.ALLOW:
                return decision
            best = best or decision
        assert best is not None  # noqa: S101 - there is at least one port
        return best


def _ports(edges: Iterable[int]) -> list[int]:
    """Those that are ports, in order."""
    return sorted(port for port in edges if 1 <= port <= _LAST)
