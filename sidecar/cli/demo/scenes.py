"""What is shown: clients, the addresses that they dial, and what each should meet."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_network

from sidecar.addresses import SocketAddress
from sidecar.cli.demo.origins import Kind
from sidecar.cli.demo.proxy import PORT

__all__ = ["CLIENT_ADDRESSES", "ORIGIN_NETWORKS", "Meets", "Scene", "origins", "scenes"]

# All for documentation (RFC 5737, RFC 3849): nobody's.
CLIENT_ADDRESSES = (IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"))
ORIGIN_NETWORKS = tuple(
    ip_network(network) for network in ("198.51.100.0/24", "203.0.113.0/24", "2001:db8:1::/64")
)

_PAGE_4 = SocketAddress("198.51.100.10", 80)
_PAGE_6 = SocketAddress("2001:db8:1::10", 8080)
_ODD_PAGE_4 = SocketAddress("203.0.113.7", 31337)
_GREETING = SocketAddress("198.51.100.25", 25)
_COUNT_6 = SocketAddress("2001:db8:1::99", 4000)
_COUNT_4 = SocketAddress("203.0.113.99", 4000)
_NOBODY = SocketAddress("198.51.100.10", 81)
_PROXY = SocketAddress("127.0.0.1", PORT)


class Meets(Enum):
    """What should become of a client."""

    ORIGIN = "origin"
    """It reaches its server, through the proxy."""
    REFUSAL = "refusal"
    """Nobody listens there, and it is told so by a reset."""
    DENIAL = "denial"
    """It dialled the proxy itself, and is reset."""
    NOBODY = "nobody"
    """The proxy is dead, and there is no way round it."""


@dataclass(frozen=True)
class Scene:
    """One client on its way.

    Attributes:
        title: What it is about.
        command: The client, as a program with its arguments.
        dialled: Where it wants to go.
        meets: What should become of it.
    """

    title: str
    command: tuple[str, ...]
    dialled: SocketAddress
    meets: Meets = Meets.ORIGIN

    @property
    def shown(self) -> str:
        """The command as one would type it."""
        program, *arguments = self.command
        return shlex.join(["python3" if program == sys.executable else program, *arguments])


def origins(versions: frozenset[int]) -> tuple[tuple[Kind, SocketAddress], ...]:
    """The servers that there are.

    Args:
        versions: The IP versions that can be used.
    """
    wanted = (
        (Kind.HTTP, _PAGE_4),
        (Kind.HTTP, _PAGE_6),
        (Kind.HTTP, _ODD_PAGE_4),
        (Kind.GREETING, _GREETING),
        (Kind.COUNT, _COUNT_6 if 6 in versions else _COUNT_4),  # noqa: PLR2004
    )
    return tuple(each for each in wanted if each[1].ip.version in versions)


def scenes(versions: frozenset[int]) -> tuple[Scene, ...]:
    """Everything that is shown, in order; the last one is played without a proxy.

    Args:
        versions: The IP versions that can be used.
    """
    count = _COUNT_6 if 6 in versions else _COUNT_4  # noqa: PLR2004
    all_scenes = (
        Scene("A page over IPv4", _fetch(_PAGE_4, "curl"), _PAGE_4),
        Scene("A page over IPv6, another port", _fetch(_PAGE_6, "wget"), _PAGE_6),
        Scene("Any program, any port: nothing is configured", _fetch(_ODD_PAGE_4), _ODD_PAGE_4),
        Scene(
            "A server that speaks first",
            _python(f'print(s.create_connection({_pair(_GREETING)}).recv(99).decode(), end="")'),
            _GREETING,
        ),
        Scene(
            "A client that ends its half and waits for the answer",
            _python(
                f"c = s.create_connection({_pair(count)}); c.sendall(bytes(1000000)); "
                'c.shutdown(s.SHUT_WR); print(c.recv(99).decode(), end="")'
            ),
            count,
        ),
        Scene(
            "A port where nobody listens: a reset, not an empty answer",
            _python(f"s.create_connection({_pair(_NOBODY)}).recv(1)"),
            _NOBODY,
            Meets.REFUSAL,
        ),
        Scene(
            "The proxy's own port, dialled: refused, since nothing was intercepted",
            _python(f"s.create_connection({_pair(_PROXY)}).recv(1)"),
            _PROXY,
            Meets.DENIAL,
        ),
        Scene(
            "The proxy killed (SIGKILL): no way round it",
            _python(f"s.create_connection({_pair(_PAGE_4)}, timeout=1)"),
            _PAGE_4,
            Meets.NOBODY,
        ),
    )
    return tuple(scene for scene in all_scenes if scene.dialled.ip.version in versions)


def _fetch(address: SocketAddress, tool: str | None = None) -> tuple[str, ...]:
    url = f"http://{address}/".replace(":80/", "/")
    if tool is not None and shutil.which(tool) is not None:
        return (tool, "-sS", url) if tool == "curl" else (tool, "-qO-", url)
    program = f'from urllib.request import urlopen as u; print(u("{url}").read().decode(), end="")'
    return (sys.executable, "-c", program)


def _python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import socket as s; {program}")


def _pair(address: SocketAddress) -> str:
    return f'("{address.host}", {address.port})'
