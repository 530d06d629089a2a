"""Which name servers does the host ask? resolv.conf(5), read again when it changes."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NamedTuple

__all__ = ["NameServer", "NameServers", "parse_name_servers"]

_PATH = Path("/etc/resolv.conf")
_PORT = 53
# resolv.conf(5): MAXNS; and whom to ask if it names none.
_MOST = 3
_DEFAULT = "127.0.0.1"
_SIZE_MAX = 1 << 16


class NameServer(NamedTuple):
    """One that can be asked.

    Attributes:
        family: AF_INET or AF_INET6.
        sockaddr: As `socket.connect` takes it, with the zone of a link-local address.
        text: The address as it was written; what Twisted connects to.
    """

    family: socket.AddressFamily
    sockaddr: tuple[str, int] | tuple[str, int, int, int]
    text: str

    @classmethod
    def parse(cls, text: str, port: int = _PORT) -> NameServer | None:
        """Take an IP literal, maybe with a zone; None if it is none."""
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        try:
            found = socket.getaddrinfo(text, port, type=socket.SOCK_DGRAM, flags=flags)
        except (OSError, UnicodeError):
            return None
        family, _, _, _, sockaddr = found[0]
        return cls(family, sockaddr, text)  # type: ignore[arg-type]

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.sockaddr[1]


def parse_name_servers(text: str) -> tuple[NameServer, ...]:
    """The servers that a resolv.conf names, at most three; the local one if it names none."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            server = NameServer.parse(words[1])
            if server is not None:
                found.append(server)
    if not found:
        local = NameServer.parse(_DEFAULT)
        assert local is not None  # noqa: S101 - it is a literal
        found.append(local)
    return tuple(found[:_MOST])


class NameServers:
    """The host's name servers now.

    Args:
        path: A file in the format of resolv.conf(5).
    """

    def __init__(self, path: Path = _PATH) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._servers = parse_name_servers("")

    def __call__(self) -> tuple[NameServer, ...]:
        """Look whether the file has changed, and tell whom to ask."""
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if stamp != self._stamp:
                with self._path.open("rb") as file:
                    text = file.read(_SIZE_MAX).decode("ascii", "replace")
                self._servers = parse_name_servers(text)
                self._stamp = stamp
        except OSError:
            # Gone for a moment, or for good: those that were known are the best guess.
            self._stamp = None
        return self._servers
