"""What a run of `http` gave, for people and as JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks import stats
from benchmarks.http_measures import BUSY, COST, FIGURES, Measure
from benchmarks.http_peers import OURS
from benchmarks.peers import DIRECT
from benchmarks.processes import output_of
from benchmarks.stats import Figure, Samples, table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Results", "as_json", "as_text"]


@dataclass(slots=True)
class Results:
    """What was measured, how, and what wasn't.

    Attributes:
        rounds, seconds, host, base: As the command line has them.
        place: Where.
        chosen: What.
        names: The columns.
        samples: Every figure.
        versions: Of the proxies.
        logs: Lines of the access logs.
        missing: What isn't installed.
        failures: What went wrong.
    """

    rounds: int
    seconds: int
    host: str
    base: str
    place: str = "the host's loopback"
    chosen: list[Measure] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)
    versions: dict[str, str] = field(default_factory=dict)
    logs: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def proxies(self) -> Sequence[str]:
        """The columns that have a proxy."""
        return [name for name in self.names if name != DIRECT]


def as_text(results: Results) -> str:
    """Render the table, how busy each proxy was, and ours by each."""
    figures = [figure for measure in results.chosen for figure in _rows(measure)]
    rounds = f"Medians of {results.rounds} interleaved rounds of {results.seconds} s each"
    lines = [
        f"{rounds}; ratios to {results.base}.",
        f"One process each, {results.place}, no pinning; requests for http://{results.host}.",
        "",
        table(results.samples, figures, results.names, results.base),
        "",
        "Processor time of the proxy, % of one processor's:",
        *_busy(results),
        "",
        *_ratios(results),
        "",
        _machine(),
        *(f"{name}: {version}" for name, version in results.versions.items()),
        f"access log, lines: {', '.join(f'{name} {n:,}' for name, n in results.logs.items())}",
    ]
    if results.base not in results.names:
        lines.append(f"No ratios: {results.base} did not run.")
    lines += [*results.missing, *(f"failed: {failure}" for failure in results.failures)]
    return "\n".join(lines) + "\n"


def _rows(measure: Measure) -> tuple[Figure, ...]:
    return (*FIGURES[measure], COST[measure]) if measure in COST else FIGURES[measure]


def _busy(results: Results) -> list[str]:
    lines = []
    for name in results.proxies:
        shown = [
            f"{measure.value} {busy:.0f}"
            for measure in results.chosen
            if (busy := results.samples.median(BUSY[measure], name)) is not None
        ]
        lines.append(f"{name}: {', '.join(shown)}")
    return lines


def _ratios(results: Results) -> list[str]:
    """Divide ours by each: of every measure the first figure."""
    lines = []
    for name in results.proxies:
        shown = [
            f"{measure.value} {ratio:.2f}{_less(measure)}"
            for measure in results.chosen
            if (ratio := results.samples.ratio(FIGURES[measure][0], OURS, name)) is not None
        ]
        if name != OURS and shown:
            lines.append(f"{OURS} / {name}: {', '.join(shown)}")
    return lines


def _less(measure: Measure) -> str:
    return " (less is better)" if FIGURES[measure][0].better == "less" else ""


def _machine() -> str:
    programs = f"{output_of('nginx', '-v').strip()}; {output_of('wrk', '-v').partition(' [')[0]}"
    return f"machine: Linux {platform.release()}, {os.cpu_count()} processors; {programs}"


def as_json(results: Results) -> dict[str, object]:
    """Return everything, every sample included."""
    figures = [figure for each in results.chosen for figure in (*_rows(each), BUSY[each])]
    return {
        "machine": _machine(),
        "versions": results.versions,
        "seconds": results.seconds,
        "host": results.host,
        "place": results.place,
        "base": results.base,
        "access_log_lines": results.logs,
        "missing": results.missing,
        "failures": results.failures,
        "figures": stats.as_json(results.samples, figures, results.names, results.base),
    }
