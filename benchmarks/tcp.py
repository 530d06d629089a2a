"""`python -m benchmarks tcp`: the static TCP relay beside its peers."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import measures, origins
from benchmarks.options import add_comparison, say
from benchmarks.peers import DIRECT, HAPROXY, PEERS, Origin, Peer, serving
from benchmarks.processes import StartError, output_of
from benchmarks.stats import Figure, Samples, as_json, rotated, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

__all__ = ["Measure", "add_parser"]


class Measure(Enum):
    """What --only chooses from."""

    BULK = "bulk"
    REVERSE = "reverse"
    LATENCY = "latency"
    RATE = "rate"
    IDLE = "idle"


_ORIGINS = {
    Measure.BULK: Origin.IPERF,
    Measure.REVERSE: Origin.IPERF,
    Measure.LATENCY: Origin.ECHO,
    Measure.RATE: Origin.HTTP,
    Measure.IDLE: Origin.ECHO,
}
_FIGURES: dict[Measure, tuple[Figure, ...]] = {
    Measure.BULK: (measures.BULK_TO_SERVER,),
    Measure.REVERSE: (measures.BULK_FROM_SERVER,),
    Measure.LATENCY: (measures.LATENCY_P50, measures.LATENCY_P99),
    Measure.RATE: (measures.CONNECTION_RATE,),
    Measure.IDLE: (measures.IDLE_MEMORY,),
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tcp` and its options."""
    parser = commands.add_parser(
        "tcp", help="the static TCP relay beside HAProxy, nginx stream and Twisted's portforward"
    )
    add_comparison(parser, Measure, PEERS, DIRECT, base=HAPROXY, rounds=3)
    parser.set_defaults(run=_run)


@dataclass(slots=True)
class _Run:
    """One run: what is up, what was measured, what went wrong.

    Attributes:
        directory: For every file.
        rounds, seconds: How often and how long.
        origins: The origins' ports.
        peers: The proxies that are up.
        ports: Every column's ports, with those of direct.
    """

    directory: Path
    rounds: int
    seconds: int
    origins: dict[Origin, int]
    peers: dict[str, Peer]
    ports: dict[str, Mapping[Origin, int]]
    samples: Samples
    failures: list[str]

    def take(self, measure: Measure, column: str, number: int) -> None:
        """Measure one column once; a failure is noted and is no sample."""
        try:
            for figure, value in self._values(measure, column, number):
                self.samples.add(figure, column, value)
        except (measures.MeasureError, StartError) as error:
            self.fail(f"{column}, {measure.value}: {error}")

    def fail(self, text: str) -> None:
        """Note a failure, and say it at once."""
        self.failures.append(text)
        say(f"! {text}")

    def _values(self, measure: Measure, column: str, number: int) -> list[tuple[Figure, float]]:
        port = self.ports[column][_ORIGINS[measure]]
        values: tuple[float, ...]
        if measure is Measure.LATENCY:
            values = measures.latency_us(port, self.seconds)
        elif measure is Measure.RATE:
            values = (measures.connections_per_second(port, self.seconds),)
        elif measure is Measure.IDLE:
            if column == DIRECT:
                return []
            # In a process of its own: one that has had many connections has memory to spare.
            directory = self.directory / f"{column}-idle-{number}"
            echo = {Origin.ECHO: self.origins[Origin.ECHO]}
            with serving(self.peers[column], directory, echo) as (pid, ports):
                values = (measures.idle_kib(pid, ports[Origin.ECHO]),)
        else:
            from_server = measure is Measure.REVERSE
            values = (measures.bulk_gbits(port, self.seconds, from_server=from_server),)
        return list(zip(_FIGURES[measure], values, strict=True))


