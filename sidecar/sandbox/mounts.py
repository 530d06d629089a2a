"""What of the file system the sandbox sees otherwise: /proc, and sockets that answer names."""

from __future__ import annotations

import os
from contextlib import suppress

from sidecar.linux.mountinfo import mount_points
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

MASKED: dict[str, tuple[str, ...]] = {
    "/run/nscd": (),
    "/var/run/nscd": (),
    "/run/avahi-daemon": (),
    "/var/run/avahi-daemon": (),
    "/run/systemd/resolve": ("resolv.conf", "stub-resolv.conf"),
}
"""Where services outside have the sockets by which they look up names for whoever asks: the C
library falls back to DNS, which is intercepted. Whole directories, for a service that is
started anew makes its socket anew; with the files that stay."""

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
    done = set()
    for name, kept in MASKED.items():
        path = os.path.realpath(name)
        if os.path.isdir(path) and path not in done:  # noqa: PTH112 - pathlib takes milliseconds
            done.add(path)
            _mask(path, kept)


def _mask(path: str, names: tuple[str, ...]) -> None:
    """Put an empty directory over one, with copies of some of its files."""
    kept = {}
    for name in names:
        with suppress(OSError), open(f"{path}/{name}", "rb") as file:  # noqa: PTH123 - as above
            kept[name] = file.read()
    mount("none", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name, data in kept.items():
        with open(f"{path}/{name}", "wb") as file:  # noqa: PTH123 - as above
            os.fchmod(file.fileno(), 0o644)
            file.write(data)
    os.chmod(path, 0o755)  # noqa: PTH101, S103 - as above; as it was
    make_read_only(path)


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
    found = []
    for path in READ_ONLY:
        if os.path.exists(path):  # noqa: PTH110 - as above
            found += [each for each in (path, *mount_points(path)) if not _is_read_only(each)]
    return found


def _is_read_only(path: str) -> bool:
    try:
        # What automounts isn't asked to.
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        # Hidden by what is mounted above it.
        return True
    try:
        return bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
    finally:
        os.close(descriptor)
