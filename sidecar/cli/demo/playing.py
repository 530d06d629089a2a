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

    from typing_extensions import Self

    from sidecar.cli.demo.scenes import Scene

__all__ = ["INDENT", "Player"]

INDENT = "   "
# Seconds; all takes a tenth of it.
_PATIENCE = 60.0
# Seconds without a word from anybody, after which the next client is let go all the same.
_QUIET = 3.0
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
        command = children.python("sidecar.cli", "main", *scene.arguments)
        return self._run(scene, command, [step.shown for step in scene.steps], show)

    def play_without(self, scene: Scene) -> Played:
        """Run the same script without sidecar.

        Args:
            scene: Its script is made here.
        """
        return self._run(scene, ["sh", f"{scene.name}.sh"], ["" for _ in scene.steps], _nowhere)

    def _run(
        self,
        scene: Scene,
        command: Sequence[str],
        awaited: Sequence[str],
        show: Callable[[bytes], None],
    ) -> Played:
        (self._directory / f"{scene.name}.sh").write_text(scene.script, encoding="utf-8")
        (self._directory / "statuses").unlink(missing_ok=True)
        with ExitStack() as stack:
            pace = stack.enter_context(_Pace(self._directory / "go", awaited))
            ours, theirs = _outlet()
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
                        "CURL_CA_BUNDLE": str(self._ca_file),
                        "SSL_CERT_FILE": str(self._ca_file),
                    },
                )
            stack.callback(process.wait)
            # By its own id, and not waited for yet; with it goes everything inside.
            stack.callback(process.kill)
            self.pid = process.pid
            text = _read(ours, pace, show)
            if text is None:
                return Played(_TIMED_OUT, "", ())
            status = process.wait(_PATIENCE)
        try:
            statuses = (self._directory / "statuses").read_text(encoding="ascii").split()
        except FileNotFoundError:
            statuses = []
        return Played(status, text, tuple(map(int, statuses)))


def _outlet() -> tuple[int, int]:
    """A terminal if we have one, like it but for the indentation; else a pipe.

    Returns:
        The end that is read from, the end that is written to.
    """
    if not sys.stdout.isatty():
        return os.pipe()
    try:
        ours, theirs = pty.openpty()
    except OSError:
        # There are no others here (no devpts).
        return os.pipe()
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


class _Pace:
    """Lets one client after the other go: each when it has been seen what became of the last.

    So that people read it in this order. The script waits at a FIFO after each.

    Args:
        path: Where the FIFO is made, and removed.
        awaited: What is to be seen of each client, and of no other.
    """

    def __init__(self, path: Path, awaited: Sequence[str]) -> None:
        self._path = path
        self._awaited = list(awaited)
        os.mkfifo(path)
        # For both, so that nobody waits for somebody to open it.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        self.look("")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._path.unlink()

    def look(self, seen: str) -> None:
        """Let go whoever waits for no more than has been seen."""
        while self._awaited and self._awaited[0] in seen:
            self.go()

    def go(self) -> None:
        """Let the next one go, if there is one."""
        if self._awaited:
            del self._awaited[0]
            os.write(self._descriptor, b"\n")


def _read(descriptor: int, pace: _Pace, show: Callable[[bytes], None]) -> str | None:
    """Read to the end, showing each line; None if there is none in time."""
    deadline = time.monotonic() + _PATIENCE
    received, shown = b"", 0
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], min(left, _QUIET))[0]:
            pace.go()
            continue
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
        text = _ESCAPES.sub(b"", received).decode(errors="replace")
        if not chunk:
            return text
        pace.look(" ".join(text.split()))
    return None


def _nowhere(_: bytes) -> None:
    """Show nothing."""
