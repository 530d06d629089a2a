"""`python -m benchmarks exec`: what `sidecar exec` costs: its start, its relay, its denials."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import origins
from benchmarks.exec_denials import WAYS
from benchmarks.measures import MeasureError, figures_of, iperf_gbits, wrk_rate
from benchmarks.options import positive, say
from benchmarks.peers import Origin
from benchmarks.processes import HOST, ROOT, StartError, free_port, output_of, running
from benchmarks.stats import Figure, Samples, as_json, rotated, table
from sidecar import __version__
from sidecar.errors import SidecarError
from sidecar.linux.namespaces import set_up_loopback
from sidecar.sandbox.users import enter_network_namespace

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Measure", "Table", "add_parser", "sidecar_exec"]

ADDRESS = "198.51.100.1"
"""The origins' address: loopback's are the sandbox's own inside of exec."""

DENIED = "9.9.9.9"
"""What is denied: a public address, as a rule for a name might lead to one. Nobody dials it."""

_OURS = "sidecar exec"
_TIMEOUT_SECONDS = 20.0
_DENIALS = 8
# A start is short, and differs most from one to the next.
_STARTS = 3
_IN_FLIGHT = 32
# Gets a page, which takes as long as the proxy takes to be up, and is another program then.
_ONCE_SERVED = """\
import os, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    while connection.recv(65536):
        pass
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Measure(Enum):
    """What --only chooses from."""

    START = "start"
    SANDBOX = "sandbox"
    BULK = "bulk"
    REVERSE = "reverse"
    RATE = "rate"
    DENIALS = "denials"


_TO_SERVER = Figure("bulk_to_server", "bulk to server, Gbit/s", "more", 1)
_FROM_SERVER = Figure("bulk_from_server", "bulk from server, Gbit/s", "more", 1)
_RATE = Figure("connections", "connections/s", "more", 0)
_WALL = Figure("start_to_finish", "start to finish, ms", "less", 0)
_PROCESSOR = Figure("processor", "processor time, ms", "less", 0)
_SANDBOX = Figure("sandbox", "namespaces and rules, ms", "less", 1)
_LABELS = {
    "http": "HTTP: 403",
    "tls": "TLS: alert",
    "other": "another protocol: reset",
    "silent": "a client that waits: reset",
    "dns_udp": "DNS over UDP: NXDOMAIN",
    "dns_tcp": "DNS over TCP: NXDOMAIN",
    "getaddrinfo": "getaddrinfo()",
}
_DENIED = {way: Figure(way, f"{_LABELS[way]}, ms", "less", 1) for way in WAYS}


@dataclass(frozen=True, slots=True)
class Table:
    """What is shown together.

    Attributes:
        title: What it is about.
        columns: Its columns.
        base: The column that the others are divided by.
        figures: Its rows.
        measures: Where they come from.
    """

    title: str
    columns: Sequence[str]
    base: str
    figures: Sequence[Figure]
    measures: Sequence[Measure]


# What a denial's time is measured under.
_POLICIES = {
    "--default deny": ("--default", "deny"),
    "and a rule for a name": ("--default", "deny", "--allow", "www.example.org"),
}
_COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "unshare": ["unshare", "--user", "--map-root-user", "--net", "true"],
    "bwrap": ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "true"],
}
_DIRECT, _RELAY = "direct", "relay"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `exec` and its options."""
    parser = commands.add_parser("exec", help="`sidecar exec`: start, relay, denials")
    parser.add_argument("--rounds", type=positive, default=5, help="how often (5)")
    parser.add_argument("--seconds", type=positive, default=1, help="per measurement (1)")
    parser.add_argument(
        "--only",
        type=lambda text: [Measure(name) for name in text.split(",")],
        default=list(Measure),
        metavar="MEASURE[,MEASURE]",
        help=", ".join(measure.value for measure in Measure),
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here too")
    parser.set_defaults(run=_run)


def sidecar_exec(*words: str) -> list[str]:
    """The command line of `sidecar exec`, as its script has it."""
    program = "import sys; from sidecar.cli import main; sys.exit(main())"
    return [sys.executable, "-c", program, "exec", "--quiet", "--summary", "none", *words]


@dataclass(slots=True)
class _Run:
    """One run.

    Attributes:
        directory: For every file.
        rounds, seconds: How often and how long.
        ports: The ports of origins, and of the relay before them, at `ADDRESS`.
        samples, failures: What was measured, what went wrong.
    """

    directory: Path
    rounds: int
    seconds: int
    ports: dict[tuple[str, Origin], int] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    failures: list[str] = field(default_factory=list)

    def take(self, measure: Measure, column: str) -> None:
        """Measure one column once; a failure is noted and is no sample."""
        try:
            for figure, value in self._values(measure, column):
                self.samples.add(figure, column, value)
        except MeasureError as error:
            self.failures.append(f"{column}, {measure.value}: {error}")
            say(f"! {self.failures[-1]}")

    def _values(self, measure: Measure, column: str) -> Iterator[tuple[Figure, float]]:
        if measure is Measure.START:
            wall, processor = start_to_finish(_COMMANDS.get(column) or sidecar_exec("--", "true"))
            yield _WALL, wall
            yield _PROCESSOR, processor
        elif measure is Measure.SANDBOX:
            command = [sys.executable, "-m", "benchmarks.exec_sandbox"]
            yield _SANDBOX, figures_of(_output(command))[0]
        elif measure is Measure.DENIALS:
            client = ["-m", "benchmarks.exec_denials", DENIED, "9", str(_DENIALS)]
            command = sidecar_exec(*_POLICIES[column], "--", sys.executable, *client)
            yield from zip(_DENIED.values(), figures_of(_output(command)), strict=True)
        elif measure is Measure.RATE:
            port = self._port(column, Origin.HTTP)
            command = ["wrk", "-t1", f"-c{_IN_FLIGHT}", f"-d{self.seconds}s"]
            command += ["-H", "Connection: close", f"http://{ADDRESS}:{port}/"]
            command = [sys.executable, "-c", _ONCE_SERVED, ADDRESS, str(port), *command]
            yield _RATE, wrk_rate(_output(_through(column, command), self.seconds))
        else:
            port = self._port(column, Origin.IPERF)
            command = ["iperf3", "-c", ADDRESS, "-p", str(port), "-t", str(self.seconds), "-J"]
            figure = _TO_SERVER
            if measure is Measure.REVERSE:
                figure = _FROM_SERVER
                command.append("-R")
            yield figure, iperf_gbits(_output(_through(column, command), self.seconds))

    def _port(self, column: str, origin: Origin) -> int:
        return self.ports[_RELAY if column == _RELAY else _DIRECT, origin]


def _through(column: str, command: list[str]) -> list[str]:
    if column != _OURS:
        return command
    return sidecar_exec("--default", "allow", "--", *command)


def start_to_finish(command: Sequence[str]) -> tuple[float, float]:
    """Run a command to its end.

    Returns:
        Milliseconds that it took, and of processor time, its children's included.

    Raises:
        MeasureError: It failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=_environment()
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise MeasureError(f"exit status {process.returncode}")
    return wall * 1000, (usage.ru_utime + usage.ru_stime) * 1000


def _environment() -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _output(command: Sequence[str], seconds: int = 0) -> str:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + _TIMEOUT_SECONDS,
            env=_environment(),
            cwd=ROOT,
            check=False,
            text=True,
            errors="replace",
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"{command[0]} was not done in {error.timeout:.0f} s") from error


def _run(arguments: argparse.Namespace) -> int:
    chosen = [measure for measure in Measure if measure in arguments.only]
    try:
        # A network of its own: the host's is neither seen nor changed.
        enter_network_namespace()
        set_up_loopback([IPv4Address(HOST), IPv4Address(ADDRESS)])
    except SidecarError as error:
        say(f"needs a network namespace: {error}")
        return 1
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-benchmark-"))
        )
        run = _Run(directory, arguments.rounds, arguments.seconds)
        try:
            chosen = _start_origins(run, stack, chosen)
        except StartError as error:
            say(f"! {error}")
            return 1
        tables = _tables(chosen)
        for number in range(run.rounds):
            say(f"round {number + 1} of {run.rounds}")
            for each in tables:
                for measure in each.measures:
                    columns = [_OURS] if measure is Measure.SANDBOX else list(each.columns)
                    for turn in range(_STARTS if measure is Measure.START else 1):
                        for column in rotated(columns, number + turn):
                            run.take(measure, column)
    sys.stdout.write("\n".join(_report(run, tables)) + "\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_json(run, tables), indent=2) + "\n")
    return 1 if run.failures else 0


def _start_origins(run: _Run, stack: ExitStack, chosen: Sequence[Measure]) -> list[Measure]:
    """Start what answers, and the relay before it; returns what can be measured."""
    wanted = {
        Measure.BULK: Origin.IPERF,
        Measure.REVERSE: Origin.IPERF,
        Measure.RATE: Origin.HTTP,
    }
    left = []
    for measure in chosen:
        origin = wanted.get(measure)
        if origin is None or (_DIRECT, origin) in run.ports:
            left.append(measure)
            continue
        problem = origins.missing(origin)
        if problem is not None:
            say(f"without the measure {measure.value}: {problem}")
            continue
        left.append(measure)
        port = stack.enter_context(origins.origin(origin, run.directory, ADDRESS))
        run.ports[_DIRECT, origin], run.ports[_RELAY, origin] = port, free_port()
    routes = {
        run.ports[_RELAY, origin]: port
        for (column, origin), port in run.ports.items()
        if column == _DIRECT
    }
    if routes:
        command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
        command += ["-n", "--pidfile=", "sidecar"]
        for listen, port in routes.items():
            command += ["--forward", f"tcp:{listen}:interface={ADDRESS} tcp:{ADDRESS}:{port}"]
        stack.enter_context(running(_RELAY, command, run.directory, routes))
    return left


def _tables(chosen: Sequence[Measure]) -> list[Table]:
    """What is to be measured, and how it is shown."""
    commands = [name for name, words in _COMMANDS.items() if shutil.which(words[0])]
    tables = [
        Table(
            "Start: a command that does nothing.",
            [_OURS, *commands],
            "python -c pass",
            [_WALL, _PROCESSOR, _SANDBOX],
            [Measure.START, Measure.SANDBOX],
        ),
        Table(
            "Relay: the same clients and origins, directly, through --forward, inside of exec.",
            [_DIRECT, _RELAY, _OURS],
            _RELAY,
            [_TO_SERVER, _FROM_SERVER, _RATE],
            [Measure.BULK, Measure.REVERSE, Measure.RATE],
        ),
        Table(
            "Denials: from connecting, or asking, to being told.",
            list(_POLICIES),
            "--default deny",
            list(_DENIED.values()),
            [Measure.DENIALS],
        ),
    ]
    found = []
    for each in tables:
        measures = [measure for measure in each.measures if measure in chosen]
        if measures:
            found.append(Table(each.title, each.columns, each.base, each.figures, measures))
    return found


def _report(run: _Run, tables: Sequence[Table]) -> list[str]:
    rounds = f"Medians of {run.rounds} interleaved rounds, relaying for {run.seconds} s each"
    lines = [f"{rounds}; ratios to one column of each table."]
    for each in tables:
        figures = [
            figure
            for figure in each.figures
            if any(run.samples.of(figure, column) for column in each.columns)
        ]
        lines += ["", each.title, "", table(run.samples, figures, each.columns, each.base)]
    return [*lines, "", _machine(), *(f"failed: {failure}" for failure in run.failures)]


def _machine() -> str:
    return (
        f"machine: Linux {platform.release()}, {os.cpu_count()} processors; "
        f"Python {platform.python_version()}; sidecar {__version__}; "
        f"{output_of('iperf3', '--version').partition(' (')[0] or 'no iperf3'}; "
        f"{output_of('wrk', '-v').partition(' [')[0] or 'no wrk'}"
    )


def _json(run: _Run, tables: Sequence[Table]) -> dict[str, object]:
    return {
        "machine": _machine(),
        "seconds": run.seconds,
        "failures": run.failures,
        "tables": {
            each.title: as_json(run.samples, each.figures, each.columns, each.base)
            for each in tables
        },
    }
