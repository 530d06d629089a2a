"""Whether interception is effective, shown by real connections.

Outbound, a socket connects to an address that is nobody's (RFC 5737, RFC 3849), with
a time to live of one: if it isn't intercepted, it dies at the first router. Who
accepted it is looked up among this namespace's sockets. Where no proxy runs, a
listener of our own stands in for the moment.

Inbound, nothing on the host comes from elsewhere, so packets are made to: inbound.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.addresses import SocketAddress
from sidecar.linux import routing
from sidecar.linux.netfilter import alive, inbound, others, readback
from sidecar.linux.netfilter.model import Mode
from sidecar.linux.sockopt import set_transparent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.linux.netfilter.model import RuleSet
    from sidecar.linux.netfilter.readback import AppliedTable

__all__ = ["Report", "check"]

_NOBODY = {4: "198.51.100.1", 6: "2001:db8::1"}
_PORT = 443
_DEADLINE_SECONDS = 1.0
_LOOK_INTERVAL_SECONDS = 0.005
_NAMES = {4: "IPv4", 6: "IPv6"}


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes:
        findings: One sentence each, in the order in which they were found.
        effective: Whether everything that should be intercepted is.
    """

    findings: list[str] = field(default_factory=list)
    effective: bool = True

    def good(self, finding: str) -> None:
        """Note something that is as it should be."""
        self.findings.append(f"ok: {finding}")

    def note(self, finding: str) -> None:
        """Note something that doesn't decide."""
        self.findings.append(f"note: {finding}")

    def bad(self, finding: str) -> None:
        """Note something that makes interception ineffective."""
        self.findings.append(f"FAILED: {finding}")
        self.effective = False


def check(expected: RuleSet | None, destinations: tuple[SocketAddress, ...] = ()) -> Report:
    """Look at the rules in force, then try them.

    Args:
        expected: What should be in force; None takes what is.
        destinations: Where to connect to instead of to nobody's addresses; for rules
            that include only some.

    Raises:
        RulesPrivilegeError: Not allowed to look at the rules.
    """
    report = Report()
    applied = readback.read()
    if applied is None:
        report.bad("there is no table inet sidecar here (sidecar rules apply makes it)")
        return report
    if applied.mode is None:
        report.bad("the table inet sidecar is not one that sidecar made")
        return report
    _look(report, applied, expected)
    if not applied.admits:
        return report
    if applied.outbound_port is not None:
        _outbound(report, applied, destinations or _destinations(expected))
        if applied.forwarded:
            for to in destinations or _destinations(expected):
                _from_outside(report, applied, applied.outbound_port, to.port, to)
    if applied.inbound_port is not None:
        excluded = expected.exclude_inbound_ports if expected is not None else ()
        for version in (4, 6) if socket.AF_INET6 in routing.families() else (4,):
            port = inbound.free_port(excluded)
            _from_outside(report, applied, applied.inbound_port, port, version)
    return report


def _look(report: Report, applied: AppliedTable, expected: RuleSet | None) -> None:
    mode = applied.mode.value if applied.mode else ""
    if not applied.admits:
        report.bad("the rules are draining: new connections are not intercepted")
    elif expected is None:
        report.good(f"the table inet sidecar is there, {mode} mode")
    elif applied.fingerprint == readback.fingerprint_of(expected):
        report.good(f"the table inet sidecar is there, {mode} mode, and what the options say")
    else:
        report.bad(
            "the table inet sidecar is not what these options say (compare sidecar rules show "
            "with nft list table inet sidecar; sidecar rules apply with the same options mends it)"
        )
    if applied.mode is Mode.TPROXY and applied.outbound_port is not None:
        for missing in routing.missing_tproxy_routing():
            report.bad(f"{missing} is missing (sidecar rules apply puts it back)")
    for warning in others.hiding():
        report.note(warning)


def _destinations(expected: RuleSet | None) -> tuple[SocketAddress, ...]:
    """Nobody's addresses, or, where only some are included, the first of those."""
    chosen = []
    for version, nobody in _NOBODY.items():
        host, port = nobody, _PORT
        if expected is not None and expected.include_cidrs:
            included = [each for each in expected.include_cidrs if each.version == version]
            if not included:
                continue
            host = str(included[0][min(1, included[0].num_addresses - 1)])
        if expected is not None and expected.include_ports:
            port = expected.include_ports[0].first
        chosen.append(SocketAddress(host, port))
    return tuple(chosen)


