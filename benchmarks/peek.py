"""`python -m benchmarks peek`: finding the origin by a ClientHello's name, beside its peers."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import measures
from benchmarks.options import positive
from benchmarks.peek_peers import BARE, INTERCEPTED, PROXIES, SNI_HOST, Dialled, Proxy, nginx_origin
from benchmarks.peers import DIRECT, HAPROXY, PEERS, Route
from benchmarks.processes import HOST, StartError, free_port, running
from benchmarks.stats import Figure, Samples, rotated, table
from sidecar.errors import SidecarError
from sidecar.linux.namespaces import enter_network_namespace, set_up_loopback
from sidecar.linux.netfilter import lifecycle
from sidecar.linux.netfilter.model import Mode, RuleSet

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

__all__ = ["add_parser"]

_Address = tuple[str, int]

_ANSWER_P50 = Figure("answer_p50", "first answer p50, µs", "less", 0)
_ANSWER_P99 = Figure("answer_p99", "first answer p99, µs", "less", 0)
_START_SECONDS = 10.0
_POLL_SECONDS = 0.2
_RATIOS = (
    ("sidecar-sni", BARE),
    ("sidecar-sni", HAPROXY),
    ("transparent-peek", "transparent"),
    ("transparent-peek", BARE),
    ("transparent-peek", HAPROXY),
)


class Measure(Enum):
    """What --only chooses from. The value is what the client is told."""

    RATE = "rate"
    ANSWER = "answer"
    BULK = "bulk"


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
    parser.add_argument("--rounds", type=positive, default=5, help="how often (5)")
    parser.add_argument("--seconds", type=positive, default=1, help="per measurement (1)")
    parser.add_argument(
        "--only",
        type=lambda text: [Measure(name) for name in text.split(",")],
        default=list(Measure),
        metavar="MEASURE[,MEASURE]",
        help=", ".join(measure.value for measure in Measure),
    )
    parser.add_argument(
        "--peers",
        type=lambda text: [_proxy(name) for name in text.split(",")],
        default=list(PROXIES),
        metavar="PEER[,PEER]",
        help=", ".join(proxy.name for proxy in PROXIES) + "; direct is always there",
    )
    parser.add_argument(
        "--base",
        default=BARE,
        choices=[DIRECT, *(proxy.name for proxy in PROXIES)],
        help=f"the peer that the others are divided by ({BARE}: the relay that reads no hello)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here too")
    parser.set_defaults(run=_run)


def _proxy(name: str) -> Proxy:
    for proxy in PROXIES:
        if proxy.name == name:
            return proxy
    raise ValueError(name)


@dataclass(frozen=True, slots=True)
class _Way:
    """How a client gets to one origin: the address to dial, and the rules if it takes any."""

    address: _Address
    rules: RuleSet | None = None

    @contextmanager
    def open(self) -> Iterator[_Address]:
        """Have the rules in place, for this way alone: they cost every connection."""
        if self.rules is None:
            yield self.address
            return
        lifecycle.apply(self.rules)
        try:
            yield self.address
        finally:
            lifecycle.remove(now=True)


@dataclass(slots=True)
class _Run:
    """One run: what is up, what was measured, what went wrong."""

    directory: Path
    seconds: int
    namespace: bool
    origins: dict[Measure, int] = field(default_factory=dict)
    ways: dict[str, dict[Measure, _Way]] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    missing: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def take(self, measure: Measure, column: str) -> None:
        """Measure one column once; a failure is noted and is no sample."""
        try:
            values = self._values(column, measure, self.seconds)
        except (measures.MeasureError, SidecarError) as error:
            self.fail(f"{column}, {measure.value}: {error}")
            return
        for figure, value in zip(_FIGURES[measure], values, strict=True):
            self.samples.add(figure, column, value)

    def check(self, column: str) -> None:
        """Prove that the origin's answer comes through, waiting for a proxy to be up.

        Raises:
            MeasureError, SidecarError: It doesn't.
        """
        for measure in self.origins:
            deadline = time.monotonic() + _START_SECONDS
            while not self._serves(column, measure, last=time.monotonic() > deadline):
                time.sleep(_POLL_SECONDS)

    def _serves(self, column: str, measure: Measure, *, last: bool) -> bool:
        try:
            self._values(column, measure, 0)
        except measures.MeasureError:
            if last:
                raise
            return False
        return True

    def _values(self, column: str, measure: Measure, seconds: int) -> list[float]:
        with self.ways[column][measure].open() as (host, port):
            arguments = [measure.value, host, str(port)]
            return measures.client_figures("peek_client", arguments, seconds)

    def lack(self, text: str) -> None:
        """Note what is missing, and say it at once."""
        self.missing.append(text)
        _say(text)

    def fail(self, text: str) -> None:
        """Note a failure, and say it at once."""
        self.failures.append(text)
        _say(f"! {text}")


def _run(arguments: argparse.Namespace) -> int:
    chosen: list[Measure] = [measure for measure in Measure if measure in arguments.only]
    measures.raise_descriptor_limit()
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-benchmark-"))
        )
        run = _Run(directory, arguments.seconds, namespace=False)
        _enter_namespace(run)
        chosen = _start_origins(run, stack, chosen)
        if not chosen:
            return 1
        versions = _start_proxies(run, stack, arguments.peers)
        for number in range(arguments.rounds):
            _say(f"round {number + 1} of {arguments.rounds}")
            for measure in chosen:
                for column in rotated(list(run.ways), number):
                    run.take(measure, column)
    _report(run, chosen, versions, arguments)
    if arguments.json is not None:
        results = _json(run, chosen, versions, arguments.base)
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if run.failures else 0


def _enter_namespace(run: _Run) -> None:
    try:
        enter_network_namespace()
        set_up_loopback([IPv4Address(HOST)], [IPv4Network(INTERCEPTED)])
    except SidecarError as error:
        run.lack(f"without the interception's columns: {error}")
    else:
        run.namespace = True


def _start_origins(run: _Run, stack: ExitStack, chosen: Sequence[Measure]) -> list[Measure]:
    hosts = [HOST, INTERCEPTED] if run.namespace else [HOST]
    started = list(chosen)
    if Measure.BULK in chosen:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.peek_sink", str(port), *hosts]
        stack.enter_context(running("sink", command, run.directory, [port]))
        run.origins[Measure.BULK] = port
    others = [measure for measure in chosen if measure is not Measure.BULK]
    if others:
        # The same program answers as relays: nginx.
        problem = _named_peer("nginx")
        if problem is None:
            port, directory = free_port(), run.directory / "origin"
            directory.mkdir()
            command = nginx_origin(directory, port, hosts)
            stack.enter_context(running("origin", command, directory, [port]))
            run.origins |= dict.fromkeys(others, port)
        else:
            run.lack(f"without rate and answer: {problem}")
            started = [measure for measure in chosen if measure is Measure.BULK]
    run.ways[DIRECT] = {measure: _Way((HOST, port)) for measure, port in run.origins.items()}
    return started


def _named_peer(name: str) -> str | None:
    return next(peer.missing() for peer in PEERS if peer.name == name)


def _start_proxies(run: _Run, stack: ExitStack, proxies: Sequence[Proxy]) -> dict[str, str]:
    versions = {}
    for proxy in proxies:
        problem = proxy.missing()
        if problem is not None:
            run.lack(f"without {proxy.name}: {problem}")
            continue
        if proxy.dialled is Dialled.ORIGIN and not run.namespace:
            continue
        with ExitStack() as starting:
            try:
                run.ways[proxy.name] = _start(run, starting, proxy)
                run.check(proxy.name)
            except (StartError, measures.MeasureError, SidecarError) as error:
                run.ways.pop(proxy.name, None)
                run.fail(f"without {proxy.name}: {error}")
                continue
            stack.push(starting.pop_all())
        versions[proxy.name] = proxy.version()
    return versions


def _start(run: _Run, stack: ExitStack, proxy: Proxy) -> dict[Measure, _Way]:
    """Run a proxy, a process for each origin, and find the way through it."""
    by_origin = {}
    for origin in sorted(set(run.origins.values())):
        directory = run.directory / f"{proxy.name}-{origin}"
        directory.mkdir()
        route = Route(free_port(), origin)
        command = proxy.command(directory, route)
        # /proc/net/tcp can't tell an SNI proxy from the origin, and lacks the transparent
        # listener, which is IPv6's: they are up when they answer.
        ports = [route.listen] if proxy.dialled is Dialled.LISTENER else []
        stack.enter_context(running(proxy.name, command, directory, ports))
        by_origin[origin] = _way(proxy, route)
    return {measure: by_origin[origin] for measure, origin in run.origins.items()}


def _way(proxy: Proxy, route: Route) -> _Way:
    if proxy.dialled is Dialled.LISTENER:
        return _Way((HOST, route.listen))
    if proxy.dialled is Dialled.ORIGIN_PORT:
        return _Way((SNI_HOST, route.origin))
    rules = RuleSet(
        mode=Mode.TPROXY,
        outbound_port=route.listen,
        inbound_port=None,
        include_cidrs=(ip_network(INTERCEPTED),),
    )
    return _Way((INTERCEPTED, route.origin), rules)


def _report(
    run: _Run, chosen: Sequence[Measure], versions: dict[str, str], arguments: argparse.Namespace
) -> None:
    figures = [figure for measure in chosen for figure in _FIGURES[measure]]
    where = "a network namespace of its own" if run.namespace else "the host's loopback"
    lines = [
        _title(run, arguments),
        f"One process each, {where}, no pinning.",
        "",
        table(run.samples, figures, list(run.ways), arguments.base),
        "",
        *_ratios(run, figures),
        "",
        f"machine: Linux {platform.release()}, {os.cpu_count()} processors",
        *(f"{name}: {version}" for name, version in versions.items()),
        *run.missing,
        *(f"failed: {failure}" for failure in run.failures),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _title(run: _Run, arguments: argparse.Namespace) -> str:
    rounds = f"Medians of {arguments.rounds} interleaved rounds of {run.seconds} s each"
    return f"{rounds}; ratios to {arguments.base}."


def _ratios(run: _Run, figures: Sequence[Figure]) -> list[str]:
    lines = []
    for ours, theirs in _RATIOS:
        shown = [
            f"{figure.label.partition(',')[0]} {ratio:.2f}"
            for figure in figures
            if (ratio := run.samples.ratio(figure, ours, theirs)) is not None
        ]
        if shown:
            lines.append(f"{ours} / {theirs}: {', '.join(shown)}")
    return lines


def _json(
    run: _Run, chosen: Sequence[Measure], versions: dict[str, str], base: str
) -> dict[str, object]:
    return {
        "versions": versions,
        "seconds": run.seconds,
        "base": base,
        "missing": run.missing,
        "failures": run.failures,
        "figures": {
            figure.key: {
                column: {
                    "samples": run.samples.of(figure, column),
                    "median": run.samples.median(figure, column),
                    "ratio": run.samples.ratio(figure, column, base),
                }
                for column in run.ways
            }
            for measure in chosen
            for figure in _FIGURES[measure]
        },
    }


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
