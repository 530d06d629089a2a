r"""The endpoint strings that sidecar adds to Twisted's.

Server: ``transparent:PORT[:interface=ADDR][:mode=auto|redirect|tproxy][:backlog=N]``
Client: ``transparent:HOST:PORT:source=ADDR[:mark=N]``

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

__all__ = ["TransparentClientParser", "TransparentServerParser"]

_SERVER_FORM = "transparent:PORT[:interface=ADDR][:mode=auto|redirect|tproxy][:backlog=N]"
_CLIENT_FORM = "transparent:HOST:PORT:source=ADDR[:mark=N]"
_PORT_MAX = 65535
# listen(2) takes a signed 32-bit number and caps it at net.core.somaxconn.
_BACKLOG_MAX = 2**31 - 1
_MARK_MAX = 2**32 - 1
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
