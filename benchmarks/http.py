"""`python -m benchmarks http`: the HTTP proxy beside its peers."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import http_measures, measures
from benchmarks.http_client import Way
from benchmarks.http_measures import Measure
from benchmarks.http_peers import PROXIES, SQUID, Proxy, nginx_origin
from benchmarks.http_report import Results, as_json, as_text
from benchmarks.options import add_comparison, say
from benchmarks.origins import HTTP_BODY
from benchmarks.peers import DIRECT
from benchmarks.processes import HOST, StartError, free_port, running
from benchmarks.stats import rotated
from sidecar.errors import SidecarError
from sidecar.linux.namespaces import set_up_loopback
from sidecar.sandbox.users import enter_network_namespace

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["add_parser"]

_SYSTEM_PATH = "/usr/sbin:/sbin"
"""Where Debian has squid and nginx, and no user's PATH leads."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `http` and its options."""
    parser = commands.add_parser(
        "http",
        help="the HTTP proxy beside squid, tinyproxy, proxy.py, twisted.web.proxy and mitmdump",
    )
    add_comparison(parser, Measure, PROXIES, DIRECT, base=SQUID, rounds=5)
    parser.add_argument(
        "--host", default="localhost", help="the name by which requests call the origin (localhost)"
    )
    parser.add_argument(
        "--path", metavar="DIR[:DIR]", help="where to look for the peers before PATH"
    )
    parser.set_defaults(run=_run)


@dataclass(frozen=True, slots=True)
class _Column:
    """One column: the way through it, its process, and whether it has tunnels."""

    way: Way
    pid: int | None
    tunnels: bool


@dataclass(slots=True)
class _Run:
    """One run: what is up, and what was measured."""

    directory: Path
    results: Results
    columns: dict[str, _Column] = field(default_factory=dict)

    def take(self, measure: Measure, name: str) -> None:
        """Measure one column once; a failure is noted and is no sample."""
        column, script = self.columns[name], self.directory / "wrk.lua"
        if measure.tunnels and not column.tunnels:
            return
        seconds = self.results.seconds
        try:
            values = http_measures.take(measure, column.way, column.pid, seconds, script)
        except (measures.MeasureError, OSError) as error:
            self.fail(f"{name}, {measure.value}: {error}")
            return
        for figure, value in values:
            self.results.samples.add(figure, name, value)

    def add(self, name: str, way: Way, pid: int | None = None, *, tunnels: bool = True) -> None:
        """Have another column."""
        self.columns[name] = _Column(way, pid, tunnels)
        self.results.names.append(name)

    def lack(self, text: str) -> None:
        """Note what is missing, and say it at once."""
        self.results.missing.append(text)
        say(text)

    def fail(self, text: str) -> None:
        """Note a failure, and say it at once."""
        self.results.failures.append(text)
        say(f"! {text}")


def _run(arguments: argparse.Namespace) -> int:
    paths = [arguments.path, os.environ.get("PATH", os.defpath), _SYSTEM_PATH]
    os.environ["PATH"] = ":".join(filter(None, paths))
    measures.raise_descriptor_limit()
    results = Results(arguments.rounds, arguments.seconds, arguments.host, arguments.base)
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-benchmark-"))
        )
        run = _Run(directory, results)
        _enter_namespace(run)
        results.chosen = _possible(run, arguments.only)
        if shutil.which("nginx") is None:
            run.lack("no origin: nginx is not installed: apt-get install nginx")
            return 1
        try:
            digest = _start_origin(run, stack)
        except (StartError, measures.MeasureError) as error:
            run.fail(f"no origin at {arguments.host}: {error}")
            return 1
        _start_proxies(run, stack, arguments.peers, digest)
        for number in range(results.rounds):
            say(f"round {number + 1} of {results.rounds}")
            for measure in results.chosen:
                for name in rotated(results.names, number):
                    run.take(measure, name)
        results.logs = _log_sizes(run)
    sys.stdout.write(as_text(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(results), indent=2) + "\n")
    return 1 if results.failures else 0


def _enter_namespace(run: _Run) -> None:
    try:
        enter_network_namespace()
        set_up_loopback([IPv4Address(HOST)])
    except SidecarError as error:
        run.lack(f"without a namespace: {error}")
    else:
        run.results.place = "a network namespace of its own"


def _possible(run: _Run, wanted: Sequence[Measure]) -> list[Measure]:
    chosen = [measure for measure in Measure if measure in wanted]
    if shutil.which("wrk") is None:
        lost = [measure for measure in chosen if measure.needs_wrk]
        chosen = [measure for measure in chosen if not measure.needs_wrk]
        if lost:
            names = " and ".join(measure.value for measure in lost)
            run.lack(f"without {names}: wrk is not installed: apt-get install wrk")
    return chosen


def _start_origin(run: _Run, stack: ExitStack) -> str:
    """Run the origin, and make its column.

    Returns:
        The big page's SHA-256.

    Raises:
        StartError, MeasureError: It doesn't serve.
    """
    port, directory = free_port(), run.directory / "origin"
    (directory / "files").mkdir(parents=True)
    digest = http_measures.big_file(directory / "files" / "big")
    command = nginx_origin(directory, port, HTTP_BODY.decode().strip())
    stack.enter_context(running("origin", command, directory, [port]))
    way = Way(port, f"{run.results.host}:{port}", proxied=False)
    http_measures.check(way, digest, tunnels=False)
    run.add(DIRECT, way)
    return digest


def _start_proxies(run: _Run, stack: ExitStack, proxies: Sequence[Proxy], digest: str) -> None:
    origin = run.columns[DIRECT].way.origin
    for proxy in proxies:
        problem = proxy.missing()
        if problem is not None:
            run.lack(f"without {proxy.name}: {problem}")
            continue
        port, directory = free_port(), run.directory / proxy.name
        directory.mkdir()
        way = Way(port, origin, lasts=proxy.lasts)
        with ExitStack() as starting:
            try:
                command = proxy.command(directory, port, run.results.host)
                pid = starting.enter_context(running(proxy.name, command, directory, [port]))
                http_measures.check(way, digest, tunnels=proxy.tunnels)
            except (StartError, measures.MeasureError) as error:
                run.fail(f"without {proxy.name}: {error}")
                continue
            stack.push(starting.pop_all())
        run.add(proxy.name, way, pid, tunnels=proxy.tunnels)
        run.results.versions[proxy.name] = proxy.version()


def _log_sizes(run: _Run) -> dict[str, int]:
    """Return the lines of the proxies' access logs."""
    return {
        name: path.read_bytes().count(b"\n")
        for name in run.columns
        if (path := run.directory / name / "access.log").exists()
    }
