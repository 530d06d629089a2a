"""The set-up process: makes the namespaces, and in them the network, the rules, the listeners.

Forked from P before P imports anything heavy, so it imports nothing heavy either. It
ends with pid 1 of the sandbox, which it starts.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from sidecar.errors import NamespaceError, SidecarError
from sidecar.linux.namespaces import set_up_loopback
from sidecar.linux.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    close_all_but,
    prctl,
    unshare,
)
from sidecar.sandbox import init
from sidecar.sandbox.addresses import (
    EVERYWHERE,
    SOURCE_IPV4,
    SOURCE_IPV6,
    SOURCE_IPV6_UNIQUE_LOCAL,
)
from sidecar.sandbox.command import FAILED
from sidecar.sandbox.handover import Word, send_listeners
from sidecar.sandbox.listeners import open_listeners
from sidecar.sandbox.mounts import mask_name_services
from sidecar.sandbox.rules import install_rules
from sidecar.sandbox.users import enter_network_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv6Address

    from sidecar.sandbox.handover import Channel

__all__ = ["set_up"]

# linux/if_inet6's fourth column (RFC 4291 scopes, as net/ipv6.h has them), RFC 4193.
_SCOPE_GLOBAL = "00"
_UNIQUE_LOCAL = ("fc", "fd")
_LOWEST_PORT = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


def set_up(
    channel: Channel,
    parent: int,
    command: list[str],
    signal_mask: set[signal.Signals | int],
    host_ports: Sequence[int],
) -> NoReturn:
    """Make the sandbox, start its pid 1, wait for that and exit.

    Args:
        channel: To P.
        parent: P's process id; we don't outlive it.
        command: What to run, at least one word.
        signal_mask: The signals that the command starts with blocked.
        host_ports: The ports of loopback inside that lead to the host's.
    """
    try:
        # Whatever else the caller left open is no business of the command's.
        close_all_but({0, 1, 2, channel.fileno()})
        source = _ipv6_source()
        alone = _make_namespaces()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(FAILED)
        set_up_loopback([SOURCE_IPV4, source], EVERYWHERE)
        if os.geteuid() == 0:
            # What root's servers take for granted, and without capabilities can't do.
            _allow_low_ports()
        install_rules()
        listeners = open_listeners(host_ports)
        send_listeners(channel, listeners)
        listeners.close()
        pid = os.fork()
    except SidecarError as error:
        _give_up(channel, error)
    except OSError as error:
        cause = f"setting up the sandbox failed: {error.strerror}"
        _give_up(channel, NamespaceError(cause, "run `sidecar doctor` to see what is missing"))
    if pid == 0:
        init.run(channel, command, signal_mask, alone)
    if not alone.pids:
        # Should somebody kill it, we get those that are left.
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    channel.close()
    init.let_go_of_terminal()
    os.waitpid(pid, 0)
    if not alone.pids:
        init.end_descendants()
    os._exit(0)


def _give_up(channel: Channel, error: SidecarError) -> NoReturn:
    if isinstance(error, NamespaceError):
        cause, cure = error.cause, error.cure
    else:
        cause, cure = str(error), ""
    channel.tell(Word.ERROR, f"{cause}\0{cure}".encode())
    os._exit(FAILED)


def _make_namespaces() -> init.Alone:
    """Leave the namespaces of the caller.

    Returns:
        Which of the less important ones came about.
    """
    enter_network_namespace()
    missing: list[str] = []
    mounts = _try_to_unshare(CLONE_NEWNS, "mount", missing)
    pids = _try_to_unshare(CLONE_NEWPID, "pid", missing)
    if mounts:
        try:
            mask_name_services()
        except OSError as error:
            missing.append(f"name services' sockets can't be hidden: {error.strerror}")
    return init.Alone(mounts=mounts, pids=pids, missing=missing)


def _try_to_unshare(flag: int, name: str, missing: list[str]) -> bool:
    try:
        unshare(flag)
    except OSError as error:
        missing.append(f"no {name} namespace: {error.strerror}")
        return False
    return True


def _ipv6_source() -> IPv6Address:
    """What to connect from over IPv6, by what the caller's host has."""
    with suppress(OSError), open("/proc/thread-self/net/if_inet6", encoding="ascii") as file:  # noqa: PTH123
        for line in file:
            address, _, _, scope, *_ = line.split()
            if scope == _SCOPE_GLOBAL and not address.startswith(_UNIQUE_LOCAL):
                return SOURCE_IPV6
    return SOURCE_IPV6_UNIQUE_LOCAL


def _allow_low_ports() -> None:
    with suppress(OSError), open(_LOWEST_PORT, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write("0")
