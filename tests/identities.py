"""How a program is run as somebody else: an ordinary user, a root without capabilities."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "NOBODY",
    "NO_UNSHARE",
    "as_nobody",
    "in_user_namespace",
    "needs_root",
    "without_capabilities",
]

NOBODY = 65534
# What a Python program begins with to be in a container's seccomp filter.
NO_UNSHARE = """
import ctypes, struct
# linux/seccomp.h, linux/filter.h: unshare(2) fails with EPERM, all else is allowed.
NUMBERS = {"x86_64": 272, "aarch64": 97}
import platform
program = b"".join(struct.pack("=HBBI", *step) for step in [
    (0x20, 0, 0, 0), (0x15, 0, 1, NUMBERS[platform.machine()]), (0x06, 0, 0, 0x00050001),
    (0x06, 0, 0, 0x7FFF0000),
])
buffer = ctypes.create_string_buffer(program, len(program))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert not libc.prctl(38, 1, 0, 0, 0)
assert not libc.prctl(22, 2, ctypes.byref(Filter(4, ctypes.addressof(buffer))))
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")


def as_nobody(command: Sequence[str], stash: Path) -> list[str]:
    """The command, run by an ordinary user.

    An interpreter in a private home directory is made reachable first, for this command
    alone: in a mount namespace of its own, a directory with nothing else in it takes
    the private one's place.

    Args:
        command: Uses this interpreter, and modules from where it has them.
        stash: An empty directory.
    """
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve()}
    needed |= {Path(entry).resolve() for entry in sys.path}
    private = {path: ancestor for path in needed if (ancestor := _private_ancestor(path))}
    # What lies in what is shown anyway needs no showing of its own.
    shown = [path for path in private if private.keys().isdisjoint(path.parents)]
    steps = ["set -e", f"mount -t tmpfs none {shlex.quote(str(stash))}"]
    for number, path in enumerate(shown):
        place = shlex.quote(f"{stash}/{number}")
        kind = "mkdir" if path.is_dir() else "touch"
        steps += [f"{kind} {place}", f"mount --bind {shlex.quote(str(path))} {place}"]
    for ancestor in sorted(set(private.values())):
        steps.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(ancestor))}")
    for number, path in enumerate(shown):
        target = shlex.quote(str(path))
        make = f"mkdir -p {target}"
        if not path.is_dir():
            make = f"mkdir -p {shlex.quote(str(path.parent))}; touch {target}"
        steps += [make, f"mount --bind {shlex.quote(f'{stash}/{number}')} {target}"]
    user = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--")
    steps.append(f"cd /; exec {shlex.join([*user, *command])}")
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(steps)]


def without_capabilities(
    command: Sequence[str], *, keep: Sequence[str] = ("setfcap",)
) -> list[str]:
    """The command, run by root as most containers have it.

    Args:
        command: What to run.
        keep: The capabilities that are kept, as setpriv(1) names them.
    """
    bounds = ",".join(["-all", *(f"+{each}" for each in keep)])
    return ["setpriv", "--bounding-set", bounds, "--inh-caps", "-all", "--", *command]


def in_user_namespace(
    settings: dict[str, str], command: Sequence[str], *, user: int = 0
) -> list[str]:
    """The command, run in a user namespace with sysctls (`user.…`) of its own.

    Args:
        settings: What they are set to.
        command: What to run.
        user: Who the caller is there, all capabilities included.
    """
    steps = [f"echo {value} > /proc/sys/user/{name}" for name, value in settings.items()]
    script = "\n".join(["set -e", *steps, f"exec {shlex.join(command)}"])
    identity = (f"--map-user={user}", f"--map-group={user}", "--keep-caps")
    return ["unshare", "--user", *identity, "sh", "-c", script]


def _private_ancestor(path: Path) -> Path | None:
    """The outermost directory on the way there that others may not enter."""
    for ancestor in [*reversed(path.parents), path]:
        if not ancestor.exists():
            return None
        if ancestor.is_dir() and not ancestor.stat().st_mode & stat.S_IXOTH:
            return ancestor
    return None
