"""What of the file system the sandbox sees otherwise: /proc, and sockets that answer names."""

from __future__ import annotations

import os

from sidecar.linux.syscalls import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    make_read_only,
    mount,
)

__all__ = [
    "MASKED",
    "READ_ONLY",
    "mask_name_services",
    "mount_proc",
    "protect_kernel_settings",
    "writable_kernel_settings",
]

MASKED = (
    "/run/nscd/socket",
    "/var/run/nscd/socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
    "/run/avahi-daemon/socket",
)
"""Sockets of services outside that look up names for whoever asks: the C library falls
back to DNS, which is intercepted."""

READ_ONLY = (
    *("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi"),
    *("/proc/scsi", "/sys"),
)
"""By what uid 0 could have the kernel run programs outside (core_pattern, modprobe), or
hurt the machine; with no capability at all, since the files are uid 0's."""


def mask_name_services() -> None:
    """Hide `MASKED` in the calling process's mount namespace, a new one.

    Raises:
        OSError: The kernel refused.
    """
    # What is unmounted outside is unmounted here, but not the other way round.
    mount("none", "/", None, MS_REC | MS_SLAVE)
    for path in MASKED:
        if os.path.exists(path):  # noqa: PTH110 - pathlib takes milliseconds to import
            # Not a socket: connecting to it is refused.
            mount("/dev/null", path, None, MS_BIND)


def mount_proc() -> None:
    """Have /proc show the calling process's pid namespace.

    Raises:
        OSError: The kernel refused: parts of /proc are hidden here, as containers do.
    """
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def protect_kernel_settings() -> None:
    """Make `READ_ONLY` read-only.

    Raises:
        OSError: The kernel refused.
    """
    for path in READ_ONLY:
        if os.path.exists(path):  # noqa: PTH110 - as above
            mount(path, path, None, MS_BIND | MS_REC)
            make_read_only(path)


def writable_kernel_settings() -> list[str]:
    """Which of `READ_ONLY` this process's user, uid 0, could write to.

    None of them if it is root of a user namespace alone, and somebody else outside.
    """
    if os.stat("/proc").st_uid != 0:  # noqa: PTH116 - as above
        return []
    return [
        path
        for path in READ_ONLY
        if os.path.exists(path)  # noqa: PTH110 - as above
        and not os.statvfs(path).f_flag & os.ST_RDONLY
    ]
