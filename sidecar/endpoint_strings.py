r"""The endpoint strings that sidecar adds to Twisted's.

Server: ``transparent:PORT[:interface=ADDR][:mode=auto|redirect|tproxy][:backlog=N]``
Client: ``transparent:HOST:PORT:source=ADDR[:mark=N]``
Client: ``connect:PROXYHOST:PROXYPORT:HOST:PORT[:user=NAME]
[:password=TEXT|:password-file=PATH][:timeout=SECONDS]``

Colons inside an IPv6 address are escaped as everywhere in endpoint strings:
``transparent:15001:interface=\:\:1``. This module is imported by every twistd on
the machine, so the endpoints are imported only when one is asked for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer

if TYPE_CHECKING:
    from sidecar.endpoints import TransparentClientEndpoint, TransparentServerEndpoint
    from sidecar.interfaces import IRelayReactor
    from sidecar.protocols.connect import ConnectClientEndpoint

__all__ = ["ConnectClientParser", "TransparentClientParser", "TransparentServerParser"]

_SERVER_FORM = "transparent:PORT[:interface=ADDR][:mode=auto|redirect|tproxy][:backlog=N]"
_CLIENT_FORM = "transparent:HOST:PORT:source=ADDR[:mark=N]"
_CONNECT_FORM = (
    "connect:PROXYHOST:PROXYPORT:HOST:PORT"
    "[:user=NAME][:password=TEXT|:password-file=PATH][:timeout=SECONDS]"
)
_PORT_MAX = 65535
# listen(2) takes a signed 32-bit number and caps it at net.core.somaxconn.
_BACKLOG_MAX = 2**31 - 1
_MARK_MAX = 2**32 - 1
_TIMEOUT_MAX = 3600
# Characters; a password's file is no place for anything else.
_PASSWORD_MAX = 1024
_NUMBER = re.compile(r"[0-9]{1,10}|0x[0-9a-fA-F]{1,8}")


@implementer(IPlugin, IStreamServerEndpointStringParser)
class TransparentServerParser:
    """Parses ``transparent:`` server endpoints."""

    prefix = "transparent"

    def parseStreamServer(
        self, reactor: object, *args: object, **kwargs: object
    ) -> TransparentServerEndpoint:
        """Build the endpoint.

        Raises:
            ValueError: An argument that is missing, unknown or unusable; says which.
        """
        words, options = _texts(args, kwargs)
        if len(words) != 1:
            raise ValueError(f"expected {_SERVER_FORM}")
        return self._parse(
            cast("IRelayReactor", reactor),
            words[0],
            **_known(options, _SERVER_FORM, "interface", "mode", "backlog"),
        )

    def _parse(
        self,
        reactor: IRelayReactor,
        port: str,
        interface: str = "",
        mode: str = "auto",
        backlog: str | None = None,
    ) -> TransparentServerEndpoint:
        from sidecar.addresses import parse_ip
        from sidecar.destinations import InterceptMode
        from sidecar.endpoints import BACKLOG, TransparentServerEndpoint

        modes = {known.value: known for known in InterceptMode}
        if mode not in modes:
            raise ValueError(f"mode={mode}: expected one of {', '.join(modes)}")
        return TransparentServerEndpoint(
            reactor,
            _number("port", port, 0, _PORT_MAX),
            str(parse_ip(interface)) if interface else "",
            modes[mode],
            BACKLOG if backlog is None else _number("backlog", backlog, 1, _BACKLOG_MAX),
        )


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class TransparentClientParser:
    """Parses ``transparent:`` client endpoints."""

    prefix = "transparent"

    def parseStreamClient(
        self, reactor: object, *args: object, **kwargs: object
    ) -> TransparentClientEndpoint:
        """Build the endpoint.

        Raises:
            ValueError: An argument that is missing, unknown or unusable; says which.
        """
        words, options = _texts(args, kwargs)
        if len(words) != 2 or "source" not in options:  # noqa: PLR2004 - host and port
            raise ValueError(f"expected {_CLIENT_FORM}")
        return self._parse(
            cast("IRelayReactor", reactor),
            *words,
            **_known(options, _CLIENT_FORM, "source", "mark"),
        )

    def _parse(
        self, reactor: IRelayReactor, host: str, port: str, source: str, mark: str | None = None
    ) -> TransparentClientEndpoint:
        from sidecar.addresses import SocketAddress, parse_ip, parse_port
        from sidecar.endpoints import TransparentClientEndpoint

        destination = parse_ip(host)
        origin = parse_ip(source)
        if destination.version != origin.version:
            raise ValueError(f"source={source}: not of the family of {host}")
        return TransparentClientEndpoint(
            reactor,
            SocketAddress(str(destination), parse_port(port)),
            str(origin),
            None if mark is None else _number("mark", mark, 1, _MARK_MAX),
        )


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class ConnectClientParser:
    """Parses ``connect:`` client endpoints."""

    prefix = "connect"

    def parseStreamClient(
        self, reactor: object, *args: object, **kwargs: object
    ) -> ConnectClientEndpoint:
        """Build the endpoint. A password's file is read here, once.

        Raises:
            ValueError: An argument that is missing, unknown or unusable; says which.
        """
        words, options = _texts(args, kwargs)
        words = _joined(words)
        if len(words) != 4:  # noqa: PLR2004 - twice host and port
            raise ValueError(f"expected {_CONNECT_FORM}")
        known = _known(options, _CONNECT_FORM, "user", "password", "password-file", "timeout")
        return self._parse(
            reactor, *words, **{name.replace("-", "_"): text for name, text in known.items()}
        )

    def _parse(
        self,
        reactor: object,
        proxy_host: str,
        proxy_port: str,
        host: str,
        port: str,
        user: str | None = None,
        password: str | None = None,
        password_file: str | None = None,
        timeout: str | None = None,
    ) -> ConnectClientEndpoint:
        from twisted.internet.endpoints import HostnameEndpoint

        from sidecar.addresses import Authority, parse_host, parse_port
        from sidecar.protocols.connect import TIMEOUT, ConnectClientEndpoint
        from sidecar.wire.basic import basic_authorization

        seconds = TIMEOUT if timeout is None else _number("timeout", timeout, 1, _TIMEOUT_MAX)
        if password is not None and password_file is not None:
            raise ValueError("password= and password-file=: one of them is enough")
        if password_file is not None:
            password = _read_password(password_file)
        if user is None and password is not None:
            raise ValueError(f"a password needs user=; expected {_CONNECT_FORM}")
        authorization = None if user is None else basic_authorization(user, password or "")
        proxy = HostnameEndpoint(
            reactor, str(parse_host(proxy_host)), parse_port(proxy_port), seconds
        )
        return ConnectClientEndpoint(
            cast("IRelayReactor", reactor),
            proxy,
            Authority(parse_host(host), parse_port(port)),
            authorization,
            seconds,
        )


def _joined(words: list[str]) -> list[str]:
    """Put together what Twisted has split at the colons inside of brackets."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("[") and not joined[-1].endswith("]"):
            joined[-1] += f":{word}"
        else:
            joined.append(word)
    return joined


