"""What runs in the reactor while the command runs: the proxy, DNS, and who watches them."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, cast

from twisted.internet import defer
from twisted.internet import reactor as installed_reactor
from twisted.logger import Logger

from sidecar.cli.exec.plan import DEFAULT, NOT_BY_NAME
from sidecar.cli.exec.reporting import report_errors
from sidecar.cli.exec.sealing import Kept, seal
from sidecar.cli.streams import complain
from sidecar.cli.viewing import make_view
from sidecar.config import Verify
from sidecar.dns.forwarding import Forwarder
from sidecar.dns.resolvconf import NameServers
from sidecar.dns.resolving import DNSResolver
from sidecar.dns.service import start_dns
from sidecar.errors import SidecarError, SummaryError
from sidecar.flow import ListenerKind
from sidecar.host_addresses import HostAddresses
from sidecar.linux.processes import ProcessFinder
from sidecar.names.served import Served, ServedFirst, hosts_file
from sidecar.names.verifying import Off, Redial
from sidecar.observe.requests import ByConnection
from sidecar.observe.several import Observers
from sidecar.protocols.http.intercepted import InterceptedHTTP
from sidecar.protocols.judge import Judge
from sidecar.protocols.tcp import TransparentRelayFactory
from sidecar.runtime import Runtime
from sidecar.sandbox.draining import drained
from sidecar.sandbox.guarding import Guard
from sidecar.sandbox.outside import Sandbox
from sidecar.sandbox.serving import serve_inside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.base import ReactorBase
    from twisted.python.failure import Failure

    from sidecar.cli.exec.plan import Plan
    from sidecar.dns.asking import IAskingReactor
    from sidecar.interfaces import IDecisionStep, IDNSObserver, IFlowObserver, IRelayReactor
    from sidecar.names.verifying import IVerifier
    from sidecar.observe.access_log import AccessLog
    from sidecar.sandbox.bridges import Bridges
    from sidecar.sandbox.bridging import Bridging
    from sidecar.sandbox.starting import Started

__all__ = ["kept", "serve"]

_OWN_FAILURE = 125
_DENIED = 77
_BY_SIGNAL = 128
# Seconds in which a client on this very machine begins to speak, if it does at all: the
# slowest known (git with GnuTLS, which reads all authorities first) takes 45 ms. With the rest of
# a denial, it is less than a tenth of a second.
_BRIEF = 0.08
# What is imported later, if at all: tables, what reads HTTP, and what these need.
_LATE = (
    "calendar",
    "colorsys",
    "configparser",
    "email",
    "fractions",
    "getpass",
    "httptools.parser.parser",
    "locale",
    "quopri",
    "rich",
    "sidecar.observe.tables",
    "sidecar.protocols",
    "sidecar.wire",
    "zlib",
)


def serve(started: Started, plan: Plan) -> int:
    """Serve the sandbox until it is over.

    Args:
        started: Waiting to be let go, which is done once all is served.
        plan: What to do.

    Returns:
        The exit status.
    """
    reactor = cast("IRelayReactor", installed_reactor)
    report_errors()
    session = _Session(reactor, started, plan)
    reactor.callWhenRunning(session.start)
    # Signals are the sandbox's affair.
    cast("ReactorBase", reactor).run(installSignalHandlers=False)
    session.sum_up()
    return session.status


class _Session:
    """One run of a command.

    Args:
        reactor: Where everything belongs.
        started: The sandbox.
        plan: What to do.

    Attributes:
        status: The exit status, once the reactor has stopped.
    """

    _log = Logger()

    def __init__(self, reactor: IRelayReactor, started: Started, plan: Plan) -> None:
        self._reactor = reactor
        self._plan = plan
        self._started = started
        self.status = _OWN_FAILURE
        listeners = started.listeners
        assert listeners is not None  # noqa: S101 - `wait` came first
        self._listeners = listeners
        self._processes = ProcessFinder(listeners.diag, started.init)
        self._view = make_view(plan.view, reactor, self._processes.find)

    def start(self) -> None:
        """Serve; called in the running reactor."""
        running = defer.ensureDeferred(self._run())
        running.addErrback(self._failed)
        running.addBoth(lambda _: cast("ReactorBase", self._reactor).stop())

    def _failed(self, failure: Failure) -> None:
        # The end of this process is the end of everybody inside.
        if failure.check(SidecarError):
            self._say(str(failure.value))
        else:
            self._log.failure("bug; the command is ended", failure)
        self.status = _OWN_FAILURE

    def sum_up(self) -> None:
        """Write the summary; called once the reactor has stopped: who reads may take a while."""
        try:
            self._view.finish(self._plan.command, self.status)
        except SummaryError as error:
            self._say(str(error))

    async def _run(self) -> None:
        reactor, plan, listeners = self._reactor, self._plan, self._listeners
        config = plan.config
        _open_as_many_as_allowed()
        log = self._access_log()
        served = Served(reactor)
        hosts = hosts_file()
        served.add_permanent(hosts)
        observers: list[IFlowObserver] = [] if log is None else [log]
        asking: list[IDNSObserver] = [self._view] if log is None else [self._view, log]
        if plan.learning is not None:
            gatherer = plan.learning.gatherer(served.owns, lambda: judge.policy)
            observers.append(ByConnection(gatherer))
            asking.append(gatherer)
        runtime = Runtime.make(
            reactor, self._observer(observers), mark=config.mark or None, limits=config.limits
        )
        servers = NameServers()
        forwarder = Forwarder(cast("IAskingReactor", reactor), runtime.poller, servers)
        resolver = DNSResolver(reactor, forwarder, servers, lambda: judge.policy, hosts)
        addresses = HostAddresses(
            reactor,
            lambda: setattr(judge, "policy", judge.policy.with_own(addresses.current)),
        )
        judge = Judge(
            config.policy.build(DEFAULT, addresses.current, NOT_BY_NAME),
            ServedFirst(served, self._verifier(runtime, resolver)),
            silence=config.limits.silence,
            patience=config.limits.patience,
            steps=_steps(config.policy.steps),
            deadline=config.limits.connect_timeout,
            brief=_BRIEF,
            served=served,
            curious=plan.learning is not None,
        )
        bridging = None if plan.bridges is None else self._bridge(runtime, plan.bridges)
        sandbox = Sandbox(reactor, self._started, None if bridging is None else bridging.sockets)
        dns = start_dns(
            runtime,
            lambda: judge.policy,
            served,
            forwarder,
            servers.search,
            udp=listeners.dns_udp,
            tcp=listeners.dns_tcp,
            observer=Observers(asking),
        )
        http = InterceptedHTTP(runtime, judge, resolver, config.http.limits)
        factory = TransparentRelayFactory(runtime, kind=ListenerKind.EXEC, judge=judge, http=http)
        arrivals = [listeners.tcp.fileno(), *(each.fileno() for each in listeners.host_ports)]
        serve_inside(runtime, listeners.tcp, factory)
        seal(kept())
        guard = Guard(self._started.channel)
        self._tell_of_bare(guard.hold())
        for remark in plan.remarks:
            self._say(remark)
        self._started.go()
        try:
            await sandbox.ended
            if bridging is not None:
                bridging.unpublish()
            await drained(
                reactor,
                runtime,
                lambda: [
                    *(flow for flow, _ in judge.open.values()),
                    *http.requests,
                    *(() if bridging is None else bridging.flows.values()),
                ],
                arrivals,
                lambda: sandbox.interrupted is not None,
            )
        finally:
            sandbox.let_go_of_signals()
            await dns.stop()
            forwarder.close()
            runtime.close()
            http.close()
            addresses.close()
            self._processes.close()
            await self._view.stop()
            if log is not None:
                await log.stop()
        self.status = self._status(sandbox, guard)
        guard.close()

    def _access_log(self) -> AccessLog | None:
        if self._plan.log is None:
            return None
        from sidecar.observe.access_log import AccessLog

        backlog = self._plan.config.limits.access_log_backlog
        return AccessLog(self._plan.log, self._reactor, backlog=backlog)

    def _bridge(self, runtime: Runtime, bridges: Bridges) -> Bridging:
        from sidecar.sandbox.bridging import Bridging
        from sidecar.sandbox.sockets import SocketsInside

        started = self._started
        sockets = SocketsInside(started.channel, started.init, self._listeners.tcp)
        return Bridging(runtime, bridges, self._listeners, sockets)

    def _tell_of_bare(self, paths: Sequence[str]) -> None:
        """Say what the command could run outside by writing to it."""
        if not paths:
            return
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        self._say(
            f"the command can write to {paths[0]}{more}, which sidecar runs from, and nobody can"
            " guard that; install sidecar where it can't (docs/security.md)"
        )

    def _status(self, sandbox: Sandbox, guard: Guard) -> int:
        if self._plan.view.verbose:
            for each in self._started.missing:
                self._say(each)
            if sandbox.outlived:
                self._say("processes that outlived the command were ended")
        if sandbox.left:
            self._say("processes that outlived the command could not be ended")
        if sandbox.touched:
            path = next(iter(guard.broken()), "a file")
            self._say(f"{path} was opened for writing, and sidecar runs from it: all was ended")
            return _OWN_FAILURE
        if sandbox.interrupted is not None:
            return _BY_SIGNAL + sandbox.interrupted
        if sandbox.status is None:
            self._say("the sandbox was killed")
            return _OWN_FAILURE
        if self._plan.fail_on_deny and self._view.tally.anything_denied:
            if self._plan.view.quiet:
                # Otherwise there are lines that say what.
                own = f"the command's own was {sandbox.status}"
                self._say(f"something was denied: exit status {_DENIED}; {own}")
            return _DENIED
        return sandbox.status

    @staticmethod
    def _say(text: str) -> None:
        complain(f"sidecar exec: {text}")

    def _observer(self, more: Sequence[IFlowObserver]) -> IFlowObserver:
        plugged_in = _plugged_in(self._plan.config.observers)
        return Observers([*self._view.observers, *more, *plugged_in])

    def _verifier(self, runtime: Runtime, resolver: DNSResolver) -> IVerifier:
        policy = self._plan.config.policy
        if policy.verify is Verify.CERTIFICATE:
            # TLS is a third of all that there is to import, and seldom needed.
            from sidecar.cli.exec.probing import certificates

            return certificates(policy, runtime)
        return Off() if policy.verify is Verify.OFF else Redial(resolver)


def kept() -> Kept:
    """What most runs are spared: a tenth of a second."""
    kept = Kept()
    for name in _LATE:
        kept.keep(name)
    return kept


def _open_as_many_as_allowed() -> None:
    """Raise our own soft limit of descriptors; the command has its own already."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _steps(names: Sequence[str]) -> Sequence[IDecisionStep]:
    if not names:
        return ()
    from sidecar.extensions import find_plugins
    from sidecar.interfaces import IDecisionStep

    return find_plugins(IDecisionStep, names)


def _plugged_in(names: Sequence[str]) -> Sequence[IFlowObserver]:
    if not names:
        return ()
    from sidecar.extensions import find_plugins
    from sidecar.interfaces import INamedObserver

    return find_plugins(INamedObserver, names)
