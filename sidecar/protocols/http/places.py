"""Whom does an authority name? In the one form in which it is judged, dialled and sent."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from sidecar.addresses import Authority, SocketAddress, parse_authority

__all__ = ["MOST_PLACES", "Place", "place_of"]

MOST_PLACES = 1024
"""How many are remembered, of half a kilobyte each: clients that ask for more drive out
others', which then are read again."""

_HTTP_PORT = 80


class Place(msgspec.Struct, frozen=True):
    """Whom a request names.

    Attributes:
        host: The name; None where it is an address.
        address: The address, with the port; None where it is a name.
        authority: Either, as the configuration names it.
        field: The same, canonical, as Host has it: without the default port.
    """

    host: str | None
    address: SocketAddress | None
    authority: Authority
    field: bytes


@lru_cache(maxsize=MOST_PLACES)
def place_of(authority: bytes, default_port: int | None = _HTTP_PORT) -> Place:
    """Read an authority.

    Raises:
        AddressError: It is none.
    """
    parsed = parse_authority(authority, default_port)
    text = str(parsed)
    if parsed.port == default_port:
        text = text.removesuffix(f":{parsed.port}")
    field = text.encode("ascii")
    if isinstance(parsed.host, str):
        return Place(parsed.host, None, parsed, field)
    return Place(None, SocketAddress(str(parsed.host), parsed.port), parsed, field)
