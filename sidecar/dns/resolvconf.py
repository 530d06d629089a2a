"""Which name servers does the host ask, and what does it append to names? resolv.conf(5).

The file is read again when it changes.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NamedTuple

from sidecar.addresses import parse_host
from sidecar.errors import AddressError

__all__ = ["NameServer", "NameServers", "parse_dots", "parse_name_servers", "parse_search"]

_PATH = Path("/etc/resolv.conf")
_PORT = 53
# resolv.conf(5): MAXNS; and whom to ask if it names none.
_MOST = 3
_DEFAULT = "127.0.0.1"
_SIZE_MAX = 1 << 16
# Domains of a search list that count; glibc takes as many as there are.
_DOMAINS_MAX = 64
# resolv.conf(5): what `ndots` is if nobody says, and at most.
_DOTS, _DOTS_MAX = 1, 15


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


def parse_search(text: str, hostname: str) -> tuple[str, ...]:
    """The domains that resolvers append to names, canonical.

    Args:
        text: A resolv.conf. Of ``search`` and ``domain``, the last counts.
        hostname: The machine's: if there is neither, what follows its first dot is it.
    """
    domains = [hostname.partition(".")[2]]
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in {"search", "domain"}:
            domains = words[1:] if words[0] == "search" else words[1:2]
    found = []
    for domain in domains[:_DOMAINS_MAX]:
        try:
            host = parse_host(domain)
        except AddressError:
            continue
        if isinstance(host, str):
            found.append(host)
    return tuple(found)


def parse_dots(text: str) -> int:
    """How many dots a name must have to be taken as it is (``ndots``); the last word counts."""
    dots = _DOTS
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["options"]:
            for word in words[1:]:
                key, _, value = word.partition(":")
                if key == "ndots" and value.isdecimal() and value.isascii():
                    dots = min(int(value), _DOTS_MAX)
    return dots


class NameServers:
    """The host's name servers now, and its search list.

    Args:
        path: A file in the format of resolv.conf(5).
    """

    def __init__(self, path: Path = _PATH) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._servers = parse_name_servers("")
        self._search = parse_search("", socket.gethostname())
        self._dots = _DOTS

    def __call__(self) -> tuple[NameServer, ...]:
        """Look whether the file has changed, and tell whom to ask."""
        self._look()
        return self._servers

    def search(self) -> tuple[str, ...]:
        """Likewise, tell which domains programs append to names."""
        self._look()
        return self._search

    def dots(self) -> int:
        """Likewise, tell how many dots a name must have to be asked for as it is."""
        self._look()
        return self._dots

    def _look(self) -> None:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if stamp != self._stamp:
                with self._path.open("rb") as file:
                    text = file.read(_SIZE_MAX).decode("ascii", "replace")
                self._servers = parse_name_servers(text)
                self._search = parse_search(text, socket.gethostname())
                self._dots = parse_dots(text)
                self._stamp = stamp
        except OSError:
            # Gone for a moment, or for good: those that were known are the best guess.
            self._stamp = None
