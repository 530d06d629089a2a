"""System calls that Python has no function for, each defined once.

Thin: arguments as the manual pages have them, an OSError where the kernel refuses.
Called before Twisted is imported, so nothing heavy is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.linux.mountinfo import mount_points

if TYPE_CHECKING:
    import signal
    from collections.abc import Collection

__all__ = [
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "MS_SLAVE",
    "PR_CAPBSET_DROP",
    "PR_CAP_AMBIENT",
    "PR_CAP_AMBIENT_CLEAR_ALL",
    "PR_SET_CHILD_SUBREAPER",
    "PR_SET_DUMPABLE",
    "PR_SET_NO_NEW_PRIVS",
    "PR_SET_PDEATHSIG",
    "PR_SET_SECUREBITS",
    "close_all_but",
    "give_up_capabilities",
    "make_read_only",
    "mount",
    "prctl",
    "set_seccomp_filter",
    "signal_descriptor",
    "unshare",
]

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 1
# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
# linux/seccomp.h
_SECCOMP_SET_MODE_FILTER = 1
# linux/capability.h
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
# asm/unistd.h. Numbers of calls younger than the C libraries that we may meet are
# the same on every architecture; of older ones they are not.
_SYS_MOUNT_SETATTR = 442
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
# sys/signalfd.h
_SFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC

_libc: ctypes.CDLL | None = None


def _library() -> ctypes.CDLL:
    global _libc  # noqa: PLW0603 - opened once, and not at import
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (unshare(2)); os.unshare exists only since Python 3.12."""
    _check(_library().unshare(flags))


def prctl(option: int, *arguments: int) -> int:
    """Operate on the calling process (prctl(2))."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return _check(_library().prctl(option, *map(ctypes.c_ulong, padded)))


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """Mount, bind, or change a mount (mount(2))."""
    _check(
        _library().mount(
            os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            None,
        )
    )


def make_read_only(path: str) -> None:
    """Make a mount and all below it read-only."""
    try:
        _set_read_only(path)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        # Before Linux 5.12, which brought mount_setattr(2). What a mount of somebody
        # else's forbids, it must go on forbidding.
        kept = MS_NOSUID | MS_NODEV | MS_NOEXEC
        for each in mount_points(path):
            # Some may be hidden by others that are mounted above them.
            with suppress(FileNotFoundError, NotADirectoryError):
                mount("none", each, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def _set_read_only(path: str) -> None:
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(
        _library().syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            os.fsencode(path),
            ctypes.c_uint(_AT_RECURSIVE),
            attributes,
            ctypes.c_size_t(len(attributes)),
        )
    )


def give_up_capabilities() -> None:
    """Clear the effective, permitted and inheritable sets (capset(2))."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    _check(_library().capset(header, bytes(24)))


def set_seccomp_filter(program: bytes) -> None:
    """Filter the system calls of this process and of all it starts, for good (seccomp(2)).

    Args:
        program: Instructions of classic BPF (struct sock_filter), 8 octets each.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    descriptor = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    number = _SYS_SECCOMP[platform.machine()]
    _check(
        _library().syscall(
            ctypes.c_long(number), ctypes.c_uint(_SECCOMP_SET_MODE_FILTER), 0, descriptor
        )
    )


def signal_descriptor(signals: Collection[signal.Signals]) -> int:
    """Open a descriptor that blocked signals are read from (signalfd(2)).

    Returns:
        Non-blocking, closed on exec; each read gives whole ``struct signalfd_siginfo``.
    """
    # sigset_t of the C library: signal n is bit n-1 of 1024.
    mask = sum(1 << (number - 1) for number in signals).to_bytes(128, "little")
    return _check(_library().signalfd(-1, mask, _SFD_NONBLOCK_CLOEXEC))


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor of this process that is not one of these."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, no paths
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                # The listing's own.
                continue
