from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from observe.stopping import stop_writing
from support import PATIENCE, wait_for
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

from sidecar.observe import line_writer
from sidecar.observe.line_writer import REPORT_INTERVAL, STOP_TIMEOUT, LineWriter, open_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE = b'{"a":1}\n'


def stop(writer: LineWriter, clock: Clock) -> float:
    """Stop a writer; returns how many seconds of the clock that took."""
    started = clock.seconds()
    stop_writing(writer, writer.stop, clock)
    return clock.seconds() - started


@contextmanager
def reports() -> Iterator[list[str]]:
    """Gather what is logged."""
    messages: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == line_writer.__name__:
            messages.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield messages
    finally:
        globalLogPublisher.removeObserver(observe)


def make(descriptor: int, clock: Clock, backlog: int = 100) -> LineWriter:
    return LineWriter(descriptor, clock, name="access log", backlog=backlog)


class TestFile:
    def test_writes_in_order(self, tmp_path: Path) -> None:
        """Lines arrive whole, in order, and stop() waits for them."""
        clock = Clock()
        writer = make(open_log(str(tmp_path / "log")), clock, backlog=1000)
        lines = [b"%d\n" % number for number in range(500)]
        for line in lines:
            writer.write(line, 1)
        stop(writer, clock)
        assert b"".join(lines) == (tmp_path / "log").read_bytes()
        assert (0, 0) == (writer.pending, writer.dropped)

    def test_appends(self, tmp_path: Path) -> None:
        """A log that is there is continued."""
        path = tmp_path / "log"
        path.write_bytes(LINE)
        clock = Clock()
        writer = make(open_log(str(path)), clock)
        writer.write(LINE, 1)
        stop(writer, clock)
        assert LINE + LINE == path.read_bytes()

    def test_torn_end(self, tmp_path: Path) -> None:
        """Half a line, left by a kill or a full disk, does not spoil the next one."""
        path = tmp_path / "log"
        path.write_bytes(b'{"a"')
        os.close(open_log(str(path)))
        assert b'{"a"\n' == path.read_bytes()

    def test_not_readable_by_others(self, tmp_path: Path) -> None:
        """A new log is for its owner and group: it says who talked to whom."""
        os.close(open_log(str(tmp_path / "log")))
        assert 0 == (tmp_path / "log").stat().st_mode & 0o007

    def test_cannot_open(self, tmp_path: Path) -> None:
        """A log that can't be opened is an OSError at once, not later."""
        with pytest.raises(OSError, match="No such file"):
            open_log(str(tmp_path / "missing" / "log"))
        with pytest.raises(OSError, match="directory"):
            open_log(str(tmp_path))

    def test_nothing_written(self, tmp_path: Path) -> None:
        """A writer that wrote nothing started no thread, and closes its descriptor."""
        descriptor = open_log(str(tmp_path / "log"))
        clock = Clock()
        threads = set(threading.enumerate())
        writer = make(descriptor, clock)
        assert set() == set(threading.enumerate()) - threads
        stop(writer, clock)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        stop(writer, clock)

    def test_after_stop(self, tmp_path: Path) -> None:
        """Lines that come after the end are counted as dropped and set no timer."""
        clock = Clock()
        writer = make(open_log(str(tmp_path / "log")), clock)
        stop(writer, clock)
        writer.write(LINE, 1)
        assert (1, []) == (writer.dropped, clock.getDelayedCalls())


