"""`python -m benchmarks peek`: finding the origin by a ClientHello's name, beside its peers."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import measures
from benchmarks.options import add_comparison, say
from benchmarks.peek_peers import BARE, PROXIES
from benchmarks.peek_stage import Measure, Stage, enter_namespace, start_origins, start_proxies
from benchmarks.peers import DIRECT, HAPROXY
from benchmarks.stats import Figure, Samples, as_json, rotated, table
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["add_parser"]

_ANSWER_P50 = Figure("answer_p50", "first answer p50, µs", "less", 0)
_ANSWER_P99 = Figure("answer_p99", "first answer p99, µs", "less", 0)
_RATIOS = (
    ("sidecar-sni", BARE),
    ("sidecar-sni", HAPROXY),
    ("transparent-peek", "transparent"),
    ("transparent-peek", BARE),
    ("transparent-peek", HAPROXY),
)


_FIGURES: dict[Measure, tuple[Figure, ...]] = {
    Measure.RATE: (measures.CONNECTION_RATE,),
    Measure.ANSWER: (_ANSWER_P50, _ANSWER_P99),
    Measure.BULK: (measures.BULK_TO_SERVER,),
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `peek` and its options."""
    parser = commands.add_parser(
        "peek", help="relaying by a ClientHello's name beside HAProxy, nginx stream and sniproxy"
    )
    note = ": the relay that reads no hello"
    add_comparison(parser, Measure, PROXIES, DIRECT, base=BARE, base_note=note, rounds=5)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    chosen: list[Measure] = [measure for measure in Measure if measure in arguments.only]
    measures.raise_descriptor_limit()
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-benchmark-"))
        )
        stage = Stage(directory)
        samples = Samples()
        enter_namespace(stage)
        chosen = start_origins(stage, stack, chosen)
        if not chosen:
            return 1
        versions = start_proxies(stage, stack, arguments.peers)
        for number in range(arguments.rounds):
            say(f"round {number + 1} of {arguments.rounds}")
            for measure in chosen:
                for column in rotated(list(stage.ways), number):
                    _take(stage, samples, measure, column, arguments.seconds)
    _report(stage, samples, chosen, versions, arguments)
    if arguments.json is not None:
        results = _json(stage, samples, chosen, versions, arguments)
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if stage.failures else 0


def _take(stage: Stage, samples: Samples, measure: Measure, column: str, seconds: int) -> None:
    """Measure one column once; a failure is noted and is no sample."""
    try:
        values = stage.figures(column, measure, seconds)
    except (measures.MeasureError, SidecarError) as error:
        stage.fail(f"{column}, {measure.value}: {error}")
        return
    for figure, value in zip(_FIGURES[measure], values, strict=True):
        samples.add(figure, column, value)


def _report(
    stage: Stage,
    samples: Samples,
    chosen: Sequence[Measure],
    versions: dict[str, str],
    arguments: argparse.Namespace,
) -> None:
    figures = [figure for measure in chosen for figure in _FIGURES[measure]]
    where = "a network namespace of its own" if stage.namespace else "the host's loopback"
    lines = [
        _title(arguments),
        f"One process each, {where}, no pinning.",
        "",
        table(samples, figures, list(stage.ways), arguments.base),
        "",
        *_ratios(samples, figures),
        "",
        f"machine: Linux {platform.release()}, {os.cpu_count()} processors",
        *(f"{name}: {version}" for name, version in versions.items()),
        *stage.missing,
        *(f"failed: {failure}" for failure in stage.failures),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _title(arguments: argparse.Namespace) -> str:
    rounds = f"Medians of {arguments.rounds} interleaved rounds of {arguments.seconds} s each"
    return f"{rounds}; ratios to {arguments.base}."


def _ratios(samples: Samples, figures: Sequence[Figure]) -> list[str]:
    lines = []
    for ours, theirs in _RATIOS:
        shown = [
            f"{figure.label.partition(',')[0]} {ratio:.2f}"
            for figure in figures
            if (ratio := samples.ratio(figure, ours, theirs)) is not None
        ]
        if shown:
            lines.append(f"{ours} / {theirs}: {', '.join(shown)}")
    return lines


def _json(
    stage: Stage,
    samples: Samples,
    chosen: Sequence[Measure],
    versions: dict[str, str],
    arguments: argparse.Namespace,
) -> dict[str, object]:
    figures = [figure for measure in chosen for figure in _FIGURES[measure]]
    return {
        "versions": versions,
        "seconds": arguments.seconds,
        "base": arguments.base,
        "missing": stage.missing,
        "failures": stage.failures,
        "figures": as_json(samples, figures, list(stage.ways), arguments.base),
    }
