"""How a process gives up, for good, what the sandboxed programs must not have."""

from __future__ import annotations

import errno

from sidecar.errors import NamespaceError
from sidecar.linux.syscalls import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECUREBITS,
    give_up_capabilities,
    prctl,
    set_seccomp_filter,
)
from sidecar.sandbox.seccomp import program

__all__ = ["give_up_privileges"]

# linux/securebits.h: uid 0 means nothing (NOROOT), changing it gives nothing
# (NO_SETUID_FIXUP), nothing becomes ambient, nothing is kept; each locked.
_SECUREBITS = 0b11_11_10_11_11
# linux/capability.h has 41 of them; the kernel says where they end.
_CAPABILITIES_MAX = 64
_SECCOMP_MODE_FILTER = "2"


def give_up_privileges() -> None:
    """Give up all capabilities and all ways to any, and filter system calls.

    For this process and everything that it will ever start. It can't be traced by
    others of its user either, until it becomes another program.

    Raises:
        NamespaceError: Something of it did not come about; nothing may be run.
        OSError: The kernel refused.
    """
    filtering = program()
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_SECUREBITS, _SECUREBITS)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _empty_bounding_set()
    give_up_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    set_seccomp_filter(filtering)
    _verify()


def _empty_bounding_set() -> None:
    try:
        for capability in range(_CAPABILITIES_MAX):
            prctl(PR_CAPBSET_DROP, capability)
    except OSError as error:
        # The first that the kernel doesn't have.
        if error.errno != errno.EINVAL:
            raise


def _verify() -> None:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        found = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    kept = [
        name for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if _any(found, name)
    ]
    if kept or found.get("NoNewPrivs") != "1" or found.get("Seccomp") != _SECCOMP_MODE_FILTER:
        raise NamespaceError(
            "the kernel did not take all privileges away", "report this with the kernel's version"
        )


def _any(found: dict[str, str], name: str) -> bool:
    return int(found.get(name, "1"), 16) != 0
