"""How child processes are started: from the same Python, and dead when we are."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["die_with", "environment", "python", "tethered"]

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
# Asks for a signal at its parent's end, sees that the parent is still there, and
# becomes the program. (A preexec_fn would run Python between fork and exec, which
# threads make unsafe.)
_TETHER = (
    "import ctypes, os, sys; "
    f"ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGKILL)}); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); "
    "os.execvp(sys.argv[2], sys.argv[2:])"
)
# What would have clients go elsewhere than they are told, or do more.
_MISLEADING = frozenset({"CURL_HOME", "XDG_CONFIG_HOME", "WGETRC", "SYSTEM_WGETRC"})


def python(module: str, function: str, *arguments: object) -> list[str]:
    """The command that calls a function in a new process of this interpreter.

    Modules are found where this process finds them: in a wheel, a checkout, anywhere.

    Args:
        module: Its full name.
        function: Takes no argument; its result is the exit status.
        arguments: For sys.argv.
    """
    path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - "" is one of them
    program = (
        f"import sys; sys.path[:] = {path!r}; from {module} import {function}; "
        f"sys.exit({function}())"
    )
    return [sys.executable, "-c", program, *map(str, arguments)]


def tethered(command: Sequence[str]) -> list[str]:
    """The command that becomes this one, and is killed when the calling thread ends."""
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *command]


def die_with(parent: int) -> None:
    """Have this process told (SIGTERM) when its parent ends, or end it if that has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        raise SystemExit(1)


def environment() -> dict[str, str]:
    """This process's environment, without what would mislead a client."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _MISLEADING and not name.lower().endswith("_proxy")
    }
    return {**kept, "HOME": "/nonexistent"}
