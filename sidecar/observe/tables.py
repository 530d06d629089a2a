"""Tables for people, by rich: a tenth of a second to import, so only what shows one does."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sidecar.observe.styles import Look

__all__ = ["Tables"]

_GAP = 2
# As wide as it gets where there is nothing to fit into: lines for grep.
_ANY_WIDTH = 1000


class Tables:
    """Gathers tables and lines, as text.

    Nothing in it is taken for markup.

    Args:
        look: Colours and width.

    Attributes:
        width: Columns; very many where there is nothing to fit into.
    """

    def __init__(self, look: Look) -> None:
        self._output = StringIO()
        self.width = look.width or _ANY_WIDTH
        self._console = Console(
            file=self._output,
            force_terminal=look.color,
            color_system="standard" if look.color else None,
            width=self.width,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
            # What the environment says of colours and width has been heeded already.
            _environ={},
        )

    @property
    def text(self) -> str:
        """All of it, in whole lines without spaces at their ends."""
        return "".join(f"{line.rstrip()}\n" for line in self._output.getvalue().split("\n")[:-1])

    def fits(self, rows: Sequence[tuple[str, ...]], titles: tuple[str, ...]) -> bool:
        """Whether a table would be as wide as the terminal at most."""
        columns = zip(titles, *rows, strict=True)
        return sum(max(map(len, column)) + _GAP for column in columns) <= self.width + _GAP

    def table(
        self,
        rows: Sequence[tuple[str, ...]],
        titles: tuple[str, ...],
        *,
        styles: tuple[str, ...],
        right: Collection[int] = (),
    ) -> None:
        """Add a table; what does not fit is folded.

        Args:
            rows: Its cells.
            titles: One for each column.
            styles: Likewise, in rich's words; empty for none.
            right: The numbers of columns of numbers.
        """
        made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
        for number, (title, style) in enumerate(zip(titles, styles, strict=True)):
            made.add_column(
                title,
                justify="right" if number in right else "left",
                style=style or None,
                overflow="fold",
            )
        for row in rows:
            made.add_row(*map(Text, row))
        self._console.print(made)

    def line(self, *parts: tuple[str, str] | str) -> None:
        """Add a line, unbroken: texts, or texts with their styles."""
        self._console.print(Text.assemble(*parts), soft_wrap=True)
