"""What tests of several modules need."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PATIENCE", "open_descriptors", "wait_for"]

# Seconds to wait for what a thread or process does; a busy machine needs some.
PATIENCE = 10.0


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a thread or process has brought a condition about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.002)


def open_descriptors() -> dict[int, str]:
    """This process's descriptors, and what each leads to."""
    # All are listed before the first is read: the listing's own is gone by then.
    entries = list(Path("/proc/self/fd").iterdir())
    return {int(entry.name): str(entry.readlink()) for entry in entries if entry.is_symlink()}
