"""Ways out by leaving the namespaces, by nesting others, and by changing what is in them."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.cli.leak_test.attempts import Attempt, Expected, Outside, converse, say, send_datagram
from sidecar.errors import NamespaceError, RulesError
from sidecar.linux.attributes import attribute, nested, text
from sidecar.linux.namespaces import set_up_loopback
from sidecar.linux.netfilter.nfnetlink import commit, message
from sidecar.linux.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    transact,
)
from sidecar.linux.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    mount,
    unshare,
)
from sidecar.sandbox.addresses import EVERYWHERE, SOURCE_IPV4
from sidecar.sandbox.mounts import MASKED

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ATTEMPTS", "KERNEL_SETTINGS"]

KERNEL_SETTINGS = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
    "/proc/sys/net/ipv4/ip_forward",
)
"""Files by which the kernel is told to run programs outside, or to stop the machine."""

# linux/netfilter/nf_tables.h
_DELTABLE = 2
# linux/nsfs.h
_NS_GET_USERNS, _NS_GET_PARENT = 0xB701, 0xB702
_MNT_DETACH = 2
# linux/rtnetlink.h, linux/if_link.h
_NEWLINK, _DELADDR = 16, 21
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
_LINK = bytes(16)
_NS_KINDS = ("net", "user", "mnt", "pid")


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _own(kind: str) -> tuple[int, int]:
    found = os.stat(f"/proc/self/ns/{kind}")  # noqa: PTH116 - light
    return found.st_dev, found.st_ino


def _visible() -> Iterator[str]:
    """Everything that is a namespace, by its path."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - numbers, no paths
        if name.isdigit():
            for kind in _NS_KINDS:
                yield f"/proc/{name}/ns/{kind}"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            if after.startswith("nsfs "):
                yield before.split()[4]
    with suppress(OSError):
        yield from (str(path) for path in Path("/run/netns").iterdir())


def _join(_: Outside) -> str:
    own = {_own(kind) for kind in _NS_KINDS}
    tried, problems = 0, set()
    for path in _visible():
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            problems.add(error.strerror)
            continue
        try:
            tried += 1
            found = os.fstat(descriptor)
            _setns(descriptor)
            if (found.st_dev, found.st_ino) not in own:
                return f"joined {path}"
        except OSError as error:
            problems.add(error.strerror)
        finally:
            os.close(descriptor)
    raise OSError(errno.EPERM, f"{tried} tried: {', '.join(sorted(filter(None, problems)))}")


def _ancestors(_: Outside) -> str:
    problems = set()
    for kind in ("user", "pid", "net", "mnt"):
        descriptor = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        for request in (_NS_GET_PARENT, _NS_GET_USERNS):
            try:
                found = ioctl(descriptor, request)
            except OSError as error:
                problems.add(error.strerror)
                continue
            try:
                _setns(found)
                if os.fstat(found).st_ino != _own("user")[1]:
                    return f"joined an ancestor of the {kind} namespace"
            except OSError as error:
                problems.add(error.strerror)
    raise OSError(errno.EPERM, ", ".join(sorted(filter(None, problems))))


