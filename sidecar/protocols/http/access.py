"""May this user? What the answers are, for those who never ask (`auth` does)."""

from __future__ import annotations

from enum import Enum

__all__ = ["Access"]


class Access(Enum):
    """What checking a request's credentials came to."""

    GRANTED = "granted"
    REFUSED = "refused"  # none, or wrong ones
    UNAVAILABLE = "unavailable"  # a checker failed, or took too long
    BUSY = "busy"  # too many are being checked
