"""Nobody writes to the files that sidecar runs from while the command runs.

What is mapped of a file (an extension module, a shared library) is what the file says now: who
writes to it in place changes the running program. The command may write what its user may,
which mostly includes these files. So P holds leases on them, and pid 1 of the sandbox, which
nobody inside can stop or kill, ends everybody when one is broken, before anything is written.
"""

from __future__ import annotations

import array
import os
import socket

from sidecar.linux.leases import Leases
from sidecar.sandbox.handover import GUARDED_AT_ONCE, Channel, Word

__all__ = ["Guard"]

# What a line of /proc/self/maps has before the path (proc_pid_maps(5)).
_FIELDS = 5


class Guard:
    """P's side.

    Args:
        channel: To pid 1.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._leases = Leases()

    def hold(self) -> list[str]:
        """Guard what this process has mapped now; call it before the command runs.

        Returns:
            The files that can't be guarded although we, and so the command, could write to them.
        """
        bare = []
        for path in _mapped():
            try:
                self._leases.take(path)
            except OSError:  # noqa: PERF203 - each has its own
                if os.access(path, os.W_OK, effective_ids=True):
                    bare.append(path)
        descriptors = list(self._leases.paths)
        for start in range(0, len(descriptors), GUARDED_AT_ONCE):
            some = array.array("i", descriptors[start : start + GUARDED_AT_ONCE])
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, some)
            self._channel.sock.sendmsg([Word.GUARD.value], [rights])
        return bare

    def broken(self) -> list[str]:
        """The files that somebody was about to write to."""
        return self._leases.broken()

    def close(self) -> None:
        """Guard nothing any more."""
        self._leases.close()


def _mapped() -> list[str]:
    """The files that this process has mapped, each once."""
    paths: dict[str, None] = {}
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        for line in file:
            fields = line.rstrip("\n").split(None, _FIELDS)
            if len(fields) > _FIELDS and fields[_FIELDS].startswith("/"):
                paths[fields[_FIELDS]] = None
    # Not /dev/zero and the like.
    return [path for path in paths if os.path.isfile(path)]  # noqa: PTH113 - a tenth of the time
