"""What did a run do, as far as rules could be about it? In bounded memory.

Only what was allowed is gathered: what was denied is nothing that a policy should be
learned from. A name counts for a connection only where the address is known to be the
name's: it was answered for it, or verified. A client that says another name is
remembered by its address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from zope.interface import implementer

from sidecar.addresses import parse_host
from sidecar.errors import AddressError
from sidecar.flow import FlowEnd, HostSource, ListenerKind, Protocol, Verdict
from sidecar.interfaces import IDNSObserver, IFlowObserver
from sidecar.lookups import LEADING
from sidecar.policy.decisions import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidecar.flow import Flow
    from sidecar.lookups import Lookup
    from sidecar.policy.policy import Policy

__all__ = ["SEEN_MAX", "Gatherer", "Seen"]

SEEN_MAX = 4096
"""Hosts and ports that are told apart, and likewise names that are looked up; some 2 MiB. A
run that does more is no candidate for a list of rules."""
ADDRESSES_MAX = 16
"""Addresses remembered of one name and port."""
PROCESSES_MAX = 4
"""Names of processes remembered with each."""
# Pairs of a name and an address that it was answered with.
_PAIRS_MAX = 1 << 14

_WITH_ADDRESSES = frozenset({"A", "AAAA", "HTTPS", "SVCB"})
# The client went away before there was a verdict.
_NOT_JUDGED = "not_judged"
_BRIDGED = frozenset({ListenerKind.HOST_PORT, ListenerKind.PUBLISH})
_FAILURES = frozenset(
    {
        FlowEnd.CONNECTION_REFUSED,
        FlowEnd.CONNECTION_TIMEOUT,
        FlowEnd.DESTINATION_UNROUTABLE,
    }
)


class Seen(msgspec.Struct, kw_only=True):
    """What went to one host and port, or was asked of one name.

    Attributes:
        host: The canonical name; None if none was said.
        owned: Whether the addresses are known to be the name's.
        port: The port; None for a name that was looked up.
        addresses: Where it led, canonical, in the order found.
        raw: Whether every client spoke something that has no place for a name.
        ech: Whether some name may have been a front for another.
        leads: Whether all that was looked up of it could lead to an address.
        found: Whether a lookup was answered with something.
        made_of: The names that this one may have been made of (`Lookup.made_of`).
        muddled: Whether some client's first bytes were such that the policy denies it
            where it needs the name.
        problems: Why, as reason codes.
        times: How many connections, or lookups.
        failed: How many of these connections did not come about.
        first: When the first began, seconds since the epoch.
        processes: The names of those that connected, in the order of their first.
    """

    host: str | None
    owned: bool
    port: int | None
    addresses: dict[str, None] = msgspec.field(default_factory=dict)
    raw: bool = True
    ech: bool = False
    leads: bool = True
    found: bool = False
    made_of: tuple[str, ...] = ()
    muddled: bool = False
    problems: set[str] = msgspec.field(default_factory=set)
    times: int = 0
    failed: int = 0
    first: float = 0.0
    processes: dict[str, None] = msgspec.field(default_factory=dict)

    def lead_to(self, addresses: Iterable[str]) -> None:
        """Take note of addresses, as long as there is room."""
        for address in addresses:
            if len(self.addresses) < ADDRESSES_MAX:
                self.addresses[address] = None


_Key = tuple[str | None, str | None, int]


@implementer(IFlowObserver, IDNSObserver)
class Gatherer:
    """Gathers what was allowed.

    Args:
        owns: Whether an address is known to be a name's, besides those that it was seen to
            be answered with (`sidecar.names.served.Served.owns`).
        policy: Tells which policy is in force.

    Attributes:
        denied: How many connections and lookups were denied.
        missed: How many were not gathered, for want of room.
    """

    def __init__(
        self, owns: Callable[[str, str], bool], policy: Callable[[], Policy | None]
    ) -> None:
        self._owns = owns
        self._policy = policy
        self._pairs: set[tuple[str, str]] = set()
        self._connections: dict[_Key, Seen] = {}
        self._lookups: dict[str, Seen] = {}
        self.denied = 0
        self.missed = 0

    @property
    def seen(self) -> list[Seen]:
        """All that there is, in the order of their beginnings."""
        return [*self._connections.values(), *self._lookups.values()]

    def flow_ended(self, flow: Flow) -> None:
        """Take note of a connection."""
        if flow.listener in _BRIDGED:
            # Whom no policy is asked about.
            return
        destination = flow.destination
        if flow.verdict is Verdict.DENY or destination is None:
            self.denied += flow.reason != _NOT_JUDGED
            return
        host, address, port = flow.host, destination.host, destination.port
        owned = host is not None and flow.problem is None and self._is_owned(flow, host, address)
        key = (host, None if owned else address, port)
        seen = self._connections.get(key)
        if seen is None:
            if len(self._connections) >= SEEN_MAX:
                self.missed += 1
                return
            seen = Seen(host=host, owned=owned, port=port, first=flow.started)
            self._connections[key] = seen
        seen.lead_to([address])
        seen.raw &= flow.protocol is Protocol.TCP
        seen.ech |= flow.ech
        if flow.problem is not None:
            seen.muddled = True
            seen.problems.add(flow.problem)
        seen.times += 1
        seen.failed += flow.end in _FAILURES
        seen.first = min(seen.first, flow.started)
        if flow.process is not None and len(seen.processes) < PROCESSES_MAX:
            seen.processes[flow.process.name] = None

    def lookup_ended(self, lookup: Lookup) -> None:
        """Take note of a DNS question that was asked further, whatever came of it."""
        if lookup.verdict is Verdict.DENY:
            self.denied += 1
            return
        if not lookup.forwarded:
            return
        host = _host(lookup.name)
        if host is None:
            return
        for address in lookup.addresses:
            if len(self._pairs) < _PAIRS_MAX:
                self._pairs.add((host, address))
        seen = self._lookups.get(host)
        if seen is None:
            if len(self._lookups) >= SEEN_MAX:
                self.missed += 1
                return
            seen = Seen(host=host, owned=True, port=None, made_of=lookup.made_of)
            self._lookups[host] = seen
        seen.lead_to(lookup.addresses)
        empty = lookup.type in _WITH_ADDRESSES and not lookup.addresses
        seen.found |= lookup.rcode == "NOERROR" and not empty
        seen.leads &= lookup.type in LEADING
        seen.times += 1

    def _is_owned(self, flow: Flow, host: str, address: str) -> bool:
        if flow.host_from is HostSource.DNS or (host, address) in self._pairs:
            return True
        if self._owns(host, address):
            return True
        policy = self._policy()
        if policy is None:
            return False
        decision = policy.decide(flow)
        # It was relayed, so it has been verified.
        return decision.outcome is Outcome.ALLOW and decision.by_name


def _host(name: str) -> str | None:
    """The canonical name, if a rule can be for it."""
    try:
        host = parse_host(name)
    except AddressError:
        return None
    return host if isinstance(host, str) else None
