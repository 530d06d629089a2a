"""Who has the terminal: this process's group, or one that the command made of itself.

A shell with job control gives the terminal to each of its jobs, and in the end back to whom it
had it from. Inside of a pid namespace it can't: the group that sidecar and the command are
in has no number there. So that is done here.
"""

from __future__ import annotations

import os
import signal

__all__ = ["Foreground"]


class Foreground:
    """The terminal as this process finds it.

    Attributes:
        was_ours: Whether our group had it then.
    """

    def __init__(self) -> None:
        self.was_ours = self.is_ours()

    def is_ours(self) -> bool:
        """Whether a shell waits for us to end or stop; who else would continue us?"""
        try:
            terminal = _open()
        except OSError:
            return False
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        except OSError:
            return False
        finally:
            os.close(terminal)

    def take_back(self) -> bool:
        """Take the terminal, if it was ours and belongs to a group of which nobody is left.

        Returns:
            Whether we did.
        """
        if not self.was_ours:
            return False
        # Who takes it from the background would be stopped.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            terminal = _open()
        except OSError:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return False
        try:
            if not _is_gone(os.tcgetpgrp(terminal)):
                return False
            os.tcsetpgrp(terminal, os.getpgrp())
        except OSError:
            return False
        finally:
            os.close(terminal)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return True


def _open() -> int:
    return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)


def _is_gone(group: int) -> bool:
    # One without a number here is none of ours, and none of the command's.
    if group <= 0:
        return False
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
