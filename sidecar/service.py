"""What ``twistd sidecar`` runs: all listeners, what they share, and the reload."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import msgspec
from twisted.application import service
from twisted.internet import defer
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger

from sidecar.config import Config, OpenFlows, Verify
from sidecar.dialing import Source
from sidecar.endpoints import adopt_port
from sidecar.errors import ListenError, SidecarError
from sidecar.extensions import find_plugins
from sidecar.flow import ListenerKind
from sidecar.interfaces import IDecisionStep, IFlowObserver, INamedObserver
from sidecar.names.identity import CertificateProber, trust
from sidecar.names.resolving import SystemResolver
from sidecar.names.verifying import Certificate, Off, Redial, Verifier
from sidecar.observe.several import Observers
from sidecar.protocols.judging import Judge
from sidecar.protocols.sni import SNIProxyFactory
from sidecar.protocols.tcp import StaticRelayFactory, TransparentRelayFactory
from sidecar.runtime import Runtime
from sidecar.upstreams import parse_upstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
    from twisted.python.failure import Failure

    from sidecar.interfaces import IRelayReactor
    from sidecar.observe.access_log import AccessLog

__all__ = ["SidecarService", "fail"]


class SidecarService(service.Service):
    """All listeners and what they share.

    Args:
        reactor: Where everything belongs.
        config: What to do.
        log: Told of each flow's end; stopped with the service.
        load: Reads the configuration again, for a reload; None for what it is now.
    """

    name = "sidecar"
    _log_reload = Logger()

    def __init__(
        self,
        reactor: IRelayReactor,
        config: Config,
        load: Callable[[], Config] | None = None,
        log: AccessLog | None = None,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._load = load or (lambda: config)
        self._log = log
        self._judge: Judge | None = None
        self._closing: list[Callable[[], object]] = []
        self._ports: list[IListeningPort] = []
        self._runtime: Runtime | None = None
        self._resolver: SystemResolver | None = None

    def privilegedStartService(self) -> None:
        """Open every listener, while low ports and capabilities can still be had.

        Raises:
            SystemExit: A listener that can't be had; one line, status 1.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        try:
            self._open()
        except SidecarError as error:
            fail(error)

    def _open(self) -> None:
        config = self._config
        self._runtime = runtime = Runtime.make(
            self._reactor,
            self._observer(),
            mark=config.mark or None,
            limits=config.limits,
        )
        self._resolver = resolver = SystemResolver(runtime.reactor, runtime.reactor)
        self._closing.append(resolver.close)
        self._judge = judge = Judge(
            config.policy.build(),
            self._verifier(config.policy.verify, runtime, resolver),
            silence=config.limits.silence,
            patience=config.limits.patience,
            steps=find_plugins(IDecisionStep, config.policy.steps),
            deadline=config.limits.connect_timeout,
        )
        if config.outbound is not None:
            self._listen(
                runtime,
                config.outbound,
                TransparentRelayFactory(runtime, kind=ListenerKind.OUTBOUND, judge=judge),
            )
        if config.inbound is not None:
            chosen = config.inbound_source
            source = Source(str(chosen.ipv4), str(chosen.ipv6)) if chosen.enabled else None
            self._listen(
                runtime,
                config.inbound,
                TransparentRelayFactory(runtime, kind=ListenerKind.INBOUND, source=source),
            )
        if config.sni_proxy is not None:
            self._listen(runtime, config.sni_proxy, SNIProxyFactory(runtime, judge, resolver))
        for forward in config.forward:
            upstream = parse_upstream(self._reactor, forward.connect)
            self._listen(runtime, forward.listen, StaticRelayFactory(runtime, upstream))

    def _observer(self) -> IFlowObserver | None:
        observers: list[IFlowObserver] = [] if self._log is None else [self._log]
        observers += find_plugins(INamedObserver, self._config.observers)
        if len(observers) > 1:
            return Observers(observers)
        return observers[0] if observers else None

    def _verifier(self, verify: Verify, runtime: Runtime, resolver: SystemResolver) -> Verifier:
        if verify is Verify.OFF:
            return Off()
        if verify is Verify.REDIAL:
            return Redial(resolver)
        prober = CertificateProber(runtime.reactor, runtime.poller, runtime.dialer, trust())
        self._closing.append(prober.close)
        return Certificate(prober)

    def startService(self) -> None:
        """Be told of SIGHUP."""
        super().startService()  # type: ignore[no-untyped-call]
        signal.signal(signal.SIGHUP, self._hung_up)

    def _hung_up(self, _: int, __: FrameType | None) -> None:
        self._reactor.callFromThread(self.reload)

    def reload(self) -> None:
        """Read the configuration again and put its policy into force.

        For the flows to come; for open ones as well with ``open_flows = "close"``.

        What can't be used changes nothing: the policy in force stays. Everything but
        the policy takes a restart.
        """
        if self._judge is None or self._runtime is None or self._resolver is None:
            return
        try:
            config = self._load()
            verify = config.policy.verify
            verifier = None
            if verify is not self._config.policy.verify:
                verifier = self._verifier(verify, self._runtime, self._resolver)
            steps = find_plugins(IDecisionStep, config.policy.steps)
        except SidecarError as error:
            self._log_reload.error("the policy in force stays: {error}", error=str(error))
            return
        self._judge.policy = config.policy.build()
        self._judge.steps = steps
        self._config = msgspec.structs.replace(self._config, policy=config.policy)
        if verifier is not None:
            self._judge.verifier = verifier
        if config.policy.open_flows is OpenFlows.CLOSE:
            self._judge.close_denied()
        self._log_reload.info(
            "policy reloaded: {allow} allow and {deny} deny rules",
            allow=len(config.policy.allow),
            deny=len(config.policy.deny),
        )

    def _listen(self, runtime: Runtime, description: str, factory: IProtocolFactory) -> None:
        endpoint: IStreamServerEndpoint = serverFromString(self._reactor, description)
        failures: list[Failure] = []
        listening = endpoint.listen(factory)
        listening.addCallback(lambda port: self._ports.append(adopt_port(runtime, port, factory)))
        listening.addErrback(failures.append)
        if failures:
            if isinstance(failures[0].value, SidecarError):
                raise failures[0].value
            raise ListenError(description, failures[0].getErrorMessage())

    def stopService(self) -> defer.Deferred[None]:
        """Stop accepting, end every flow, write the log's last lines."""
        super().stopService()  # type: ignore[no-untyped-call]
        stopped = [port.stopListening() for port in self._ports]
        self._ports = []
        self._judge = None
        if self._runtime is not None:
            self._runtime.close()
            for close in self._closing:
                close()
            self._closing.clear()
            self._runtime = None
            self._resolver = None
        if self._log is not None:
            stopped.append(self._log.stop())
            self._log = None
        waiting = [one for one in stopped if isinstance(one, defer.Deferred)]
        return defer.gatherResults(waiting).addCallback(lambda _: None)


def fail(error: SidecarError) -> NoReturn:
    """End twistd with one line and status 1.

    On the real standard error: twistd may have put its log in the place of
    sys.stderr.
    """
    print(f"twistd sidecar: {error}", file=sys.__stderr__)
    raise SystemExit(1)
