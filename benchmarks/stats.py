"""What the samples of a run say: medians, ratios, the table.

A sample is one figure of one peer in one round. Every peer is measured in every
round, so a slow minute of the machine falls on all of them; the median over the
rounds then drops it. Only ratios of such medians are comparable between runs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Figure", "Samples", "as_json", "percentile", "rotated", "table"]

_ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table.

    Attributes:
        key: Its name in JSON.
        label: Its name for people, with the unit.
        better: "more" or "less".
        decimals: Digits after the point in the table.
    """

    key: str
    label: str
    better: str
    decimals: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Every sample of a run, by figure and peer."""

    _values: dict[tuple[Figure, str], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, figure: Figure, peer: str, value: float) -> None:
        """Keep one sample."""
        self._values[figure, peer].append(value)

    def of(self, figure: Figure, peer: str) -> Sequence[float]:
        """Return what was measured, in the order of the rounds; empty if nothing was."""
        return tuple(self._values.get((figure, peer), ()))

    def median(self, figure: Figure, peer: str) -> float | None:
        """Return the median over the rounds; None if nothing was measured."""
        values = self.of(figure, peer)
        return median(values) if values else None

    def ratio(self, figure: Figure, peer: str, base: str) -> float | None:
        """Return the peer's median over the base's; None if either is missing or zero."""
        ours, theirs = self.median(figure, peer), self.median(figure, base)
        return ours / theirs if ours is not None and theirs else None


def as_json(
    samples: Samples, figures: Sequence[Figure], peers: Sequence[str], base: str
) -> dict[str, object]:
    """Every sample with what it comes to, by figure and peer; the arguments as for `table`."""
    return {
        figure.key: {
            peer: {
                "samples": samples.of(figure, peer),
                "median": samples.median(figure, peer),
                "ratio": samples.ratio(figure, peer, base),
            }
            for peer in peers
        }
        for figure in figures
    }


def percentile(ordered: Sequence[int], percent: int) -> int:
    """Return the nearest-rank percentile.

    Args:
        ordered: At least one value, ascending.
        percent: 1 to 100.
    """
    return ordered[-(-len(ordered) * percent // 100) - 1]


def rotated(items: Sequence[str], by: int) -> list[str]:
    """Return the items beginning with another one each round, so that none is always first."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def table(samples: Samples, figures: Sequence[Figure], peers: Sequence[str], base: str) -> str:
    """Render medians, each with its ratio to the base's, one line per figure.

    Args:
        samples: What was measured.
        figures: The rows.
        peers: The columns.
        base: The peer that the others are divided by.

    Returns:
        A Markdown table, its columns aligned.
    """
    rows = [["", *peers], ["---", *("---:" for _ in peers)]]
    for figure in figures:
        cells = [f"{figure.label} ({figure.better} is better)"]
        for peer in peers:
            middle, ratio = samples.median(figure, peer), samples.ratio(figure, peer, base)
            text = _ABSENT if middle is None else f"{middle:,.{figure.decimals}f}"
            cells.append(text if ratio is None or peer == base else f"{text} ({ratio:.2f}x)")
        rows.append(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(peers) + 1)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    )
