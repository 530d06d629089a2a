"""A shell at a terminal, and who types there."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

from integration.netns import DEADLINE

if TYPE_CHECKING:
    from types import TracebackType

    from integration.netns import Namespace
    from typing_extensions import Self

__all__ = ["Terminal"]

_PROMPT = "prompt> "


class Terminal:
    """bash, interactive, with a terminal of its own.

    Args:
        namespace: The network namespace that it runs in.
        environment: The shell's.
    """

    def __init__(self, namespace: Namespace, environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        # What is typed comes back from programs alone.
        settings = termios.tcgetattr(slave)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        with namespace.entered():
            self._shell = subprocess.Popen(
                ["setsid", "--ctty", "bash", "--norc", "--noprofile", "--noediting", "-i"],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env={**environment, "PS1": _PROMPT, "TERM": "dumb"},
            )
        os.close(slave)
        self.seen = ""
        self._read = 0

    def __enter__(self) -> Self:
        self.expect(_PROMPT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The terminal goes, and with it who sits at it.
        os.close(self._master)
        self._shell.kill()
        self._shell.wait(DEADLINE)

    def type(self, text: str) -> None:
        """Type something, control characters included."""
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Wait until something is shown.

        Returns:
            What was shown before it.

        Raises:
            AssertionError: It never was; says what was instead.
        """
        deadline = time.monotonic() + DEADLINE
        while (found := self.seen.find(text, self._read)) < 0:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._master], [], [], max(0, left))
            assert ready, f"{text!r} is not in {self.seen[self._read :]!r}, after:\n{self.seen}"
            self.seen += os.read(self._master, 65536).decode(errors="replace").replace("\r", "")
        before = self.seen[self._read : found]
        self._read = found + len(text)
        return before

    @property
    def job(self) -> int:
        """The process that the shell has started, and not yet waited for."""
        pid = self._shell.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return int(child)

    def prompt(self) -> str:
        """Wait for the shell's prompt; returns what was shown before it."""
        return self.expect(_PROMPT)
