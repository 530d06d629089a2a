"""Where the access log goes: opened first of all, before descriptors of our own are there."""

from __future__ import annotations

import fcntl
import os
import re
from typing import NoReturn

from sidecar.errors import ConfigError

__all__ = ["open_log"]

_DESCRIPTOR = re.compile(r"fd:([0-9]{1,9})", re.ASCII)
_NO_STANDARD_OUTPUT = "standard output is the command's; a file of that name is ./-"


def open_log(where: str) -> int:
    """Open the log.

    Args:
        where: A file's path, or ``fd:N`` for a descriptor that the caller left open.

    Returns:
        A descriptor, closed on exec.

    Raises:
        ConfigError: It is neither, or can't be opened or written.
    """
    given = _DESCRIPTOR.fullmatch(where)
    if given is None and where.startswith("fd:"):
        _refuse(where, "fd: wants a descriptor's number; a file of that name is ./" + where)
    if where == "-":
        _refuse(where, _NO_STANDARD_OUTPUT)
    try:
        if given is not None:
            # Inheritable is what it was; our own copy is not.
            descriptor = os.dup(int(given[1]))
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                os.close(descriptor)
                _refuse(where, "can't be written: it was opened for reading")
            return descriptor
        # O_APPEND: several commands may share a file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
        return os.open(where, flags, 0o640)
    except OSError as error:
        _refuse(where, f"can't be opened: {error.strerror}")


def _refuse(where: str, problem: str) -> NoReturn:
    raise ConfigError("command line", "--log", where, problem) from None
