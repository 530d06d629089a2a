"""What the kernel can: each tried in a throw-away network namespace, as exec and rules do it."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from sidecar.addresses import SocketAddress
from sidecar.errors import NamespaceError, SidecarError
from sidecar.linux import OWN_MARK
from sidecar.linux.namespaces import set_up_loopback
from sidecar.linux.netfilter import lifecycle
from sidecar.linux.netfilter.model import OUTBOUND_PORT, Mode, RuleSet
from sidecar.linux.processes import open_diag
from sidecar.linux.sockopt import original_destination, set_mark, set_transparent
from sidecar.linux.syscalls import CLONE_NEWNS, CLONE_NEWPID, unshare
from sidecar.sandbox.addresses import EVERYWHERE, SOURCE_IPV4, SOURCE_IPV6_UNIQUE_LOCAL
from sidecar.sandbox.listeners import open_listeners
from sidecar.sandbox.mounts import mount_proc
from sidecar.sandbox.privileges import give_up_privileges
from sidecar.sandbox.rules import install_rules

if TYPE_CHECKING:
    from sidecar.sandbox.handover import Listeners

__all__ = [
    "diagnose_sockets",
    "find_original_destination",
    "mark",
    "mount_namespace",
    "network_namespace",
    "pid_namespace",
    "redirect",
    "seccomp",
    "tproxy",
    "tproxy_of_others",
    "transparent_socket",
]

# Seconds; what is waited for has happened already, on loopback.
_PATIENCE = 2.0
# Nobody's (RFC 5737, RFC 3849).
_NOBODY = {4: "198.51.100.1", 6: "2001:db8:1::1"}
_PORT = 443
_NETWORKS = tuple(ip_network(each) for each in ("198.51.100.0/24", "2001:db8:1::/64"))
_IPV6 = 6


def network_namespace() -> str:
    """Lo, addresses, and routes that make every address local."""
    versions = set_up_loopback([SOURCE_IPV4, SOURCE_IPV6_UNIQUE_LOCAL], EVERYWHERE)
    return "made one, with loopback" + (" and IPv6" if _IPV6 in versions else "; no IPv6")


def mount_namespace() -> str:
    """A mount namespace, in which name services' sockets can be hidden."""
    unshare(CLONE_NEWNS)
    return "made one"


def pid_namespace() -> str:
    """A pid namespace with a /proc of its own."""
    unshare(CLONE_NEWNS | CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        number = 255
        try:
            mount_proc()
            number = 0
        except OSError as error:
            number = error.errno or 255
        finally:
            os._exit(number)
    _, status = os.waitpid(pid, 0)
    number = os.waitstatus_to_exitcode(status)
    if number:
        raise NamespaceError(
            f"made one, but /proc can't be mounted in it: {os.strerror(number)}",
            "start the container with --security-opt systempaths=unconfined",
        )
    return "made one, with a /proc of its own"


def tproxy(version: int) -> str:
    """The sandbox's own rules, and a connection that they catch."""
    versions = set_up_loopback([SOURCE_IPV4, SOURCE_IPV6_UNIQUE_LOCAL], EVERYWHERE)
    _require(version, versions)
    install_rules()
    listeners = open_listeners()
    with ExitStack() as stack:
        stack.callback(listeners.close)
        return _caught(listeners, version)


def _caught(listeners: Listeners, version: int) -> str:
    to = SocketAddress(_NOBODY[version], _PORT)
    with _dial(to), _accept(listeners.tcp) as connection:
        where = SocketAddress.from_kernel(connection.getsockname())
    if where != to:
        raise NamespaceError(f"a connection to {to} was accepted as {where}", "use another kernel")
    return f"a connection to {to} was caught"


def tproxy_of_others(version: int) -> str:
    """The rules of ``sidecar rules apply --mode tproxy``, and a connection that they catch."""
    to = SocketAddress(_NOBODY[version], _PORT)
    with _caught_by(Mode.TPROXY, version) as connection:
        where = SocketAddress.from_kernel(connection.getsockname())
    if where != to:
        raise NamespaceError(f"a connection to {to} was accepted as {where}", "use another kernel")
    return f"a connection to {to} was caught"


def redirect(version: int) -> str:
    """The rules of ``sidecar rules apply --mode redirect``, and a connection that they catch."""
    with _caught_by(Mode.REDIRECT, version):
        return f"a connection to {SocketAddress(_NOBODY[version], _PORT)} was caught"


def find_original_destination() -> str:
    """Conntrack, asked where a redirected connection was going."""
    to = SocketAddress(_NOBODY[4], _PORT)
    with _caught_by(Mode.REDIRECT, 4) as connection:
        found = original_destination(connection, peer_is_ipv4=True)
    if found != to:
        raise NamespaceError(f"it says {found} for {to}", "use another kernel")
    return f"conntrack says where: {found}"


def _caught_by(mode: Mode, version: int) -> socket.socket:
    versions = set_up_loopback([SOURCE_IPV4, SOURCE_IPV6_UNIQUE_LOCAL], _NETWORKS)
    _require(version, versions)
    with socket.socket(_family(version), socket.SOCK_STREAM) as listener:
        if mode is Mode.TPROXY:
            set_transparent(listener)
        listener.bind(("::" if version == _IPV6 else "0.0.0.0", OUTBOUND_PORT))  # noqa: S104
        listener.listen()
        lifecycle.apply(RuleSet(mode=mode, inbound_port=None))
        with _dial(SocketAddress(_NOBODY[version], _PORT)):
            return _accept(listener)


def transparent_socket() -> str:
    """IP_TRANSPARENT, by which one may use addresses that are not the host's."""
    set_up_loopback([ip_address("192.0.2.1")])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        set_transparent(sock)
        sock.bind((_NOBODY[4], 0))
    return "bound to an address that isn't the host's"


def mark() -> str:
    """SO_MARK, by which rules tell sidecar's own packets."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        set_mark(sock, OWN_MARK)
    return f"set to {OWN_MARK:#x}"


def seccomp() -> str:
    """All that the sandboxed programs lose, the filter of system calls included."""
    give_up_privileges()
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except OSError:
        return "privileges given up, system calls filtered"
    raise NamespaceError("the filter of system calls has no effect", "use another kernel")


def diagnose_sockets() -> str:
    """NETLINK_SOCK_DIAG, by which a connection's process is found."""
    open_diag().close()
    return "the kernel tells"


def _require(version: int, versions: frozenset[int]) -> None:
    if version not in versions:
        raise SidecarError(f"no IPv{version} in a new network namespace")


def _family(version: int) -> socket.AddressFamily:
    return socket.AF_INET6 if version == _IPV6 else socket.AF_INET


def _dial(to: SocketAddress) -> socket.socket:
    return socket.create_connection((to.host, to.port), _PATIENCE)


def _accept(listener: socket.socket) -> socket.socket:
    listener.settimeout(_PATIENCE)
    connection, _ = listener.accept()
    return connection
