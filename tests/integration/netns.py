"""Network namespaces of the tests' own: made, entered, wired up and removed.

A socket belongs for ever to the namespace of the thread that made it, and a child
process starts in the namespace of the thread that forked it. So a test enters a
namespace only for the moment of making a socket or starting a program.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "BLACK_HOLE",
    "DEADLINE",
    "FAMILIES",
    "UNROUTABLE",
    "Family",
    "Gateway",
    "Host",
    "Namespace",
    "Pair",
    "gateway",
    "pair",
    "why_impossible",
]

Family = Literal["ipv4", "ipv6"]
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")

# Seconds until anything that a test waits for counts as never coming. Not a
# measure of speed: what is waited for takes milliseconds.
DEADLINE = 20.0

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NAMES = Path("/run/netns")  # where ip-netns(8) keeps them

# To these addresses no topology here has a route (documentation ranges: RFC 5737, 3849).
UNROUTABLE: dict[Family, str] = {"ipv4": "198.51.100.1", "ipv6": "2001:db8:dead::1"}
# What is sent here is lost without an answer.
BLACK_HOLE: dict[Family, str] = {"ipv4": "203.0.113.1", "ipv6": "2001:db8:b1ac::1"}


def why_impossible() -> str | None:
    """Why no network namespace can be made here; None if one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"sc{os.getpid()}try"
    tried = _ip("netns", "add", name, check=False)
    if tried.returncode:
        return f"no network namespaces: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return None


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", *arguments], check=check, capture_output=True, text=True, timeout=DEADLINE
    )


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


