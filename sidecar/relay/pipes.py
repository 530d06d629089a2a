"""Where spliced bytes rest between two sockets: kernel pipes, pooled.

Making a pipe and giving it a useful size costs three system calls and, for its
slots, kernel memory; a relay needs one only while bytes are on their way.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import NamedTuple

__all__ = ["PIPE_SIZE", "Pipe", "PipePool"]

# Bytes. The kernel's default ceiling for an unprivileged user (pipe-max-size,
# pipe(7)); measured here: 256 KiB costs a tenth of the bulk rate, 4 MiB gains nothing.
PIPE_SIZE = 1 << 20
# Idle pipes kept, two descriptors each; more than that are closed on release.
_IDLE_PIPES = 32


class Pipe(NamedTuple):
    """A non-blocking pipe: the ends to read from and to write to."""

    reader: int
    writer: int


class PipePool:
    """Pipes for reuse; every one in it is empty."""

    def __init__(self) -> None:
        self._idle: list[Pipe] = []

    def acquire(self) -> Pipe | None:
        """Take an empty pipe; None when the process has no descriptors left for one."""
        if self._idle:
            return self._idle.pop()
        try:
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                return None
            raise
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError as error:
            # EPERM: the user's pipes already hold pipe-user-pages-soft pages. The
            # pipe works at its default size, only slower.
            if error.errno != errno.EPERM:
                raise
        return Pipe(reader, writer)

    def release(self, pipe: Pipe) -> None:
        """Give back a pipe that is empty."""
        if len(self._idle) < _IDLE_PIPES:
            self._idle.append(pipe)
        else:
            self.discard(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe that still holds bytes, and the bytes with it."""
        os.close(pipe.reader)
        os.close(pipe.writer)

    def close(self) -> None:
        """Close every idle pipe."""
        while self._idle:
            self.discard(self._idle.pop())
