from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import PATIENCE

from sidecar.linux.leases import Leases, be_told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRITE = "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), b'!')"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"as it was")
    return path


@pytest.fixture
def leases() -> Iterator[Leases]:
    """What is told of them is held back, to be looked for."""
    made = Leases()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    yield made
    made.close()
    while signal.SIGIO in signal.sigpending():
        signal.sigwait({signal.SIGIO})
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_writer_waits(path: Path, leases: Leases) -> None:
    """Who writes waits; we are told which file it is, and then they go on."""
    leases.take(str(path))
    leases.take(__file__)
    assert [] == leases.broken()
    with subprocess.Popen([sys.executable, "-c", WRITE, str(path)]) as writer:
        assert signal.sigtimedwait({signal.SIGIO}, PATIENCE) is not None
        assert [str(path)] == leases.broken()
        assert writer.poll() is None
        assert b"as it was" == path.read_bytes()
        leases.close()
        assert 0 == writer.wait(PATIENCE)
    assert b"!s it was" == path.read_bytes()


def test_told_elsewhere(path: Path, leases: Leases) -> None:
    """Another process that has the descriptor can be told instead; the lease stays ours."""
    leases.take(str(path))
    (descriptor,) = leases.paths
    heard, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGIO, lambda *_: os._exit(7))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
        be_told(descriptor)
        os.close(descriptor)
        os.write(tell, b"!")
        while True:
            signal.pause()
    os.read(heard, 1)
    os.close(heard)
    os.close(tell)
    with subprocess.Popen([sys.executable, "-c", WRITE, str(path)]) as writer:
        assert 7 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert signal.SIGIO not in signal.sigpending()
        assert (None, [str(path)]) == (writer.poll(), leases.broken())
        leases.close()


def test_open_for_writing(path: Path, leases: Leases) -> None:
    """There is none while somebody has the file open for writing; no descriptor is left."""
    with path.open("ab"), pytest.raises(BlockingIOError):
        leases.take(str(path))
    assert {} == leases.paths
