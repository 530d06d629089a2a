"""Importing what serves the sandbox, in the time that a person doesn't notice: all waits for it."""

from __future__ import annotations

import gc
import sys
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["import_reactor", "without_collecting"]

# twisted.python.compat names it, for others; it brings urllib, http.client and email along: a
# tenth of all that there is to import.
_COOKIES = "http.cookiejar"


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
            pyOpenSSL, and asyncio no ssl, which both can do without: a third less to import.
    """
    with ExitStack() as stack:
        stack.enter_context(_postponed(_COOKIES))
        if not tls:
            stack.enter_context(_hidden("OpenSSL"))
            stack.enter_context(_hidden("ssl"))
        import twisted.internet.reactor  # noqa: F401 - imported for those who import it next


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Have nobody find a module that isn't imported yet."""
    if name in sys.modules:
        yield
        return
    # What the import system takes for "there is none" (importlib).
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _postponed(name: str) -> Iterator[None]:
    """Have whoever imports a module get one that is imported when it is used.

    Afterwards it is imported as ever.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        del sys.modules[name]


class _Later(ModuleType):
    """A module that is imported once it is asked for anything."""

    def __getattr__(self, attribute: str) -> object:
        # What the import system asks of it is nobody's use.
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(import_module(self.__name__), attribute)
