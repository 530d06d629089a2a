"""Importing what serves the sandbox, in the time that a person doesn't notice: all waits for it."""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["import_reactor", "without_collecting"]


@contextmanager
def without_collecting() -> Iterator[None]:
    """Collect no garbage: what is imported is none, and looking for it takes time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_reactor(*, tls: bool) -> None:
    """Import Twisted's reactor.

    Args:
        tls: False if none of its transports will ever speak TLS. It then finds no
            pyOpenSSL, which it can do without: a third less to import.
    """
    hidden = not tls and "OpenSSL" not in sys.modules
    if hidden:
        # What the import system takes for "there is none" (importlib).
        sys.modules["OpenSSL"] = None  # type: ignore[assignment]
    try:
        import twisted.internet.reactor  # noqa: F401 - imported for those who import it next
    finally:
        if hidden:
            del sys.modules["OpenSSL"]