def _run(arguments: argparse.Namespace) -> int:
    chosen: list[Measure] = [measure for measure in Measure if measure in arguments.only]
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-benchmark-"))
        )
        run = _Run(directory, arguments.rounds, arguments.seconds, {}, {}, {}, Samples(), [])
        too_few = measures.raise_descriptor_limit()
        if too_few is not None and Measure.IDLE in chosen:
            run.fail(f"without the measure idle: {too_few}")
            chosen.remove(Measure.IDLE)
        _start_origins(run, stack, chosen)
        chosen = [measure for measure in chosen if _ORIGINS[measure] in run.origins]
        versions = _start_peers(run, stack, arguments.peers)
        for number in range(run.rounds):
            say(f"round {number + 1} of {run.rounds}")
            for measure in chosen:
                for column in rotated(list(run.ports), number):
                    run.take(measure, column, number)
        logged = _count_lines(directory / "sidecar" / "access.log")
    _report(run, chosen, versions, arguments.base, logged)
    if arguments.json is not None:
        results = _json(run, chosen, versions, arguments.base)
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if run.failures else 0


def _start_origins(run: _Run, stack: ExitStack, chosen: Sequence[Measure]) -> None:
    # Echo always: it is what proves that a proxy serves.
    wanted = {Origin.ECHO, *(_ORIGINS[measure] for measure in chosen)}
    for origin in Origin:
        if origin not in wanted:
            continue
        problem = origins.missing(origin)
        if problem is None:
            run.origins[origin] = stack.enter_context(origins.origin(origin, run.directory))
        else:
            without = [measure.value for measure in chosen if _ORIGINS[measure] is origin]
            say(f"without the measure {' and '.join(without)}: {problem}")
    run.ports[DIRECT] = dict(run.origins)


def _start_peers(run: _Run, stack: ExitStack, peers: Sequence[Peer]) -> dict[str, str]:
    versions = {}
    for peer in peers:
        problem = peer.missing()
        if problem is not None:
            say(f"without {peer.name}: {problem}")
            continue
        with ExitStack() as starting:
            try:
                _, ports = starting.enter_context(
                    serving(peer, run.directory / peer.name, run.origins)
                )
                measures.check_echo(ports[Origin.ECHO])
                if Origin.HTTP in ports:
                    measures.check_http(ports[Origin.HTTP])
            except (StartError, measures.MeasureError) as error:
                run.fail(f"without {peer.name}: {error}")
                continue
            stack.push(starting.pop_all())
        run.peers[peer.name] = peer
        run.ports[peer.name] = ports
        versions[peer.name] = peer.version()
    return versions


def _count_lines(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return path.read_bytes().count(b"\n")
    return None


def _report(
    run: _Run,
    chosen: Sequence[Measure],
    versions: Mapping[str, str],
    base: str,
    logged: int | None,
) -> None:
    figures = [figure for measure in chosen for figure in _FIGURES[measure]]
    lines = [
        f"Medians of {run.rounds} interleaved rounds of {run.seconds} s each; ratios to {base}.",
        "One process each, loopback, no pinning.",
        "",
        table(run.samples, figures, list(run.ports), base),
        "",
        _machine(),
        *(f"{name}: {version}" for name, version in versions.items()),
    ]
    if logged is not None:
        lines.append(f"sidecar wrote {logged:,} access-log lines.")
    if base not in run.ports:
        lines.append(f"No ratios: {base} did not run.")
    lines += [f"failed: {failure}" for failure in run.failures]
    sys.stdout.write("\n".join(lines) + "\n")


def _machine() -> str:
    return (
        f"machine: Linux {platform.release()}, {os.cpu_count()} processors; "
        f"{output_of('iperf3', '--version').partition(' (')[0] or 'no iperf3'}; "
        f"{output_of('wrk', '-v').partition(' [')[0] or 'no wrk'}"
    )


def _json(
    run: _Run, chosen: Sequence[Measure], versions: Mapping[str, str], base: str
) -> dict[str, object]:
    figures = [figure for measure in chosen for figure in _FIGURES[measure]]
    return {
        "machine": _machine(),
        "versions": versions,
        "seconds": run.seconds,
        "base": base,
        "failures": run.failures,
        "figures": as_json(run.samples, figures, list(run.ports), base),
    }
