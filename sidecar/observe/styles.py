"""How text for people looks: coloured or not, numbers short, peers' text harmless."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ColorWhen", "Look", "Style", "amount", "duration", "printable", "wants_color"]


class ColorWhen(Enum):
    """When to colour (``--color``)."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Style(Enum):
    """What a text is; the value is how it is coloured (ECMA-48 §8.3.117, SGR)."""

    PLAIN = ""
    QUIET = "2"
    GOOD = "32"
    BAD = "1;31"
    ODD = "33"
    BUSY = "36"


def _unbounded() -> None:
    return None


class Look(NamedTuple):
    """How lines are to look.

    Attributes:
        color: Whether to colour.
        arrows: Whether arrows can be shown: the encoding is UTF-8.
        columns: Tells how many the terminal has, which may change at any time; None where
            there is none, and nothing to fit into.
        verbose: Whether to say all that is known.
    """

    color: bool = False
    arrows: bool = True
    columns: Callable[[], int | None] = _unbounded
    verbose: bool = False

    @property
    def width(self) -> int | None:
        """Columns of the terminal, as it is now; None where there is none."""
        return self.columns()

    def paint(self, text: str, style: Style) -> str:
        """Colour a text, if that is wanted."""
        if not self.color or style is Style.PLAIN or not text:
            return text
        return f"\x1b[{style.value}m{text}\x1b[0m"

    @property
    def up(self) -> str:
        """What stands for bytes from the command."""
        return "↑" if self.arrows else ">"

    @property
    def down(self) -> str:
        """What stands for bytes to the command."""
        return "↓" if self.arrows else "<"


def wants_color(when: ColorWhen, environment: Mapping[str, str], *, is_terminal: bool) -> bool:
    """Whether to colour.

    Args:
        when: Always, never, or if there is a terminal that can, and nobody minds
            (https://no-color.org).
        environment: NO_COLOR and TERM count.
        is_terminal: Whether the text goes to one.
    """
    if when is not ColorWhen.AUTO:
        return when is ColorWhen.ALWAYS
    if not is_terminal or environment.get("NO_COLOR"):
        return False
    return environment.get("TERM", "dumb") not in {"", "dumb", "unknown"}


_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_STEP = 1000
_TEN = 9.95


def amount(octets: int) -> str:
    """Write a number of bytes in at most five characters: 517B, 1.2kB, 345kB, 1.0MB."""
    value = float(octets)
    unit = 0
    # 999.5 would be rounded to 1000.
    while value >= _STEP - 0.5 and unit < len(_UNITS) - 1:
        value /= _STEP
        unit += 1
    number = f"{value:.1f}" if unit and value < _TEN else f"{value:.0f}"
    return number + _UNITS[unit]


_MINUTE = 60
_HOUR = 3600
_HUNDREDTHS_UP_TO = 9.995
_TENTHS_UP_TO = 59.95


def duration(seconds: float) -> str:
    """Write a time in at most six characters: 0.23s, 12.3s, 4m05s, 1h02m, 123h."""
    if seconds < _HUNDREDTHS_UP_TO:
        return f"{seconds:.2f}s"
    if seconds < _TENTHS_UP_TO:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    hours, minutes = whole // _HOUR, whole % _HOUR // _MINUTE
    if not hours:
        return f"{minutes}m{whole % _MINUTE:02}s"
    return f"{hours}h{minutes:02}m" if hours < 100 else f"{hours}h"  # noqa: PLR2004 - three digits


_UNPRINTABLE = re.compile(r"[^ -~]")


def printable(text: str, limit: int) -> str:
    r"""Write what a peer or program has chosen in printable ASCII, and not too long.

    Args:
        text: Anything.
        limit: Characters; what is longer is cut, and ends in ``...``.

    Returns:
        Other characters as ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``.
    """
    # What is cut need not be escaped first.
    shown = _UNPRINTABLE.sub(_escape, text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:  # noqa: PLR2004 - two digits
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004