def _become_root_of(*, more: int) -> None:
    """Make nested namespaces in which this process has all capabilities."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | more)
    # Capabilities are there without a mapping, too; which uid 0 may not make (CAP_SETFCAP).
    with suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")


def _nested(outside: Outside) -> str:
    _become_root_of(more=CLONE_NEWNET)
    try:
        set_up_loopback([SOURCE_IPV4], EVERYWHERE)
    except NamespaceError as error:
        raise OSError(errno.EPERM, error.cause) from None
    heard = []
    for kind, talk in ((socket.SOCK_STREAM, converse), (socket.SOCK_DGRAM, send_datagram)):
        try:
            sock = socket.socket(socket.AF_INET, kind)
            heard.append(talk(sock, (outside.ipv4, outside.port), say(outside)))
        except OSError as error:  # noqa: PERF203 - two
            heard.append(str(error.strerror or "no answer"))
    return f"made them; from there: {', '.join(heard)}"


def _nested_packet(outside: Outside) -> str:
    _become_root_of(more=CLONE_NEWNET)
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return f"made a packet socket towards {outside.ipv4}"


def _flush(_: Outside) -> str:
    try:
        # All tables of the family, whatever their names.
        commit([message(_DELTABLE, 0, (), "the tables")])
    except RulesError as error:
        raise OSError(errno.EPERM, str(error).partition(":")[0]) from None
    return "removed the rules"


def _flush_by_name(_: Outside) -> str:
    try:
        commit([message(_DELTABLE, 0, (text(1, "sidecar"),), "the table")])
    except RulesError as error:
        raise OSError(errno.EPERM, str(error).partition(":")[0]) from None
    return "removed the rules"


def _flush_nested(outside: Outside) -> str:
    _become_root_of(more=0)
    return _flush(outside)


def _new_link(kind: str) -> str:
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, kind))
    body = _LINK + text(_IFLA_IFNAME, "leak0") + info
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    transact(NETLINK_ROUTE, [Message(_NEWLINK, flags, body, "an interface")])
    return f"made an interface of kind {kind}"


def _interface(_: Outside) -> str:
    return _new_link("dummy")


def _interface_nested(_: Outside) -> str:
    _become_root_of(more=0)
    return _new_link("dummy")


def _address(_: Outside) -> str:
    local = attribute(2, SOURCE_IPV4.packed)
    body = bytes([socket.AF_INET, 32, 0, 0]) + socket.if_nametoindex("lo").to_bytes(4, "little")
    transact(NETLINK_ROUTE, [Message(_DELADDR, NLM_F_ACK, body + local, "an address")])
    return "removed an address"


def _unmount(outside: Outside) -> str:
    _become_root_of(more=CLONE_NEWNS)
    libc = ctypes.CDLL(None, use_errno=True)
    problems = []
    hidden = [path for path in MASKED if os.path.exists(path)]  # noqa: PTH110 - light
    for path in ["/proc", "/proc/sys", *hidden]:
        if libc.umount2(path.encode(), _MNT_DETACH) == 0:
            if path == "/proc" and not os.path.exists(f"/proc/{outside.victim}"):  # noqa: PTH110
                continue
            return f"uncovered what is below {path}"
        problems.append(os.strerror(ctypes.get_errno()))
    raise OSError(errno.EINVAL, ", ".join(sorted(set(problems))))


def _proc(_: Outside) -> str:
    """Another /proc, over which nothing is mounted read-only."""
    _become_root_of(more=CLONE_NEWNS | CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        status = 1
        with suppress(OSError):
            mount("proc", "/proc", "proc", 0)
            _open_settings()
            status = 0
        os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise OSError(errno.EPERM, "none that may be written to")
    return "opened a kernel setting for writing"


def _settings(_: Outside) -> str:
    return _open_settings()


def _open_settings() -> str:
    problems = set()
    for path in KERNEL_SETTINGS:
        try:
            # Opened, never written to.
            os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:  # noqa: PERF203 - a few
            if error.errno != errno.ENOENT:
                problems.add(error.strerror)
        else:
            return f"opened {path} for writing"
    raise OSError(errno.EACCES, ", ".join(sorted(filter(None, problems))))


ATTEMPTS = (
    Attempt("setns", "joining every namespace in sight", _join, Expected.REFUSED, False),
    Attempt("ancestors", "joining an ancestor's namespace", _ancestors, Expected.REFUSED, False),
    Attempt("nested", "TCP and UDP from nested namespaces", _nested, control=False),
    Attempt(
        "nested_packet",
        "a packet socket in nested namespaces",
        _nested_packet,
        Expected.REFUSED,
        False,
    ),
    Attempt("flush", "removing the rules", _flush, Expected.REFUSED, False),
    Attempt(
        "flush_by_name", "removing the rules, by name", _flush_by_name, Expected.REFUSED, False
    ),
    Attempt(
        "flush_nested",
        "removing the rules as root of a nested namespace",
        _flush_nested,
        Expected.REFUSED,
        False,
    ),
    Attempt("interface", "another network interface", _interface, Expected.REFUSED, False),
    Attempt(
        "interface_nested",
        "another interface, as root of a nested namespace",
        _interface_nested,
        Expected.REFUSED,
        False,
    ),
    Attempt("address", "taking an address from lo", _address, Expected.REFUSED, False),
    Attempt("unmount", "uncovering what is mounted over", _unmount, Expected.REFUSED, False),
    Attempt("proc", "kernel settings by another /proc", _proc, Expected.REFUSED, False),
    Attempt("settings", "kernel settings (core_pattern, …)", _settings, Expected.REFUSED, False),
)
