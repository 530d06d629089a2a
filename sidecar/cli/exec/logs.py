"""Where the access log goes: opened first of all, before descriptors of our own are there."""

from __future__ import annotations

import os
import re

from sidecar.errors import ConfigError

__all__ = ["open_log"]

_DESCRIPTOR = re.compile(r"fd:([0-9]{1,9})", re.ASCII)


def open_log(where: str) -> int:
    """Open the log.

    Args:
        where: A file's path, or ``fd:N`` for a descriptor that the caller left open.

    Returns:
        A descriptor, closed on exec.

    Raises:
        ConfigError: It can't be opened.
    """
    given = _DESCRIPTOR.fullmatch(where)
    try:
        if given is not None:
            # Inheritable is what it was; our own copy is not.
            return os.dup(int(given[1]))
        # O_APPEND: several commands may share a file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
        return os.open(where, flags, 0o640)
    except OSError as error:
        problem = f"can't be opened: {error.strerror}"
        raise ConfigError("command line", "--log", where, problem) from None