class Namespace:
    """A network namespace, with its loopback up.

    Args:
        label: A few letters that tell it from this process's others.

    Attributes:
        name: As `ip netns` lists it.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._elsewhere: Namespace | None = None
        self._far: set[str] = set()
        self.name = f"sc{os.getpid()}{label}"
        _ip("netns", "add", self.name)
        # Only what was made is ever removed.
        self._path = _NAMES / self.name
        self.ip("link", "set", "lo", "up")

    def remove(self) -> None:
        """Remove it; its interfaces go once its last process and socket are gone."""
        if self._elsewhere is not None:
            self._elsewhere.remove()
        _ip("netns", "del", self.name)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread, and it alone, into the namespace."""
        with ExitStack() as stack:
            # Not /proc/self: that is the main thread.
            home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, home)
            there = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, there)
            _setns(there)
            stack.callback(_setns, home)
            yield

    def ip(self, *arguments: str) -> str:
        """Configure its interfaces and routes as `ip` does; return what that prints."""
        return _ip("-n", self.name, *arguments).stdout

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        check: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = DEADLINE,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program there to its end and take what it prints.

        Raises:
            AssertionError: It failed and `check` is True; says what it printed.
        """
        with self.entered():
            done = subprocess.run(
                command,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                check=False,
                capture_output=True,
                text=True,
                cwd=cwd,
                env=env,
                timeout=timeout,
            )
        if check and done.returncode:
            raise AssertionError(f"{command} → {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def sysctl(self, key: str, value: str) -> None:
        """Set a kernel parameter of the namespace; `key` with slashes, below /proc/sys/net."""
        with self.entered():
            Path("/proc/sys/net", key).write_text(value, encoding="ascii")

    @property
    def elsewhere(self) -> Namespace:
        """Another machine, on a wire with this one."""
        if self._elsewhere is None:
            far = self._elsewhere = Namespace(f"{self._label}far")
            _wire(self, "wire", far, "wire")
            for namespace, number in ((self, 1), (far, 2)):
                _address(Host(namespace, f"10.79.0.{number}", f"fd79::{number}"), "wire")
        return self._elsewhere

    def reach(self, address: str) -> None:
        """Have an address elsewhere: who listens there is in reach from here.

        Args:
            address: With or without a prefix length, which is that of a single one.
        """
        host = address.partition("/")[0]
        bits, gateway = (128, "fd79::2") if ":" in host else (32, "10.79.0.2")
        self.elsewhere.ip("addr", "add", f"{host}/{bits}", "dev", "lo", "nodad")
        self.ip("route", "add", host, "via", gateway)
        self._far.add(host)

    def tcp_socket(self, family: socket.AddressFamily) -> socket.socket:
        """Make a TCP socket there that gives up after the deadline."""
        with self.entered():
            made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(DEADLINE)
        return made

    def listen(self, address: SocketAddress, backlog: int = 128) -> socket.socket:
        """Listen there, on exactly this address; elsewhere, if it is one of there."""
        place = self.elsewhere if address.host in self._far else self
        with ExitStack() as stack:
            listener = stack.enter_context(place.tcp_socket(address.family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
            listener.listen(backlog)
            stack.pop_all()
        return listener

    def connect(self, address: SocketAddress, source: SocketAddress | None = None) -> socket.socket:
        """Connect from there."""
        with ExitStack() as stack:
            connection = stack.enter_context(self.tcp_socket(address.family))
            if source is not None:
                connection.bind((source.host, source.port))
            connection.connect((address.host, address.port))
            stack.pop_all()
        return connection


@dataclass(frozen=True)
class Host:
    """A namespace and the addresses that others reach it by.

    Attributes:
        namespace: Where its programs run.
        ipv4, ipv6: Its addresses, without a prefix length.
    """

    namespace: Namespace
    ipv4: str
    ipv6: str

    def at(self, family: Family, port: int) -> SocketAddress:
        """Name one of its ports."""
        return SocketAddress(self.ipv4 if family == "ipv4" else self.ipv6, port)


@dataclass(frozen=True)
class Pair:
    """Two hosts on one wire; the first has no other way out than the second.

    Attributes:
        near: Where the sidecar goes.
        far: A plain host. Has no way to `UNROUTABLE` and says so (ICMP);
            doesn't say so of `BLACK_HOLE`.
    """

    near: Host
    far: Host


@dataclass(frozen=True)
class Gateway:
    """Client and server that reach each other through a router.

    Attributes:
        client, server: Plain hosts.
        router: Where the sidecar goes; `ipv4` and `ipv6` are the client's side of it.
            Has no way to `UNROUTABLE`.
        router_to_server: The same router as the server sees it.
    """

    client: Host
    router: Host
    router_to_server: Host
    server: Host


def _wire(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    left.ip(
        *("link", "add", left_name, "type", "veth"),
        *("peer", "name", right_name, "netns", right.name),
    )
    for namespace, name in ((left, left_name), (right, right_name)):
        # Duplicate address detection would make addresses unusable for a second.
        namespace.sysctl(f"ipv6/conf/{name}/accept_dad", "0")
        namespace.ip("link", "set", name, "up")


def _address(host: Host, interface: str) -> None:
    host.namespace.ip("addr", "add", f"{host.ipv4}/24", "dev", interface)
    host.namespace.ip("addr", "add", f"{host.ipv6}/64", "dev", interface, "nodad")


def _forward(namespace: Namespace) -> None:
    namespace.sysctl("ipv4/ip_forward", "1")
    namespace.sysctl("ipv6/conf/all/forwarding", "1")
    for address in UNROUTABLE.values():
        namespace.ip("route", "add", "unreachable", address)
    for address in BLACK_HOLE.values():
        namespace.ip("route", "add", "blackhole", address)
    # Say so every time, not once a second.
    namespace.sysctl("ipv4/icmp_ratelimit", "0")
    namespace.sysctl("ipv6/icmp/ratelimit", "0")


def _route(namespace: Namespace, via: Host) -> None:
    for gateway_address in (via.ipv4, via.ipv6):
        namespace.ip("route", "add", "default", "via", gateway_address)


@contextmanager
def _namespaces(*labels: str) -> Iterator[list[Namespace]]:
    with ExitStack() as stack:
        made = []
        for label in labels:
            namespace = Namespace(label)
            stack.callback(namespace.remove)
            made.append(namespace)
        yield made


@contextmanager
def pair(label: str = "p") -> Iterator[Pair]:
    """Make a `Pair`, and remove it whatever happens."""
    with _namespaces(f"{label}near", f"{label}far") as (near_namespace, far_namespace):
        near = Host(near_namespace, "10.71.0.1", "fd71::1")
        far = Host(far_namespace, "10.71.0.2", "fd71::2")
        _wire(near.namespace, "eth0", far.namespace, "eth0")
        for host in (near, far):
            _address(host, "eth0")
        _forward(far.namespace)
        _route(near.namespace, via=far)
        yield Pair(near, far)


@contextmanager
def gateway(label: str = "g") -> Iterator[Gateway]:
    """Make a `Gateway`, and remove it whatever happens."""
    with _namespaces(f"{label}cli", f"{label}gw", f"{label}srv") as (inside, middle, outside):
        client = Host(inside, "10.72.0.2", "fd72::2")
        router = Host(middle, "10.72.0.1", "fd72::1")
        router_to_server = Host(middle, "10.73.0.1", "fd73::1")
        server = Host(outside, "10.73.0.2", "fd73::2")
        _wire(inside, "eth0", middle, "eth0")
        _wire(middle, "eth1", outside, "eth0")
        for host, interface in (
            (client, "eth0"),
            (router, "eth0"),
            (router_to_server, "eth1"),
            (server, "eth0"),
        ):
            _address(host, interface)
        _forward(middle)
        _route(inside, via=router)
        _route(outside, via=router_to_server)
        yield Gateway(client, router, router_to_server, server)
