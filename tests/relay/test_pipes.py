from __future__ import annotations

import errno
import fcntl
import os
import resource
from typing import TYPE_CHECKING

import pytest
from relay.transcripts import bytes_in
from support import open_descriptors
from turning import nothing_left

from sidecar.relay.pipes import PIPE_SIZE, Pipe, PipePool

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pool() -> Iterator[PipePool]:
    with nothing_left():
        made = PipePool()
        yield made
        made.close()


def acquire(pool: PipePool) -> Pipe:
    """Take a pipe that is to be had."""
    pipe = pool.acquire()
    assert pipe is not None
    return pipe


class TestPipe:
    def test_made(self, pool: PipePool) -> None:
        """A pipe is big, empty, never blocks, and no child inherits it."""
        pipe = acquire(pool)
        assert PIPE_SIZE == fcntl.fcntl(pipe.writer, fcntl.F_GETPIPE_SZ)
        assert 0 == bytes_in(pipe)
        for end in pipe:
            assert not os.get_inheritable(end)
            assert not os.get_blocking(end)
        pool.release(pipe)

    def test_small(self, pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A user whose share of pipe memory is used up gets a small one."""

        def refuse(*_: object) -> int:
            raise PermissionError(errno.EPERM, "no")

        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "fcntl", refuse)
            pipe = acquire(pool)
        assert PIPE_SIZE > fcntl.fcntl(pipe.writer, fcntl.F_GETPIPE_SZ)
        pool.discard(pipe)

    def test_no_descriptors(self, pool: PipePool) -> None:
        """At the descriptor limit there is none, and no exception."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        # One descriptor is left: half a pipe.
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
        try:
            assert pool.acquire() is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_other_errors(self, pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Any other error is a bug, and not hidden."""

        def refuse(_: int) -> tuple[int, int]:
            raise OSError(errno.EINVAL, "no")

        with monkeypatch.context() as patched:
            patched.setattr(os, "pipe2", refuse)
            with pytest.raises(OSError, match="no"):
                pool.acquire()


class TestPool:
    def test_reuse(self, pool: PipePool) -> None:
        """An empty pipe is used again."""
        pipe = acquire(pool)
        pool.release(pipe)
        assert pipe == pool.acquire()
        pool.release(pipe)

    def test_discard(self, pool: PipePool) -> None:
        """One with bytes in it is closed instead; the next one is empty."""
        pipe = acquire(pool)
        os.write(pipe.writer, b"of another connection")
        pool.discard(pipe)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pipe.reader)
        fresh = acquire(pool)
        assert 0 == bytes_in(fresh)
        pool.release(fresh)

    def test_bounded(self, pool: PipePool) -> None:
        """Idle pipes above the bound are closed."""
        before = len(open_descriptors())
        pipes = [acquire(pool) for _ in range(50)]
        for pipe in pipes:
            pool.release(pipe)
        assert before + 2 * 32 == len(open_descriptors())

    def test_close(self, pool: PipePool) -> None:
        """Closing the pool closes what idles; a pool can be used afterwards."""
        before = len(open_descriptors())
        pool.release(acquire(pool))
        pool.close()
        assert before == len(open_descriptors())
        pool.release(acquire(pool))