class TestFullDisk:
    def test_dev_full(self) -> None:
        """ENOSPC: the trouble is reported once, lines are kept, then dropped and counted."""
        clock = Clock()
        writer = make(open_log("/dev/full"), clock, backlog=3)
        with reports() as messages:
            for _ in range(5):
                writer.write(LINE, 1)
            assert (3, 2) == (writer.pending, writer.dropped)
            wait_for(lambda: writer._trouble is not None)
            for _ in range(5):
                clock.advance(REPORT_INTERVAL)
            assert [
                (
                    "access log: can't be written: No space left on device; traffic goes on; "
                    "2 lines dropped since the start"
                )
            ] == messages
            stop(writer, clock)
            assert (
                "access log: stopped, 3 lines were not written "
                "(can't be written: No space left on device)"
            ) == messages[-1]
        assert (0, 5) == (writer.pending, writer.dropped)

    def test_recovers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """When there is room again what was kept is written, torn nowhere, and that is said."""
        monkeypatch.setattr(line_writer, "RETRY_DELAY", 0.01)
        path = tmp_path / "log"
        line = b"x" * 99 + b"\n"
        clock = Clock()
        writer = make(open_log(str(path)), clock, backlog=20)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # The second line does not fit: 50 of its bytes do.
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
        try:
            with reports() as messages:
                for _ in range(3):
                    writer.write(line, 1)
                wait_for(lambda: writer._trouble is not None)
                clock.advance(REPORT_INTERVAL)
                assert line + line[:50] == path.read_bytes()
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                wait_for(lambda: writer.pending == 0)
                clock.advance(REPORT_INTERVAL)
                clock.advance(REPORT_INTERVAL)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert line * 3 == path.read_bytes()
        assert [
            (
                "access log: can't be written: File too large; traffic goes on; "
                "0 lines dropped since the start"
            ),
            "access log: is written again; 0 lines dropped since the start",
        ] == messages
        assert [] == clock.getDelayedCalls()
        stop(writer, clock)

    def test_real_disk(self, tmp_path: Path) -> None:
        """On a file system of 64 KiB the log goes on when somebody has made room."""
        mount = tmp_path / "small"
        mount.mkdir()
        script = f"""
import os, subprocess, time
from twisted.internet.task import Clock
from sidecar.observe import line_writer
line_writer.RETRY_DELAY = 0.01
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", {str(mount)!r}], check=True)
filler = open({str(mount / "filler")!r}, "wb")
filler.write(bytes(32768)); filler.flush()
line = b"x" * 99 + b"\\n"
writer = line_writer.LineWriter(
    line_writer.open_log({str(mount / "log")!r}), Clock(), name="log", backlog=1000)
for _ in range(50):
    writer.write(line * 10, 10)
deadline = time.monotonic() + 10
while writer._trouble is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)
os.unlink({str(mount / "filler")!r}); filler.close()
while writer.pending:
    assert time.monotonic() < deadline
    time.sleep(0.01)
assert open({str(mount / "log")!r}, "rb").read() == line * 500
"""
        if os.geteuid() != 0:
            pytest.skip("mounting a file system needs root")
        subprocess.run(["unshare", "--mount", sys.executable, "-c", script], check=True)


