"""What was made of sections of fields that come again: clients and servers repeat theirs."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Repeated"]

V = TypeVar("V")

# Sections that are longer are seldom the same twice: cookies make them long.
_MAX_BYTES = 1_024
# Sections, with what was made of them 4 KiB each at most.
_MAX_KEPT = 256
# Nobody's password or session is kept for longer than its message takes: Authorization,
# Proxy-Authorization, Cookie, Set-Cookie, as programs write them.
_SECRETS = (b"uthorization:", b"ookie:")


class Repeated(Generic[V]):
    """What was made of sections, by their bytes.

    Attributes:
        get: ``get(section)`` is what was made of it, or None; a dict's own method, since
            it is called for every message.
    """

    __slots__ = ("_kept", "get")

    def __init__(self) -> None:
        self._kept: dict[bytes, V] = {}
        self.get = self._kept.get

    def keep(self, section: bytes, made: V) -> None:
        """Keep what was made of a section, if it is short and has no secret."""
        if len(section) > _MAX_BYTES or _SECRETS[0] in section or _SECRETS[1] in section:
            return
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        self._kept[section] = made
