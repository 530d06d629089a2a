"""What the benchmarks' command lines have in common."""

from __future__ import annotations

__all__ = ["positive"]


def positive(text: str) -> int:
    """Read a whole number of at least 1.

    Raises:
        ValueError: It is none.
    """
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
