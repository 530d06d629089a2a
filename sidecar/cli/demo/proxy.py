"""The real proxy, as a program of its own, and what it logs."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from sidecar.cli.demo import children
from sidecar.errors import SidecarError
from sidecar.linux.netfilter.alive import listens
from sidecar.linux.processes import belongs_to

if TYPE_CHECKING:
    from sidecar.addresses import SocketAddress

__all__ = ["ARGUMENTS", "PORT", "LogLine", "Proxy", "ProxyError"]

PORT = 15001
# --pidfile=: a pid file would be a file left behind.
ARGUMENTS = (
    *("-n", "--pidfile=", "sidecar"),
    *("--outbound", f"transparent:{PORT}", "--access-log", "-"),
)

# Seconds. A slow machine needs two to start it.
_PATIENCE = 20.0
_POLL = 0.01
_KEPT_LINES = 20


class ProxyError(SidecarError):
    """The proxy did not come up.

    Args:
        printed: The last lines that it printed.
    """

    def __init__(self, printed: list[str]) -> None:
        super().__init__(printed)
        self.printed = printed

    def __str__(self) -> str:
        return "\n    ".join(["the proxy did not start; it said:", *self.printed])


@dataclass(frozen=True)
class LogLine:
    """A line of the access log, as it was written and as it reads."""

    raw: str
    fields: dict[str, Any]


class Proxy:
    """`twistd sidecar` in a process, found where this one's modules are.

    Attributes:
        pid: Its process id.
    """

    def __init__(self) -> None:
        command = children.python("twisted.scripts.twistd", "run", *ARGUMENTS)
        self._process = subprocess.Popen(  # noqa: S603 - our own
            children.tethered(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            text=True,
            errors="backslashreplace",
        )
        self.pid = self._process.pid
        self._log: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._printed: deque[str] = deque(maxlen=_KEPT_LINES)
        _start_reading(self._process.stdout, self._log.put)
        self._reader = _start_reading(self._process.stderr, self._printed.append)

    def wait_until_it_listens(self) -> None:
        """Wait until connections can be made.

        Raises:
            ProxyError: It ended, or took too long.
        """
        deadline = time.monotonic() + _PATIENCE
        while not listens(PORT, version=4, transparent=False):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                self._reader.join()
                raise ProxyError(list(self._printed))
            time.sleep(_POLL)

    def holds(self, local: SocketAddress, remote: SocketAddress) -> bool:
        """Whether the socket with these two ends is the proxy's."""
        return belongs_to(self.pid, local, remote)

    def next_line(self, wait: float) -> LogLine | None:
        """The access log's next line.

        Args:
            wait: Seconds; 0 for what is there.

        Returns:
            None if there was none in time.
        """
        try:
            raw = self._log.get(timeout=wait) if wait else self._log.get_nowait()
        except queue.Empty:
            return None
        return LogLine(raw, json.loads(raw))

    def kill(self) -> None:
        """End it at once, giving it no chance to tidy up."""
        self._process.kill()
        self._process.wait()


def _start_reading(stream: Any, take: Any) -> threading.Thread:
    thread = threading.Thread(target=_read, args=(stream, take), daemon=True)
    thread.start()
    return thread


def _read(stream: IO[str], take: Any) -> None:
    with stream:
        for line in stream:
            take(line.rstrip("\n"))
