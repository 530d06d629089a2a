"""Finding what others add by Twisted plugins: decision steps and observers, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.plugin import getPlugins

from sidecar.errors import ExtensionError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["find_plugins"]


def find_plugins(interface: Any, names: Iterable[str]) -> tuple[Any, ...]:
    """Look plugins up by their `name`. Nothing is loaded unless something is asked for.

    Args:
        interface: What they provide, besides IPlugin: a zope interface with a `name`.
        names: In the order wanted.

    Returns:
        Providers of the interface.

    Raises:
        ExtensionError: One that isn't installed.
    """
    wanted = tuple(names)
    if not wanted:
        return ()
    found = {plugin.name: plugin for plugin in getPlugins(interface)}
    for name in wanted:
        if name not in found:
            raise ExtensionError(name, sorted(found))
    return tuple(found[name] for name in wanted)
