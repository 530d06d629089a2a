"""``twistd sidecar``: its options, and the service that they make."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, ClassVar, NoReturn, cast

from twisted.application import service
from twisted.internet import defer
from twisted.internet.endpoints import serverFromString
from twisted.python import usage

from sidecar.config import COMMAND_LINE, Config, load
from sidecar.dialing import Source
from sidecar.endpoints import TransparentServerEndpoint, adopt_port
from sidecar.errors import ConfigError, ListenError, SidecarError
from sidecar.flow import ListenerKind
from sidecar.observe.access_log import AccessLog
from sidecar.observe.line_writer import open_log
from sidecar.protocols.tcp import StaticRelayFactory, TransparentRelayFactory
from sidecar.runtime import Runtime
from sidecar.upstreams import parse_upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
    from twisted.python.failure import Failure

    from sidecar.interfaces import IRelayReactor

__all__ = ["Options", "SidecarService", "makeService"]


class Options(usage.Options):
    """The command line of ``twistd sidecar``."""

    synopsis = "[options]"
    longdesc = (
        "Intercepts TCP connections and relays each to where it was going. At least one"
        " of --outbound, --inbound and --forward, here or in the file, is needed; rules"
        " that bring connections here: sidecar rules --help."
    )
    optParameters: ClassVar[list[list[object]]] = [
        ["config", "c", None, "TOML file with any of the settings below and more"],
        [
            "outbound",
            None,
            None,
            "endpoint for connections that programs here make, like transparent:15001",
        ],
        [
            "inbound",
            None,
            None,
            "endpoint for connections that arrive for programs here, like transparent:15006",
        ],
        ["access-log", None, None, "file for a JSON line per connection; - is standard output"],
    ]
    compData = usage.Completions(optActions={"config": usage.CompleteFiles("*.toml")})

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["forward"] = []

    def opt_forward(self, text: str) -> None:
        """Relay one port to one place: two endpoint strings, as in
        "tcp:8001:interface=127.0.0.1 tcp:10.0.0.1:5432". May be repeated.
        """  # noqa: D205 - usage.Options prints it all
        self["forward"].append(text)

    def to_config(self) -> Config:
        """The whole configuration, file and flags.

        Raises:
            ConfigError: A file or a value that can't be used.
        """
        config = load(
            self["config"],
            outbound=self["outbound"],
            inbound=self["inbound"],
            forward=self["forward"],
            access_log=self["access-log"],
        )
        if not (config.outbound or config.inbound or config.forward):
            raise ConfigError(
                self["config"] or COMMAND_LINE,
                None,
                None,
                "nothing to listen on; give --outbound, --inbound or --forward",
            )
        return config

    def check_endpoints(self, reactor: object, config: Config) -> None:
        """Parse every endpoint string, while it is known where it came from.

        Raises:
            ConfigError: One that doesn't parse.
        """
        for key in ("outbound", "inbound"):
            description = getattr(config, key)
            if description is not None:
                place = self._place(f"--{key}" if self[key] is not None else None, key)
                _check(_transparent_endpoint, reactor, *place, description)
        from_file = len(config.forward) - len(self["forward"])
        for index, forward in enumerate(config.forward):
            flag = "--forward" if index >= from_file else None
            place = self._place(flag, f"forward[{index}].listen")
            _check(serverFromString, reactor, *place, forward.listen)
            place = self._place(flag, f"forward[{index}].connect")
            _check(parse_upstream, reactor, *place, forward.connect)

    def _place(self, flag: str | None, key: str) -> tuple[str, str]:
        """Whence a value came: the command line and its flag, or the file and its key."""
        return (self["config"], key) if flag is None else (COMMAND_LINE, flag)


def _transparent_endpoint(reactor: object, description: str) -> None:
    if not isinstance(serverFromString(reactor, description), TransparentServerEndpoint):
        problem = "no other endpoint knows where a connection wanted to go"
        raise ValueError(f"expected transparent:PORT; {problem}")  # noqa: TRY004 - a value's


def _check(
    parse: Callable[[object, str], object], reactor: object, source: str, key: str, text: str
) -> None:
    try:
        parse(reactor, text)
    except (ValueError, TypeError, KeyError, IndexError, LookupError, OSError) as error:
        problem = str(error) or "not an endpoint string"
        raise ConfigError(source, key, text, problem) from None


class SidecarService(service.Service):
    """All listeners and what they share.

    Args:
        reactor: Where everything belongs.
        config: What to do.
        log: Told of each flow's end; stopped with the service.
    """

    name = "sidecar"

    def __init__(
        self, reactor: IRelayReactor, config: Config, log: AccessLog | None = None
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._log = log
        self._ports: list[IListeningPort] = []
        self._runtime: Runtime | None = None

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
            self._log,
            mark=config.mark or None,
            limits=config.limits,
        )
        if config.outbound is not None:
            self._listen(
                runtime,
                config.outbound,
                TransparentRelayFactory(runtime, kind=ListenerKind.OUTBOUND),
            )
        if config.inbound is not None:
            chosen = config.inbound_source
            source = Source(str(chosen.ipv4), str(chosen.ipv6)) if chosen.enabled else None
            self._listen(
                runtime,
                config.inbound,
                TransparentRelayFactory(runtime, kind=ListenerKind.INBOUND, source=source),
            )
        for forward in config.forward:
            upstream = parse_upstream(self._reactor, forward.connect)
            self._listen(runtime, forward.listen, StaticRelayFactory(runtime, upstream))

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
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None
        if self._log is not None:
            stopped.append(self._log.stop())
            self._log = None
        waiting = [one for one in stopped if isinstance(one, defer.Deferred)]
        return defer.gatherResults(waiting).addCallback(lambda _: None)


def makeService(options: Options) -> service.IService:
    """Make the service that ``twistd sidecar`` runs.

    The access log is opened here: before twistd logs its own first line, which must
    not stand in an access log on standard output.

    Raises:
        SystemExit: An unusable configuration; one line, status 1.
    """
    from twisted.internet import reactor

    try:
        config = options.to_config()
        options.check_endpoints(reactor, config)
        log = _open_log(options, config, cast("IRelayReactor", reactor))
    except SidecarError as error:
        fail(error)
    return SidecarService(cast("IRelayReactor", reactor), config, log)


def _open_log(options: Options, config: Config, reactor: IRelayReactor) -> AccessLog | None:
    if config.access_log is None:
        return None
    try:
        descriptor = open_log(config.access_log)
    except OSError as error:
        flag = options["access-log"] is not None
        source, key = (COMMAND_LINE, "--access-log") if flag else (options["config"], "access_log")
        problem = f"can't be opened: {error.strerror}"
        raise ConfigError(source, key, config.access_log, problem) from None
    return AccessLog(descriptor, reactor, backlog=config.limits.access_log_backlog)


def fail(error: SidecarError) -> NoReturn:
    """End twistd with one line and status 1.

    On the real standard error: twistd may have put its log in the place of
    sys.stderr.
    """
    print(f"twistd sidecar: {error}", file=sys.__stderr__)
    raise SystemExit(1)
