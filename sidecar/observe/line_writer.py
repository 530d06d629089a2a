"""How lines reach a file or pipe without the reactor ever waiting for it.

A thread of its own writes what the reactor hands over. Not one of the reactor's
pool: a pipe that nobody reads would hold that thread, and with it the process's
exit. What can't be written is kept up to a bound, then dropped and counted.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

__all__ = ["REPORT_INTERVAL", "RETRY_DELAY", "STOP_TIMEOUT", "LineWriter", "open_log"]

# Seconds between two attempts to write to a full disk: soon enough after somebody
# has made room, and no load until then.
RETRY_DELAY = 1.0
# Seconds between two reports of the same trouble, so that they don't become one.
REPORT_INTERVAL = 1.0
# Seconds that stopping waits for a reader that is stuck: less than service managers
# wait before they kill.
STOP_TIMEOUT = 2.0
# Seconds between two looks at whether the thread has finished.
_STOP_POLL = 0.01
# Bytes. What is no longer than this enters a pipe whole or not at all (pipe(7)), so
# no line is torn by another writer to the same pipe or by our own end.
_PIPE_CHUNK = select.PIPE_BUF
# Milliseconds to wait for room in a pipe that somebody made non-blocking.
_POLL_TIMEOUT = 100

_log = Logger()


def open_log(path: str) -> int:
    """Open a file to append lines to.

    Args:
        path: A regular file, created where missing; a FIFO, which needs no reader
            now and whose reader may come and go; a device; or "-" for standard
            output, which is then the log's alone: whatever else the process prints
            (twistd's own log) goes to standard error from then on.

    Returns:
        A file descriptor, closed on exec; the caller's to close.

    Raises:
        OSError: It can't be opened.
    """
    if path == "-":
        return _claim_standard_output()
    flags = os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    if Path(path).is_fifo():
        # Opened for both ways it neither waits for a reader nor breaks when one
        # leaves (fifo(7)).
        return os.open(path, flags | os.O_RDWR)
    descriptor = os.open(path, flags | os.O_WRONLY | os.O_CREAT, 0o640)
    with suppress(OSError):
        if _ends_within_line(path):
            os.write(descriptor, b"\n")
    return descriptor


def _claim_standard_output() -> int:
    sys.stdout.flush()
    own = os.dup(1)
    with suppress(OSError):
        os.dup2(2, 1)
    return own


def _ends_within_line(path: str) -> bool:
    """Tell whether a regular file's last line was cut short by a full disk or a kill."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


class LineWriter:
    """Write lines in a thread.

    All methods belong to the reactor's thread. The thread starts with the first
    lines, so that a daemon may fork before.

    Args:
        descriptor: Open for writing; closed by `stop`.
        clock: Times reports and the end.
        name: What the lines are, for reports.
        backlog: Lines kept while they can't be written.
    """

    def __init__(self, descriptor: int, clock: IReactorTime, *, name: str, backlog: int) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._name = name
        self._backlog = backlog
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._queue: SimpleQueue[tuple[bytes, int] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._abandoned = False
        # Lines. Each counter has one thread that changes it; the other reads.
        self._handed_over = 0
        self._refused = 0
        self._written = 0
        self._lost = 0
        # What the thread met, in words; None while all is well.
        self._trouble: str | None = None
        self._closed = False
        # What has been reported.
        self._reported_trouble: str | None = None
        self._reported_dropped = 0
        self._dropping = False
        self._check_scheduled = False

    @property
    def pending(self) -> int:
        """How many lines wait to be written."""
        return self._handed_over - self._written - self._lost

    @property
    def dropped(self) -> int:
        """How many lines will never be written."""
        return self._refused + self._lost

    def write(self, data: bytes, lines: int) -> None:
        """Have lines written, or drop them all if that is more than may be kept.

        Args:
            data: Whole lines, each with its line feed.
            lines: How many; no more than the backlog.
        """
        if self._closed or self._stopping.is_set() or self.pending + lines > self._backlog:
            self._refused += lines
        else:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._handed_over += lines
            self._queue.put((data, lines))
        if not self._check_scheduled and not self._stopping.is_set():
            self._check_scheduled = True
            self._clock.callLater(REPORT_INTERVAL, self._check)

    def stop(self) -> Deferred[None]:
        """Write what is kept, for a bounded time, and close the descriptor.

        Returns:
            Fires with None when all is written, or nothing more can be, or after
            STOP_TIMEOUT seconds; never fails.
        """
        done: Deferred[None] = Deferred()
        first = not self._stopping.is_set()
        self._stopping.set()
        if self._thread is None:
            if first:
                os.close(self._descriptor)
            done.callback(None)
            return done
        self._queue.put(None)
        self._await_end(done, self._clock.seconds() + STOP_TIMEOUT)
        return done

    def _await_end(self, done: Deferred[None], deadline: float) -> None:
        alive = self._thread is not None and self._thread.is_alive()
        if alive and self._clock.seconds() < deadline:
            self._clock.callLater(_STOP_POLL, self._await_end, done, deadline)
            return
        self._abandoned = True
        unwritten = self.dropped + self.pending - self._reported_dropped
        if unwritten:
            _log.warn(
                "{name}: stopped, {lines} not written ({trouble})",
                name=self._name,
                lines=f"{_lines(unwritten)} {'was' if unwritten == 1 else 'were'}",
                trouble=self._trouble or ("its reader is stuck" if alive else "dropped"),
            )
        done.callback(None)

    def _check(self) -> None:
        """Report what changed, and look again while anything is under way."""
        self._check_scheduled = False
        if self._stopping.is_set():
            return
        trouble, dropped = self._trouble, self.dropped
        new = dropped - self._reported_dropped
        if trouble is not None and trouble != self._reported_trouble:
            _log.warn(
                "{name}: {trouble}; traffic goes on; {lines} dropped since the start",
                name=self._name,
                trouble=trouble,
                lines=_lines(dropped),
            )
        elif new and not self._closed:
            _log.warn(
                "{name}: dropped {lines} that could not be written in time, "
                "{dropped} since the start",
                name=self._name,
                lines=_lines(new),
                dropped=dropped,
            )
        elif trouble is None and not new and (self._reported_trouble or self._dropping):
            _log.info(
                "{name}: is written again; {lines} dropped since the start",
                name=self._name,
                lines=_lines(dropped),
            )
        self._reported_trouble, self._reported_dropped = trouble, dropped
        self._dropping = bool(new)
        if not self._closed and (self.pending or trouble is not None or new):
            self._check_scheduled = True
            self._clock.callLater(REPORT_INTERVAL, self._check)

    # What follows runs in the thread.

    def _run(self) -> None:
        usable = True
        try:
            while (item := self._queue.get()) is not None:
                data, lines = item
                # Given up once means given up for good: a line may be half written.
                usable = usable and self._write_all(data)
                if usable:
                    self._written += lines
                else:
                    self._lost += lines
        finally:
            os.close(self._descriptor)

    def _write_all(self, data: bytes) -> bool:
        """Write all of some lines, however long it takes; False if that can't be."""
        start = 0
        while start < len(data):
            if self._abandoned:
                return False
            end = len(data) if self._is_file else _whole_lines(data, start)
            try:
                start += os.write(self._descriptor, memoryview(data)[start:end])
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(_POLL_TIMEOUT)
            except OSError as error:
                if not self._survive(error):
                    return False
            else:
                self._trouble = None
        return True

    def _survive(self, error: OSError) -> bool:
        """Wait after an error until another attempt makes sense; False if none does."""
        if error.errno == errno.EPIPE:
            self._closed = True
            self._trouble = "closed by its reader, nothing more is written"
            return False
        self._trouble = f"can't be written: {error.strerror}"
        return not self._stopping.wait(RETRY_DELAY)


def _lines(number: int) -> str:
    return "1 line" if number == 1 else f"{number} lines"


def _whole_lines(data: bytes, start: int) -> int:
    """Return where the lines end that enter a pipe in one piece."""
    end = data.rfind(b"\n", start, start + _PIPE_CHUNK)
    if end < 0:
        end = data.find(b"\n", start)
    return end + 1 if end >= 0 else len(data)
