"""A script run by `sidecar exec`, or without it, and what a person sees of that."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.cli.demo import children

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sidecar.cli.demo.scenes import Scene

__all__ = ["INDENT", "Player"]

INDENT = "   "
# Seconds; all takes a tenth of it.
_PATIENCE = 60.0
# Seconds between two clients: their ends are shown in time.
_PAUSE = "0.1"
_CHUNK_OCTETS = 65536
_ESCAPES = re.compile(rb"\x1b\[[0-9;]*m")
_TIMED_OUT = -1


@dataclass(frozen=True)
class Played:
    """What became of a script.

    Attributes:
        status: The exit status; negative if a signal, or we, ended it.
        text: What was seen of it.
        statuses: Its clients' exit statuses, in order.
    """

    status: int
    text: str
    statuses: tuple[int, ...]


class Player:
    """Runs scripts.

    Args:
        directory: Has all that they need.
        ca_file: The authority that clients trust.

    Attributes:
        pid: The process id of the last `sidecar exec`.
    """

    def __init__(self, directory: Path, ca_file: Path) -> None:
        self._directory = directory
        self._ca_file = ca_file
        self.pid = -1

    def play(self, scene: Scene, show: Callable[[bytes], None]) -> Played:
        """Run `sidecar exec` as the scene says.

        Args:
            scene: Its script is made here.
            show: Told each line, without its end, as it comes.
        """
        self._write(scene)
        command = children.python("sidecar.cli", "main", *scene.arguments)
        return self._run(command, _PAUSE, show)

    def play_without(self, scene: Scene) -> Played:
        """Run the same script without sidecar.

        Args:
            scene: Its script is made here.
        """
        self._write(scene)
        return self._run(["sh", f"{scene.name}.sh"], "0", lambda _: None)

    def _write(self, scene: Scene) -> None:
        (self._directory / f"{scene.name}.sh").write_text(scene.script, encoding="utf-8")
        (self._directory / "statuses").unlink(missing_ok=True)

    def _run(self, command: Sequence[str], pause: str, show: Callable[[bytes], None]) -> Played:
        with ExitStack() as stack:
            ours, theirs = _terminal() if sys.stdout.isatty() else os.pipe()
            stack.callback(os.close, ours)
            with open(theirs, "wb", closefd=True) as output:  # noqa: PTH123 - a descriptor
                process = subprocess.Popen(  # noqa: S603 - our own
                    children.tethered(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._directory,
                    env={
                        **children.environment(),
                        "PYTHON": sys.executable,
                        "STATUSES": str(self._directory / "statuses"),
                        "PAUSE": pause,
                        "CURL_CA_BUNDLE": str(self._ca_file),
                        "SSL_CERT_FILE": str(self._ca_file),
                    },
                )
            stack.callback(process.wait)
            # By its own id, and not waited for yet; with it goes everything inside.
            stack.callback(process.kill)
            self.pid = process.pid
            text = _read(ours, time.monotonic() + _PATIENCE, show)
            if text is None:
                return Played(_TIMED_OUT, "", ())
            status = process.wait(_PATIENCE)
        try:
            statuses = (self._directory / "statuses").read_text(encoding="ascii").split()
        except FileNotFoundError:
            statuses = []
        return Played(status, text, tuple(map(int, statuses)))


def _terminal() -> tuple[int, int]:
    """A terminal like ours, but for the indentation.

    Returns:
        The end that shows, the end that is written to.
    """
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    # Lines end as they were written.
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    with suppress(OSError):
        size = os.get_terminal_size(sys.stdout.fileno())
        columns = max(size.columns - len(INDENT), 0)
        packed = struct.pack("HHHH", size.lines, columns, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, packed)
    return ours, theirs


def _read(descriptor: int, deadline: float, show: Callable[[bytes], None]) -> str | None:
    """Read to the end, showing each line; None if there is none in time."""
    received, shown = b"", 0
    while True:
        left = deadline - time.monotonic()
        if not select.select([descriptor], [], [], max(left, 0))[0]:
            return None
        try:
            chunk = os.read(descriptor, _CHUNK_OCTETS)
        except OSError as error:
            # A terminal that nobody has open any more.
            if error.errno != errno.EIO:
                raise
            chunk = b""
        received += chunk
        while (end := received.find(b"\n", shown)) >= 0 or (not chunk and shown < len(received)):
            end = end if end >= 0 else len(received)
            show(received[shown:end])
            shown = end + 1
        if not chunk:
            return _ESCAPES.sub(b"", received).decode(errors="replace")