class TestPipe:
    def test_closed_pipe(self) -> None:
        """EPIPE: said once, lines dropped and counted from then on, nothing raised."""
        reading, writing = os.pipe()
        os.close(reading)
        clock = Clock()
        writer = make(writing, clock)
        with reports() as messages:
            writer.write(LINE, 1)
            wait_for(lambda: writer.dropped == 1)
            for _ in range(5):
                writer.write(LINE, 1)
                clock.advance(REPORT_INTERVAL)
            assert [
                (
                    "access log: closed by its reader, nothing more is written; traffic goes on; "
                    "2 lines dropped since the start"
                )
            ] == messages
        assert (0, 6) == (writer.pending, writer.dropped)
        assert stop(writer, clock) < STOP_TIMEOUT

    def test_stuck_reader(self, tmp_path: Path) -> None:
        """A reader that stands still stops nobody: what is too much is dropped, in whole lines."""
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        clock = Clock()
        writer = make(open_log(str(fifo)), clock, backlog=10)
        line = b"x" * 999 + b"\n"
        with reports() as messages:
            sent = 0
            while writer.dropped < 10:
                # It would never return.
                writer.write(line, 1)
                sent += 1
                time.sleep(0.0005)
            clock.advance(REPORT_INTERVAL)
            clock.advance(REPORT_INTERVAL)
            assert [
                "access log: dropped 10 lines that could not be written in time, 10 since the start"
            ] == messages[:1]
            received = b""
            while writer.pending:
                with suppress(BlockingIOError):
                    received += os.read(reading, 65536)
            with suppress(BlockingIOError):
                while chunk := os.read(reading, 65536):
                    received += chunk
            clock.advance(REPORT_INTERVAL)
            assert "access log: is written again; 10 lines dropped since the start" == messages[-1]
        assert line * (sent - 10) == received
        stop(writer, clock)
        os.close(reading)

    def test_stop_is_bounded(self) -> None:
        """With a reader that stands still, stop() gives up after its time, between lines."""
        reading, writing = os.pipe()
        clock = Clock()
        writer = make(writing, clock, backlog=1000)
        line = b"x" * 299 + b"\n"
        for _ in range(10):
            writer.write(line * 100, 100)
        stopped = writer.stop()
        clock.pump([0.005] * round((STOP_TIMEOUT - 0.1) / 0.005))
        assert not stopped.called
        clock.pump([0.005] * round(0.2 / 0.005))
        assert stopped.called
        os.set_blocking(reading, False)
        received = b""
        # The write under way is completed when somebody reads; then the thread ends.
        deadline = time.monotonic() + PATIENCE
        while (thread := writer._thread) is not None and thread.is_alive():
            assert time.monotonic() < deadline
            with suppress(BlockingIOError):
                received += os.read(reading, 65536)
        assert 0 == len(received) % 300
        assert len(received) < 300 * 1000
        os.close(reading)

    def test_exit_is_bounded(self) -> None:
        """A stuck reader does not keep the process from exiting, and sees whole lines."""
        script = """
import sys
from twisted.internet import reactor
from sidecar.observe.line_writer import LineWriter
writer = LineWriter(1, reactor, name="log", backlog=10**6)
for _ in range(100):
    writer.write((b"x" * 299 + b"\\n") * 100, 100)
writer.stop().addCallback(lambda _: reactor.stop())
reactor.run()
"""
        started = time.monotonic()
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert 0 == process.wait(timeout=PATIENCE + STOP_TIMEOUT)
            assert time.monotonic() - started < PATIENCE
            received = process.stdout.read()
        assert 0 < len(received)
        assert 0 == len(received) % 300

    def test_reader_comes_and_goes(self, tmp_path: Path) -> None:
        """A FIFO needs no reader at the start and survives one that leaves."""
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        clock = Clock()
        writer = make(open_log(str(fifo)), clock)
        for number in (b"1\n", b"2\n"):
            writer.write(number, 1)
            reading = os.open(fifo, os.O_RDONLY)
            assert number == os.read(reading, 100)
            os.close(reading)
        stop(writer, clock)
        assert 0 == writer.dropped

    def test_non_blocking_pipe(self) -> None:
        """A pipe that somebody made non-blocking is waited for, not spun on, not lost."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        clock = Clock()
        writer = make(writing, clock, backlog=1000)
        line = b"x" * 299 + b"\n"
        for _ in range(5):
            writer.write(line * 100, 100)
        received = b""
        while len(received) < 300 * 500:
            received += os.read(reading, 65536)
        stop(writer, clock)
        assert line * 500 == received
        os.close(reading)


class TestStandardOutput:
    def test_log_alone(self) -> None:
        """With "-" standard output has the log's lines only; all else goes to standard error."""
        script = """
import os, sys
from twisted.internet import reactor
from sidecar.observe.line_writer import LineWriter, open_log
sys.stdout.write("before, ")
writer = LineWriter(open_log("-"), reactor, name="log", backlog=10)
writer.write(b"line\\n", 1)
print("after")
os.write(1, b"directly")
writer.stop().addCallback(lambda _: reactor.stop())
reactor.run()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        assert b"before, line\n" == done.stdout
        assert {b"after", b"directly"} <= set(
            done.stderr.replace(b"directly", b"directly\n").split()
        )
