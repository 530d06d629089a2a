"""What ``twistd sidecar`` runs: all listeners, what they share, and the reload."""

from __future__ import annotations

import gc
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import msgspec
from twisted.application import service
from twisted.internet import defer
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger

from sidecar.config import COMMAND_LINE, Config, OpenFlows, PolicyConfig, Verify
from sidecar.dialing import Source
from sidecar.endpoints import adopt_port
from sidecar.errors import ConfigError, ListenError, SidecarError, TrustError
from sidecar.extensions import find_plugins
from sidecar.flow import ListenerKind
from sidecar.host_addresses import HostAddresses
from sidecar.interfaces import IDecisionStep, IFlowObserver, INamedObserver
from sidecar.names.certificates import trust
from sidecar.names.identity import CertificateProber
from sidecar.names.reactor import install
from sidecar.names.resolving import SystemResolver
from sidecar.names.verifying import Certificate, Off, Redial, Verifier
from sidecar.observe.several import Observers
from sidecar.protocols.http.auth import make_authenticator
from sidecar.protocols.http.factory import HTTPProxyFactory
from sidecar.protocols.http.intercepted import InterceptedHTTP
from sidecar.protocols.judging import Judge
from sidecar.protocols.sni import SNIProxyFactory
from sidecar.protocols.tcp import StaticRelayFactory, TransparentRelayFactory
from sidecar.runtime import Runtime
from sidecar.upstream_proxy import UpstreamProxy
from sidecar.upstreams import parse_upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from OpenSSL import SSL
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
    from twisted.python.failure import Failure

    from sidecar.interfaces import IRelayReactor
    from sidecar.observe.access_log import AccessLog
    from sidecar.protocols.http.auth import Authenticator

__all__ = ["SidecarService", "building", "fail", "trusted"]


