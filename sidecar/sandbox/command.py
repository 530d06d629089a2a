"""How a process that was forked becomes the command."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from typing import NoReturn

from sidecar.linux.syscalls import close_all_but

__all__ = ["CANNOT_EXECUTE", "FAILED", "NOT_FOUND", "become"]

# What env(1), timeout(1) and shells exit with when it isn't the command that failed.
FAILED = 125
CANNOT_EXECUTE = 126
NOT_FOUND = 127

_SHELL = "/bin/sh"


def become(command: list[str], go: int, signal_mask: set[signal.Signals | int]) -> NoReturn:
    """Wait to be let go, and become the command.

    Nothing of us is left in it: descriptors but 0 to 2, signal handlers and what Python
    made of SIGPIPE, the signal mask.

    Args:
        command: The program, looked for on PATH, and its arguments.
        go: The reading end of a pipe; when the other is closed by the one who holds
            it, it is time.
        signal_mask: The signals to start with blocked.
    """
    try:
        _restore_signals(signal_mask)
        go = os.dup2(go, 3) if go != 3 else go  # noqa: PLR2004 - the first that is ours
        close_all_but({0, 1, 2, go})
        if os.read(go, 1) != b"!":
            # Whoever was to let us go is gone.
            os._exit(FAILED)
        os.close(go)
        _execute(command)
    except OSError as error:
        os._exit(_report(command[0], error))
    except BaseException:  # noqa: BLE001 - two copies of a program must not go on
        os._exit(FAILED)


def _restore_signals(signal_mask: set[signal.Signals | int]) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # As nohup(1) and shells leave it, ignored stays ignored.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)


def _execute(command: list[str]) -> NoReturn:
    """Do as execvp(3): what the kernel can't execute is a shell script."""
    if not command[0]:
        # Python's own takes this for a mistake of its caller's.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        os.execvp(command[0], command)  # noqa: S606 - running it is what we are for
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    path = command[0] if "/" in command[0] else _find(command[0])
    os.execv(_SHELL, [_SHELL, path, *command[1:]])  # noqa: S606 - likewise


def _find(name: str) -> str:
    for directory in os.get_exec_path():
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    return name


def _report(name: str, error: OSError) -> int:
    name = name or "''"
    found = error.errno not in {errno.ENOENT, errno.ENOTDIR}
    problem = error.strerror if found or "/" in name else "command not found"
    # A full disk, or a reader that has gone, is no reason for another exit status.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with suppress(OSError):
        os.write(2, f"sidecar exec: {name}: {problem}\n".encode(errors="backslashreplace"))
    return CANNOT_EXECUTE if found else NOT_FOUND