def _outbound(
    report: Report, applied: AppliedTable, destinations: tuple[SocketAddress, ...]
) -> None:
    user, group = os.geteuid(), os.getegid()
    if applied.excludes(user, group):
        report.bad(
            f"outbound: user {user} (group {group}) is excluded, so nothing can be shown; run "
            "the check as a user whose connections are intercepted"
        )
        return
    outcomes = [_connect(report, applied, each) for each in destinations]
    if not any(outcomes):
        report.bad(
            "outbound: no address family has a route there, so nothing can be shown; name an "
            "address that this host has a route to: --probe ADDRESS:PORT"
        )


def _connect(report: Report, applied: AppliedTable, to: SocketAddress) -> bool:
    """Connect once; False where the family can't be tried for want of a route."""
    version = to.ip.version
    name = f"outbound {_NAMES[version]}"
    port = applied.outbound_port
    if port is None:
        return False
    transparent = applied.mode is Mode.TPROXY
    running = alive.listens(port, version=version, transparent=transparent)
    with contextlib.ExitStack() as stack:
        if not running:
            try:
                stack.enter_context(_stand_in(port, version, transparent=transparent))
            except OSError as error:
                what = "transparent listener" if transparent else "listener"
                report.bad(
                    f"{name}: no {what} on port {port} (start the proxy), and none could be "
                    f"opened for the trial: {error.strerror}"
                )
                return True
        client = stack.enter_context(socket.socket(to.family, socket.SOCK_STREAM))
        _one_hop(client)
        client.setblocking(False)
        failure = client.connect_ex((to.host, to.port))
        if failure in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}:
            report.note(f"{name}: there is no route to {to.host}, so nothing to intercept")
            return False
        where = _accepted_where(client, failure)
    if where is None:
        report.bad(
            f"{name}: a connection to {to} was not intercepted by the rules (excluded: by "
            "user, group, address or port? hidden by others' rules?)"
        )
    elif where != to if transparent else where.port != port:
        report.bad(f"{name}: a connection to {to} was accepted at {where}, not by port {port}")
    elif running:
        report.good(f"{name}: a connection to {to} was accepted by the proxy on port {port}")
    else:
        report.bad(
            f"{name}: the rules work (a connection to {to} came to port {port}), "
            "but no proxy listens there"
        )
    return True


def _accepted_where(client: socket.socket, failure: int) -> SocketAddress | None:
    """The local end of the socket that took the client's connection; None if none did.

    Looked for from the first packet on: the proxy may hang up at once.
    """
    try:
        own = SocketAddress.from_kernel(client.getsockname())
    except OSError:
        return None
    deadline = time.monotonic() + _DEADLINE_SECONDS
    answered = failure not in {errno.EINPROGRESS, 0}
    while True:
        for each in alive.tcp_sockets(listening=False):
            if each.peer_port == own.port and str(each.peer) == own.host:
                return SocketAddress(str(each.local), each.local_port)
        if answered or time.monotonic() > deadline:
            return None
        _, writable, _ = select.select([], [client], [], _LOOK_INTERVAL_SECONDS)
        # Once more after the answer, for then the socket is there or never will be.
        answered = bool(writable)


def _one_hop(client: socket.socket) -> None:
    if client.family == socket.AF_INET6:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
    else:
        client.setsockopt(socket.SOL_IP, socket.IP_TTL, 1)


@contextlib.contextmanager
def _stand_in(port: int, version: int, *, transparent: bool) -> Iterator[None]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6  # noqa: PLR2004 - the version
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if transparent:
            set_transparent(listener)
        listener.bind(("", port))
        listener.listen(1)
        yield


def _from_outside(
    report: Report, applied: AppliedTable, proxy: int, port: int, to: SocketAddress | int
) -> None:
    """Make a connection arrive, for an IP version of this host's or for another host."""
    version = to if isinstance(to, int) else to.ip.version
    name = f"{'inbound' if isinstance(to, int) else 'forwarded'} {_NAMES[version]}"
    transparent = applied.mode is Mode.TPROXY
    running = alive.listens(proxy, version=version, transparent=transparent)
    with contextlib.ExitStack() as stack:
        try:
            if not running:
                stack.enter_context(_stand_in(proxy, version, transparent=transparent))
            destination = None if isinstance(to, int) else to.ip
            answered = inbound.is_answered(version, port, destination)
        except OSError as error:
            report.note(f"{name}: not tried, for it needs root: {error.strerror}")
            if not running:
                report.bad(f"{name}: no proxy listens on port {proxy}")
            return
    if not answered:
        report.bad(f"{name}: a connection from outside was not intercepted by the rules")
    elif running:
        report.good(f"{name}: a connection from outside was accepted by the proxy on port {proxy}")
    else:
        report.bad(
            f"{name}: the rules work (a connection from outside came to port {proxy}), "
            "but no proxy listens there"
        )
