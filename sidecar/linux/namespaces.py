"""What a network namespace of one's own needs, and why the kernel may refuse one."""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sidecar.errors import NamespaceError
from sidecar.linux.attributes import attribute, u32
from sidecar.linux.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    RequestError,
    transact,
)
from sidecar.linux.routing import families

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv6Address, IPv6Network

__all__ = [
    "explain_refusal",
    "has_capabilities",
    "set_up_loopback",
]

# linux/seccomp.h
_SECCOMP_MODE_FILTER = "2"
# linux/rtnetlink.h, linux/if.h, linux/if_addr.h
_NEWLINK, _NEWADDR, _NEWROUTE = 16, 20, 24
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 2
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_RT_TABLE_LOCAL = 255
_RTPROT_STATIC = 4
_RT_SCOPE_HOST = 254
_RTN_LOCAL = 2
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")

_PROC = Path("/proc")


def set_up_loopback(
    addresses: Sequence[IPv4Address | IPv6Address],
    local: Sequence[IPv4Network | IPv6Network] = (),
) -> frozenset[int]:
    """Bring lo up in the calling process's network namespace, and give it addresses.

    Args:
        addresses: What programs there connect from; the first of a family is the one.
        local: Networks of which every address is this host's (AnyIP): connections
            there stay on lo. A listener for one IPv6 address of them needs IP_FREEBIND.

    Returns:
        The IP versions that there are: 4, and 6 unless the kernel has no IPv6. What
        was given for an absent one is left out.

    Raises:
        NamespaceError: The kernel refused.
    """
    index = socket.if_nametoindex("lo")
    _change(_NEWLINK, 0, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP), "bringing lo up")
    versions = frozenset(4 if family == socket.AF_INET else 6 for family in families())
    sources: dict[int, bytes] = {}
    for address in addresses:
        if address.version in versions:
            sources.setdefault(address.version, address.packed)
            _add_address(index, address)
    for network in local:
        if network.version in versions:
            _add_local_route(index, network, sources.get(network.version))
    return versions


def explain_refusal(number: int, *, user: bool, proc: Path = _PROC) -> NamespaceError:
    """Find out why the kernel would not make a namespace.

    Args:
        number: The errno.
        user: Whether it was a user namespace; False for a network namespace.
        proc: Where procfs is.

    Returns:
        The error to raise, with the cause and the cure.
    """
    kind = "user" if user else "network"
    if number in {errno.ENOSPC, errno.EUSERS}:
        return _limit_reached(kind, f"max_{'user' if user else 'net'}_namespaces", proc)
    if number == errno.EPERM:
        return _not_permitted(proc)
    if number in {errno.EINVAL, errno.ENOSYS}:
        option = "CONFIG_USER_NS" if user else "CONFIG_NET_NS"
        cure = _as_root() if user else "use another kernel"
        return NamespaceError(f"this kernel has no {kind} namespaces ({option})", cure)
    return NamespaceError(
        f"the kernel refused a {kind} namespace: {os.strerror(number)}",
        f"{_as_root()}, or elsewhere",
    )


def has_capabilities(*capabilities: int) -> bool:
    """Whether this process has all of these (linux/capability.h) in effect."""
    effective = int(_status(_PROC).get("CapEff", "0"), 16)
    return all(effective >> capability & 1 for capability in capabilities)


def _limit_reached(kind: str, name: str, proc: Path) -> NamespaceError:
    limit = _read(proc / "sys/user" / name)
    more = f"allow some: sysctl -w user.{name}=15000"
    if limit == "0":
        cause = f"user.{name} is 0, so no {kind} namespace can be made here"
    else:
        cause = f"the limit of {kind} namespaces (user.{name}) is reached, here or further out"
    # A limit on user namespaces is none for those who need none.
    return NamespaceError(cause, f"{_as_root()}, or {more}" if kind == "user" else more)


def _not_permitted(proc: Path) -> NamespaceError:
    clone = "kernel.unprivileged_userns_clone"
    apparmor = "kernel.apparmor_restrict_unprivileged_userns"
    for name, refusing, allowing in ((clone, "0", "1"), (apparmor, "1", "0")):
        if _read(proc / "sys" / name.replace(".", "/")) == refusing:
            return NamespaceError(
                f"{name} is {refusing}, so only root may make namespaces",
                f"{_as_root()}, or allow it: sysctl -w {name}={allowing}",
            )
    if _status(proc).get("Seccomp") == _SECCOMP_MODE_FILTER:
        return NamespaceError(
            "a seccomp filter, as containers have one, forbids making namespaces",
            "start the container with --cap-add SYS_ADMIN --cap-add NET_ADMIN (as root in it)"
            " or --security-opt seccomp=unconfined",
        )
    return NamespaceError("the kernel forbids this user to make namespaces", _as_root())


def _as_root() -> str:
    lacking = "with CAP_SYS_ADMIN and CAP_NET_ADMIN"
    return f"run {lacking}" if os.geteuid() == 0 else "run as root"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _status(proc: Path) -> dict[str, str]:
    lines = (_read(proc / "self/status") or "").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _add_address(index: int, address: IPv4Address | IPv6Address) -> None:
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    # Global scope (0): an address of scope "host" is no source for other hosts'.
    header = _ADDRESS.pack(family, address.max_prefixlen, _IFA_F_NODAD, 0, index)
    body = attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    _change(_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, header + body, f"adding {address} to lo")


def _add_local_route(index: int, network: IPv4Network | IPv6Network, source: bytes | None) -> None:
    family = socket.AF_INET if isinstance(network, IPv4Network) else socket.AF_INET6
    header = _ROUTE.pack(
        family,
        network.prefixlen,
        0,
        0,
        _RT_TABLE_LOCAL,
        _RTPROT_STATIC,
        _RT_SCOPE_HOST,
        _RTN_LOCAL,
        0,
    )
    body = attribute(_RTA_DST, network.network_address.packed) + u32(_RTA_OIF, index)
    if source is not None:
        body += attribute(_RTA_PREFSRC, source)
    _change(_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, header + body, f"making {network} local")


def _change(kind: int, flags: int, body: bytes, subject: str) -> None:
    try:
        transact(NETLINK_ROUTE, [Message(kind, NLM_F_ACK | flags, body, subject)])
    except RequestError as error:
        _refused(error)


def _refused(error: RequestError) -> NoReturn:
    if error.errno in {errno.EPERM, errno.EACCES}:
        # A user namespace of AppArmor's: it came about, but without capabilities.
        refusal = _not_permitted(_PROC)
        raise NamespaceError(f"{error.subject}: {refusal.cause}", refusal.cure) from None
    raise NamespaceError(
        f"{error.subject} failed: {error.strerror}", f"{_as_root()}, or on another kernel"
    ) from None