@contextmanager
def building() -> Iterator[None]:
    """Have the garbage collector wait while a policy is made.

    It would walk through a hundred thousand rules again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class SidecarService(service.Service):
    """All listeners and what they share.

    Args:
        reactor: Where everything belongs.
        config: What to do.
        log: Told of each flow's end; stopped with the service.
        load: Reads the configuration again, for a reload; None for what it is now.
        source: Where the configuration is from, for errors.
    """

    name = "sidecar"
    _log_reload = Logger()

    def __init__(
        self,
        reactor: IRelayReactor,
        config: Config,
        load: Callable[[], Config] | None = None,
        log: AccessLog | None = None,
        source: str = COMMAND_LINE,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._load = load or (lambda: config)
        self._log = log
        self._source = source
        self._judge: Judge | None = None
        # The one that is asked last; earlier ones while somebody waits for them.
        self._probers: list[CertificateProber] = []
        self._ports: list[IListeningPort] = []
        self._runtime: Runtime | None = None
        self._resolver: SystemResolver | None = None
        # Whoever is closed when nobody is served any more, in this order.
        self._closing: list[Callable[[], None]] = []
        self._addresses: HostAddresses | None = None
        self._authenticator: Authenticator | None = None
        self._intercepted: InterceptedHTTP | None = None

    def privilegedStartService(self) -> None:
        """Open every listener, while low ports and capabilities can still be had.

        Raises:
            SystemExit: A listener that can't be had; one line, status 1.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        try:
            with building():
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
        self._closing.append(runtime.close)
        self._resolver = resolver = SystemResolver(runtime.reactor, runtime.reactor)
        # For forwards to host names, and whatever else Twisted's endpoints connect to.
        self._closing += [install(runtime.reactor, resolver), resolver.close]
        self._addresses = addresses = HostAddresses(runtime.reactor, self._moved)
        self._closing.append(addresses.close)
        self._judge = judge = Judge(
            config.policy.build(own=addresses.current),
            self._verifier(config.policy, runtime, resolver),
            silence=config.limits.silence,
            patience=config.limits.patience,
            steps=find_plugins(IDecisionStep, config.policy.steps),
            deadline=config.limits.connect_timeout,
        )
        if config.outbound is not None:
            self._listen(
                runtime,
                config.outbound,
                TransparentRelayFactory(
                    runtime,
                    kind=ListenerKind.OUTBOUND,
                    judge=judge,
                    http=self._intercepted_http(runtime, judge, resolver),
                ),
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
            http = self._intercepted_http(runtime, judge, resolver)
            self._listen(
                runtime, config.sni_proxy, SNIProxyFactory(runtime, judge, resolver, http=http)
            )
        if config.http_proxy is not None:
            self._listen(runtime, config.http_proxy, self._http_proxy(runtime, judge, resolver))
        for forward in config.forward:
            upstream = parse_upstream(self._reactor, forward.connect)
            self._listen(runtime, forward.listen, StaticRelayFactory(runtime, upstream))

    def _http_proxy(
        self, runtime: Runtime, judge: Judge, resolver: SystemResolver
    ) -> HTTPProxyFactory:
        http = self._config.http
        if http.auth:
            self._authenticator = make_authenticator(
                http.auth, runtime.reactor, runtime.reactor, realm=http.realm
            )
            self._closing.append(self._authenticator.close)
        upstream = None
        if http.upstream_proxy is not None:
            upstream = UpstreamProxy.parse(http.upstream_proxy, ",".join(http.no_proxy))
        factory = HTTPProxyFactory(
            runtime,
            judge,
            resolver,
            authenticator=self._authenticator,
            upstream_proxy=upstream,
            limits=http.limits,
        )
        self._closing.append(factory.close)
        return factory

    def _intercepted_http(
        self, runtime: Runtime, judge: Judge, resolver: SystemResolver
    ) -> InterceptedHTTP:
        if self._intercepted is None:
            limits = self._config.http.limits
            self._intercepted = InterceptedHTTP(runtime, judge, resolver, limits)
            self._closing.append(self._intercepted.close)
        return self._intercepted

    def _observer(self) -> IFlowObserver | None:
        observers: list[IFlowObserver] = [] if self._log is None else [self._log]
        observers += find_plugins(INamedObserver, self._config.observers)
        if len(observers) > 1:
            return Observers(observers)
        return observers[0] if observers else None

    def _verifier(
        self, policy: PolicyConfig, runtime: Runtime, resolver: SystemResolver
    ) -> Verifier:
        if policy.verify is Verify.CERTIFICATE:
            context = trusted(policy, self._source)
            prober = CertificateProber(runtime.reactor, runtime.poller, runtime.dialer, context)
            self._probers = [each for each in self._probers if each.busy]
            self._probers.append(prober)
            return Certificate(prober)
        if policy.ca_file is not None:
            # A file that can't be used is found before it is needed.
            trusted(policy, self._source)
        return Off() if policy.verify is Verify.OFF else Redial(resolver)

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
        if (
            self._judge is None
            or self._runtime is None
            or self._resolver is None
            or self._addresses is None
        ):
            return
        if self._authenticator is not None:
            # Whose password was taken away is to be out now, not in a minute.
            self._authenticator.forget()
        try:
            with building():
                config = self._load()
                policy = config.policy.build(own=self._addresses.current)
            steps = find_plugins(IDecisionStep, config.policy.steps)
            # Anew even if the configuration is the same: the authorities may not be.
            verifier = self._verifier(config.policy, self._runtime, self._resolver)
        except SidecarError as error:
            self._log_reload.error("the policy in force stays: {error}", error=str(error))
            return
        self._judge.policy = policy
        self._judge.steps = steps
        self._judge.verifier = verifier
        self._config = msgspec.structs.replace(self._config, policy=config.policy)
        if config.policy.open_flows is OpenFlows.CLOSE:
            self._judge.close_denied()
        self._log_reload.info(
            "policy reloaded: {allow} allow and {deny} deny rules",
            allow=len(config.policy.allow),
            deny=len(config.policy.deny),
        )

    def _moved(self) -> None:
        if self._judge is not None and self._addresses is not None:
            self._judge.policy = self._judge.policy.with_own(self._addresses.current)

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
        self._runtime = self._resolver = self._addresses = None
        self._authenticator = self._intercepted = None
        for close in self._closing:
            close()
        self._closing.clear()
        for prober in self._probers:
            prober.close()
        self._probers.clear()
        if self._log is not None:
            stopped.append(self._log.stop())
            self._log = None
        waiting = [one for one in stopped if isinstance(one, defer.Deferred)]
        return defer.gatherResults(waiting).addCallback(lambda _: None)


def trusted(policy: PolicyConfig, source: str) -> SSL.Context:
    """Load the certificate authorities that a policy trusts.

    Args:
        policy: Names the file of them, or none.
        source: Where the configuration is from, for the error.

    Raises:
        ConfigError: The file can't be used.
    """
    try:
        return trust(policy.ca_file)
    except TrustError as error:
        raise ConfigError(source, "policy.ca_file", error.path, error.problem) from None


def fail(error: SidecarError) -> NoReturn:
    """End twistd with one line and status 1.

    On the real standard error: twistd may have put its log in the place of
    sys.stderr.
    """
    print(f"twistd sidecar: {error}", file=sys.__stderr__)
    raise SystemExit(1)
