"""Which ports `--host-port` and `--publish` bridge, and that they make sense together.

Light to import: the set-up process wants to know before it is forked.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from sidecar.addresses import parse_port
from sidecar.errors import AddressError, ConfigError, ListenError
from sidecar.sandbox.addresses import DNS_PORT, LOOPBACK, TPROXY_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["BRIDGES_MAX", "HOST_PORT", "PUBLISH", "Bridge", "Bridges", "listen"]

HOST_PORT = "--host-port"
PUBLISH = "--publish"
BRIDGES_MAX = 64
"""Of each kind: the sockets of more would not fit into one message (SCM_MAX_FD is 253)."""

# Connections that the kernel completes and keeps for us; no more than net.core.somaxconn.
_BACKLOG = 4096
_RESERVED = {
    DNS_PORT: "is the DNS server's inside",
    TPROXY_PORT: "is sidecar's own inside",
}
# The host has no IPv6, or its loopback interface hasn't.
_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class Bridge:
    """A port of loopback on one side that leads to one on the other side.

    Args:
        option: `HOST_PORT` or `PUBLISH`.
        port: Where it is listened; inside for the one, on the host for the other.
        target: Where that leads.
    """

    __slots__ = ("option", "port", "target")

    def __init__(self, option: str, port: int, target: int) -> None:
        self.option = option
        self.port = port
        self.target = target

    @property
    def text(self) -> str:
        """As the option's value has it."""
        return str(self.port) if self.port == self.target else f"{self.port}:{self.target}"

    @property
    def rule(self) -> str:
        """As the access log names what decided."""
        return f"{self.text} ({self.option})"


class Bridges:
    """All bridges of a run.

    Args:
        host_ports: From inside to the host.
        published: From the host to inside.

    Attributes:
        listeners: With `open`, for each published port the sockets on the host.
    """

    def __init__(self, host_ports: Sequence[Bridge], published: Sequence[Bridge]) -> None:
        self.host_ports = tuple(host_ports)
        self.published = tuple(published)
        self.listeners: list[tuple[Bridge, socket.socket]] = []

    @property
    def inside(self) -> list[int]:
        """The ports that are listened on inside."""
        return [each.port for each in self.host_ports]

    @classmethod
    def of(cls, host_ports: Iterable[str], published: Iterable[str]) -> Bridges:
        """Read what the options say.

        Args:
            host_ports, published: ``N`` or ``N:M`` each.

        Raises:
            ConfigError: Something can't be used; says which and why.
        """
        found = cls(_read(HOST_PORT, host_ports), _read(PUBLISH, published))
        inside = {each.port: each for each in found.host_ports}
        outside = {each.port: each for each in found.published}
        for each in found.host_ports:
            _not_reserved(each, each.port)
            if each.target in outside:
                raise _error(each, f"leads to {PUBLISH} {outside[each.target].text}: take another")
        for each in found.published:
            _not_reserved(each, each.target)
            if each.target in inside:
                raise _error(each, f"leads to {HOST_PORT} {inside[each.target].text}: take another")
        return found

    def open(self) -> None:
        """Listen on the host, for what is published.

        Raises:
            ListenError: A port can't be had. None is open then.
        """
        try:
            for bridge in self.published:
                self._open(bridge)
        except ListenError:
            self.close()
            raise

    def _open(self, bridge: Bridge) -> None:
        for host in LOOPBACK:
            try:
                sock = listen(host, bridge.port)
            except OSError as error:
                if host != LOOPBACK[0] and error.errno in _NO_SUCH_FAMILY:
                    continue
                raise _listen_error(bridge, host, error) from None
            self.listeners.append((bridge, sock))

    def close(self) -> None:
        """Close what `open` opened."""
        for _, sock in self.listeners:
            sock.close()
        self.listeners.clear()


def listen(host: str, port: int) -> socket.socket:
    """Listen on a loopback address, in the calling process's network namespace.

    Returns:
        Non-blocking.

    Raises:
        OSError: The port is taken, or the kernel refused.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # What connections of an earlier run have left in TIME_WAIT is no obstacle.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _read(option: str, texts: Iterable[str]) -> list[Bridge]:
    found: dict[int, Bridge] = {}
    for text in texts:
        port, colon, target = text.partition(":")
        try:
            number = parse_port(port)
            bridge = Bridge(option, number, parse_port(target) if colon else number)
        except AddressError as error:
            problem = f"{error}; write PORT or PORT:PORT"
            raise ConfigError("command line", option, text, problem) from None
        if number in found:
            raise _error(bridge, f"port {number} is given twice")
        found[number] = bridge
    if len(found) > BRIDGES_MAX:
        raise ConfigError("command line", option, None, f"at most {BRIDGES_MAX} can be given")
    return list(found.values())


def _not_reserved(bridge: Bridge, port: int) -> None:
    if port in _RESERVED:
        raise _error(bridge, f"port {port} {_RESERVED[port]}: take another")


def _error(bridge: Bridge, problem: str) -> ConfigError:
    return ConfigError("command line", bridge.option, bridge.text, problem)


def _listen_error(bridge: Bridge, host: str, error: OSError) -> ListenError:
    where = f"[{host}]:{bridge.port}" if ":" in host else f"{host}:{bridge.port}"
    problem = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        problem = f"another program has this port; take another: {PUBLISH} PORT:{bridge.target}"
    elif error.errno in {errno.EACCES, errno.EPERM}:
        problem = (
            "ports that low need CAP_NET_BIND_SERVICE; take a higher one:"
            f" {PUBLISH} PORT:{bridge.target}"
        )
    return ListenError(f"{where} ({PUBLISH} {bridge.text})", problem)
