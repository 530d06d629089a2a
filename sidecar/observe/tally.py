"""What the connections of one run amounted to, by host; in bounded memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from zope.interface import implementer

from sidecar.flow import Protocol, Verdict
from sidecar.interfaces import IDNSObserver, IFlowObserver
from sidecar.observe.lines import HOST_MAX
from sidecar.observe.requests import FAILURES, Requests
from sidecar.observe.styles import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.flow import Flow
    from sidecar.lookups import Lookup

__all__ = ["HOSTS_MAX", "PROCESSES_MAX", "Connections", "Denial", "Host", "Summary", "Tally"]

HOSTS_MAX = 1000
"""Hosts and ports, and likewise kinds of denials, told apart; half a megabyte. The rest is
summed up: a command that scans the internet gets no longer summary than others."""
PROCESSES_MAX = 8
"""Names of processes remembered with each."""
_NAME_MAX = 64
_TEXT_MAX = 300


class Connections(msgspec.Struct, kw_only=True):
    """How many connections, and how much they moved.

    Attributes:
        connections: All of them.
        allowed, denied: How many the policy let go, or not.
        failed: Of the allowed, how many did not come about.
        sent, received: Bytes from the command, and to it.
    """

    connections: int = 0
    allowed: int = 0
    denied: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0

    def add(self, flow: Flow) -> None:
        """Count a connection that has ended, or requests of one."""
        if not _told_before(flow):
            self.connections += 1
            if flow.verdict is Verdict.DENY:
                self.denied += 1
            else:
                self.allowed += 1
                self.failed += flow.end in FAILURES
        self.sent += flow.sent
        self.received += flow.received


class Host(Connections, kw_only=True):
    """What went to one host and port.

    Attributes:
        host: The name, or the address of what gave none; None if neither was known.
        port: The port dialled; None if that was not known.
        protocol: What the last connection spoke.
        processes: The names of those that connected, in the order of their first.
    """

    host: str | None
    port: int | None
    protocol: Protocol = Protocol.TCP
    processes: list[str] = msgspec.field(default_factory=list)


class Denial(msgspec.Struct, kw_only=True):
    """What was denied, and could be allowed alike.

    Attributes:
        host: The name or address.
        port: None for DNS questions.
        reason: The reason code.
        rule: The rule that decided, with its place; None if none did.
        allow: The rule that would allow it, for ``--allow``; None if none would.
        connections, lookups: How many connections, and DNS questions.
        processes: As `Host.processes`.
    """

    host: str | None
    port: int | None
    reason: str
    rule: str | None
    allow: str | None
    connections: int = 0
    lookups: int = 0
    processes: list[str] = msgspec.field(default_factory=list)


class Summary(msgspec.Struct, kw_only=True):
    """One run, as ``--summary json`` writes it.

    Attributes:
        v: The version of this format.
        command: What was run.
        status: Its exit status; None if it never ended, or never began.
        started: When, UTC, ISO 8601.
        seconds: How long it took.
        total: All connections.
        lookups, lookups_denied, lookups_failed: DNS questions, those denied, and those that
            the name servers didn't answer.
        hosts: Host by host, what moved most first.
        others: What went to more hosts than are told apart.
        denied: What was denied, most often first.
        denied_others: Denials of more kinds than are told apart.
    """

    v: int = 1
    command: list[str]
    status: int | None
    started: str
    seconds: float
    total: Connections
    lookups: int
    lookups_denied: int
    lookups_failed: int
    hosts: list[Host]
    others: Connections
    denied: list[Denial]
    denied_others: int


@implementer(IFlowObserver, IDNSObserver)
class Tally:
    """Counts connections and DNS questions.

    Args:
        hosts_max: How many hosts and ports, and kinds of denials, are told apart.
    """

    def __init__(self, hosts_max: int = HOSTS_MAX) -> None:
        self._max = hosts_max
        self._total = Connections()
        self._others = Connections()
        self._hosts: dict[tuple[str | None, int | None], Host] = {}
        self._denied: dict[tuple[str | None, int | None, str, str | None], Denial] = {}
        self._denied_others = 0
        self._lookups = 0
        self._lookups_denied = 0
        self._lookups_failed = 0
        self._started = time.time()
        self._started_monotonic = time.monotonic()

    @property
    def anything_denied(self) -> bool:
        """Whether anything was denied (``--fail-on-deny``)."""
        return bool(self._total.denied or self._lookups_denied)

    def flow_ended(self, flow: Flow) -> None:
        """Count a connection."""
        self._total.add(flow)
        host, port = _target(flow)
        row = self._hosts.get((host, port))
        if row is None and len(self._hosts) < self._max:
            row = self._hosts[host, port] = Host(host=host, port=port)
        if row is None:
            self._others.add(flow)
        else:
            row.add(flow)
            row.protocol = flow.protocol
            _note(row.processes, flow)
        if flow.verdict is Verdict.DENY:
            denial = self._denial(host, port, flow.reason, flow.rule, flow.hint)
            if denial is not None:
                denial.connections += not _told_before(flow)
                _note(denial.processes, flow)

    def lookup_ended(self, lookup: Lookup) -> None:
        """Count a DNS question."""
        self._lookups += 1
        self._lookups_failed += bool(lookup.problem)
        if lookup.verdict is Verdict.DENY:
            self._lookups_denied += 1
            name = printable(lookup.name, HOST_MAX).lower()
            denial = self._denial(name, None, lookup.reason, lookup.rule, lookup.hint)
            if denial is not None:
                denial.lookups += 1

    def summary(self, command: Sequence[str], status: int | None) -> Summary:
        """Sum up.

        Args:
            command: What was run.
            status: Its exit status; None if there is none.
        """
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started))
        return Summary(
            command=[each.encode("utf-8", "backslashreplace").decode() for each in command],
            status=status,
            started=started,
            seconds=round(time.monotonic() - self._started_monotonic, 3),
            total=self._total,
            lookups=self._lookups,
            lookups_denied=self._lookups_denied,
            lookups_failed=self._lookups_failed,
            hosts=sorted(self._hosts.values(), key=_weight, reverse=True),
            others=self._others,
            denied=sorted(
                self._denied.values(),
                key=lambda each: each.connections + each.lookups,
                reverse=True,
            ),
            denied_others=self._denied_others,
        )

    def _denial(
        self, host: str | None, port: int | None, reason: str, rule: str | None, hint: str
    ) -> Denial | None:
        key = host, port, reason, rule
        denial = self._denied.get(key)
        if denial is None:
            if len(self._denied) >= self._max:
                self._denied_others += 1
                return None
            denial = self._denied[key] = Denial(
                host=host,
                port=port,
                reason=printable(reason, _NAME_MAX),
                rule=None if rule is None else printable(rule, _TEXT_MAX),
                allow=printable(hint, _TEXT_MAX) or None,
            )
        return denial


def _told_before(flow: Flow) -> bool:
    """Whether it is the rest of what a connection was counted for already."""
    return isinstance(flow, Requests) and flow.again


def _weight(host: Host) -> tuple[int, int]:
    return host.sent + host.received, host.connections


def _target(flow: Flow) -> tuple[str | None, int | None]:
    destination = flow.destination
    if flow.host is not None:
        return printable(flow.host, HOST_MAX), None if destination is None else destination.port
    return (None, None) if destination is None else (destination.host, destination.port)


def _note(processes: list[str], flow: Flow) -> None:
    if flow.process is None or len(processes) >= PROCESSES_MAX:
        return
    name = printable(flow.process.name, _NAME_MAX)
    if name not in processes:
        processes.append(name)
