"""Read leases on files (fcntl(2)): nobody writes to one before its holder has heard of it.

While one is held, whoever opens the file for writing or truncates it waits, by whatever path
or hard link, and the kernel sends SIGIO. It lets the other go on when the descriptor is
closed, everywhere that it was handed to, or after ``fs.lease-break-time`` (45 s).
"""

from __future__ import annotations

import os
from fcntl import F_GETLEASE, F_RDLCK, F_SETLEASE, F_SETOWN, F_UNLCK, fcntl

__all__ = ["Leases", "be_told"]


class Leases:
    """Leases that are held.

    Attributes:
        paths: The files, by the descriptors that stand for the leases.
    """

    def __init__(self) -> None:
        self.paths: dict[int, str] = {}

    def take(self, path: str) -> None:
        """Take one more. SIGIO comes to this process.

        Raises:
            OSError: There is none to be had: EACCES, it is another user's; EAGAIN, somebody has
                it open for writing; EINVAL and others, its file system has no leases.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl(descriptor, F_SETLEASE, F_RDLCK)
        except OSError:
            os.close(descriptor)
            raise
        self.paths[descriptor] = path

    def broken(self) -> list[str]:
        """The files that somebody waits to write to."""
        held = self.paths.items()
        return [path for fd, path in held if fcntl(fd, F_GETLEASE) == F_UNLCK]

    def close(self) -> None:
        """Give all back."""
        for descriptor in self.paths:
            os.close(descriptor)
        self.paths.clear()


def be_told(descriptor: int) -> None:
    """Have SIGIO come to this process from now on, for a lease that it was handed."""
    fcntl(descriptor, F_SETOWN, os.getpid())
