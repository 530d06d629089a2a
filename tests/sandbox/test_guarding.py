from __future__ import annotations

import mmap
import os
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sidecar.sandbox import guarding
from sidecar.sandbox.guarding import Guard
from sidecar.sandbox.handover import Channel, Word

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def ours_alone(mapped: Callable[[], list[str]], directory: Path) -> Callable[[], list[str]]:
    """The same, without what the tests run from."""
    return lambda: [path for path in mapped() if path.startswith(str(directory))]


def test_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mapped is guarded, and the leases handed over; what can't be is told."""
    with ExitStack() as stack:
        paths = [tmp_path / f"a name {number}" for number in range(3)]
        for path in paths:
            path.write_bytes(b"mapped")
            file = stack.enter_context(path.open("rb"))
            stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        # It is not guarded while somebody has it open for writing.
        stack.enter_context(paths[2].open("ab"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        stack.enter_context(theirs)
        monkeypatch.setattr(guarding, "GUARDED_AT_ONCE", 1)
        monkeypatch.setattr(guarding, "_mapped", ours_alone(guarding._mapped, tmp_path))
        guard = Guard(Channel(ours))
        stack.callback(guard.close)
        assert [str(paths[2])] == guard.hold()
        handed_over = set()
        for _ in range(2):
            message = Channel(theirs).hear_from()
            assert Word.GUARD is message.word
            (descriptor,) = message.descriptors
            stack.callback(os.close, descriptor)
            handed_over.add(os.fstat(descriptor).st_ino)
        assert {path.stat().st_ino for path in paths[:2]} == handed_over
        assert [] == guard.broken()


def test_mapped() -> None:
    """What is mapped is what this process runs from, and no device."""
    mapped = guarding._mapped()
    assert os.path.realpath(sys.executable) in mapped
    assert any(path.endswith(".so") for path in mapped)
    assert not [path for path in mapped if path.startswith(("/dev/", "["))]
