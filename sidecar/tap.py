"""``twistd sidecar``: its options, and the service that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import msgspec
from twisted.internet.endpoints import serverFromString
from twisted.python import usage

from sidecar.config import COMMAND_LINE, DEFAULT_HTTP_PROXY, Config, load
from sidecar.endpoints import TransparentServerEndpoint
from sidecar.errors import AddressError, CheckerError, ConfigError, SidecarError
from sidecar.no_proxy import NoProxy
from sidecar.observe.access_log import AccessLog
from sidecar.observe.line_writer import open_log
from sidecar.protocols.http.checkers import make_checker
from sidecar.protocols.http.workers import Workers
from sidecar.service import SidecarService, building, fail, trusted
from sidecar.upstream_proxy import UpstreamProxy
from sidecar.upstreams import parse_upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.application.service import IService

    from sidecar.config import HttpConfig
    from sidecar.interfaces import IRelayReactor

__all__ = ["Options", "makeService"]


class Options(usage.Options):
    """The command line of ``twistd sidecar``."""

    synopsis = "[options]"
    longdesc = (
        "Intercepts TCP connections, or serves as HTTP proxy, and relays each to where it was"
        " going, if it may. With none of --outbound, --inbound, --http-proxy, --sni-proxy and"
        " --forward, here or in the file, it is --http-proxy"
        f" {DEFAULT_HTTP_PROXY}; rules that bring connections here: sidecar rules --help."
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
        ["sni-proxy", None, None, "endpoint for TLS and HTTP clients, each relayed to its name"],
        ["http-proxy", None, None, f"endpoint for an HTTP proxy, like {DEFAULT_HTTP_PROXY}"],
        [
            "upstream-proxy",
            None,
            None,
            "the HTTP proxy's way out: http://[USER:PASSWORD@]HOST:PORT",
        ],
        ["default", None, None, "what happens to what no rule matches: allow, deny or public"],
        ["access-log", None, None, "file for a JSON line per connection; - is standard output"],
    ]
    optFlags: ClassVar[list[list[object]]] = [
        ["log-paths", None, "log HTTP requests with their paths and queries"],
    ]
    compData = usage.Completions(optActions={"config": usage.CompleteFiles("*.toml")})

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["forward"] = []
        self["allow"] = []
        self["deny"] = []
        self["proxy-auth"] = []
        self["no-proxy"] = []

    def opt_allow(self, text: str) -> None:
        """Allow what matches: HOST[:PORTS], like "*.example.org:443". May be repeated."""
        self["allow"].append(text)

    def opt_deny(self, text: str) -> None:
        """Deny what matches, whatever is allowed. May be repeated."""
        self["deny"].append(text)

    def opt_proxy_auth(self, text: str) -> None:
        """Let the HTTP proxy ask for passwords: file:PATH (htpasswd), memory:USER:PASSWORD
        or any other checker of Twisted's. May be repeated.
        """  # noqa: D205 - usage.Options prints it all
        self["proxy-auth"].append(text)

    def opt_no_proxy(self, text: str) -> None:
        """Where --upstream-proxy isn't used: hosts and networks, with commas between them,
        like ".corp.example,10.0.0.0/8". May be repeated.
        """  # noqa: D205 - usage.Options prints it all
        self["no-proxy"].append(text)

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
            log_paths=bool(self["log-paths"]),
            sni_proxy=self["sni-proxy"],
            http_proxy=self["http-proxy"],
            default=self["default"],
            allow=self["allow"],
            deny=self["deny"],
            proxy_auth=self["proxy-auth"],
            upstream_proxy=self["upstream-proxy"],
            no_proxy=self["no-proxy"],
        )
        if not config.listens:
            config = msgspec.structs.replace(config, http_proxy=DEFAULT_HTTP_PROXY)
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
        for key in ("sni_proxy", "http_proxy"):
            description = getattr(config, key)
            if description is not None:
                option = key.replace("_", "-")
                place = self._place(f"--{option}" if self[option] is not None else None, key)
                _check(serverFromString, reactor, *place, description)
        from_file = len(config.forward) - len(self["forward"])
        for index, forward in enumerate(config.forward):
            flag = "--forward" if index >= from_file else None
            place = self._place(flag, f"forward[{index}].listen")
            _check(serverFromString, reactor, *place, forward.listen)
            place = self._place(flag, f"forward[{index}].connect")
            _check(parse_upstream, reactor, *place, forward.connect)

    def check_http(self, reactor: object, config: Config) -> None:
        """See that the HTTP proxy's checkers and its upstream proxy can be used.

        Raises:
            ConfigError: One that can't; shows no password.
        """
        http = config.http
        from_file = len(http.auth) - len(self["proxy-auth"])
        places = [
            self._place("--proxy-auth" if index >= from_file else None, f"http.auth[{index}]")
            for index in range(len(http.auth))
        ]
        flag = "--upstream-proxy" if self["upstream-proxy"] is not None else None
        upstream = self._place(flag, "http.upstream_proxy")
        if config.http_proxy is None:
            unused = [*places, *([upstream] if http.upstream_proxy is not None else [])]
            for place in unused[:1]:
                raise ConfigError(*place, None, "is for --http-proxy, which isn't given")
        workers = Workers(cast("IRelayReactor", reactor))
        for place, description in zip(places, http.auth, strict=True):
            _check_checker(description, workers, place)
        self._check_upstream(http, upstream)

    def _check_upstream(self, http: HttpConfig, place: tuple[str, str]) -> None:
        try:
            no_proxy = NoProxy(",".join(http.no_proxy))
        except AddressError as error:
            given = self._place("--no-proxy" if self["no-proxy"] else None, "http.no_proxy")
            raise ConfigError(*given, error.text, error.problem) from None
        if http.upstream_proxy is None:
            if no_proxy.text:
                given = self._place("--no-proxy" if self["no-proxy"] else None, "http.no_proxy")
                raise ConfigError(*given, None, "is for --upstream-proxy, which isn't given")
            return
        try:
            UpstreamProxy.parse(http.upstream_proxy)
        except AddressError as error:
            # Its text is shown without user and password.
            raise ConfigError(*place, error.text, error.problem) from None

    @property
    def source(self) -> str:
        """Where what no flag says is from."""
        return self["config"] or COMMAND_LINE

    def _place(self, flag: str | None, key: str) -> tuple[str, str]:
        """Whence a value came: the command line and its flag, or the file and its key."""
        return (self["config"], key) if flag is None else (COMMAND_LINE, flag)


def _check_checker(description: str, workers: Workers, place: tuple[str, str]) -> None:
    try:
        make_checker(description, workers)
    except CheckerError as error:
        raise ConfigError(*place, None, error.problem) from None


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


def makeService(options: Options) -> IService:
    """Make the service that ``twistd sidecar`` runs.

    The access log is opened here: before twistd logs its own first line, which must
    not stand in an access log on standard output.

    Raises:
        SystemExit: An unusable configuration; one line, status 1.
    """
    from twisted.internet import reactor

    try:
        with building():
            config = options.to_config()
        options.check_endpoints(reactor, config)
        options.check_http(reactor, config)
        if config.policy.ca_file is not None:
            trusted(config.policy, options.source)
        log = _open_log(options, config, cast("IRelayReactor", reactor))
    except SidecarError as error:
        fail(error)
    return SidecarService(
        cast("IRelayReactor", reactor), config, options.to_config, log, options.source
    )


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
    return AccessLog(
        descriptor, reactor, backlog=config.limits.access_log_backlog, paths=config.log_paths
    )
