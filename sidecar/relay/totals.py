"""What a relay amounted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sidecar.flow import FlowEnd

__all__ = ["Totals"]


class Totals(NamedTuple):
    """What a relay amounted to.

    Attributes:
        sent: Bytes delivered to the server.
        received: Bytes delivered to the client.
        end: How it ended; None while it goes on.
    """

    sent: int
    received: int
    end: FlowEnd | None