def _read_password(path: str) -> str:
    """The one line of a file, without its end."""
    try:
        with open(path, encoding="utf-8", newline="") as file:  # noqa: PTH123 - pathlib is heavy
            text = file.read(_PASSWORD_MAX + 2)
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "not in UTF-8"
        raise ValueError(f"password-file={path}: {problem}") from None
    password = text.removesuffix("\n").removesuffix("\r")
    if not password or len(password) > _PASSWORD_MAX or "\n" in password:
        problem = f"expected one line of 1 to {_PASSWORD_MAX} characters"
        raise ValueError(f"password-file={path}: {problem}")
    return password


def _texts(args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[list[str], dict[str, str]]:
    return [str(word) for word in args], {key: str(value) for key, value in kwargs.items()}


def _known(options: dict[str, str], form: str, *known: str) -> dict[str, str]:
    for name in options:
        if name not in known:
            raise ValueError(f"{name}=: no such option; expected {form}")
    return options


def _number(name: str, text: str, least: int, most: int) -> int:
    """Read a number: decimal digits, or 0x and hex digits for marks."""
    if _NUMBER.fullmatch(text):
        number = int(text, 0) if text[:2] == "0x" else int(text, 10)
        if least <= number <= most:
            return number
    raise ValueError(f"{name}={text}: expected a number from {least} to {most}")
