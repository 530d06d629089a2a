"""`python -m benchmarks policy`: what a rule costs when there are a hundred thousand.

Verdicts in this process, without sockets; start-up from twistd's exec to its listener.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.options import positive
from benchmarks.processes import HOST, free_port, running
from benchmarks.stats import Figure, Samples, rotated, table
from sidecar import __version__
from sidecar.addresses import SocketAddress
from sidecar.config import load
from sidecar.flow import Flow, ListenerKind, Protocol
from sidecar.policy import Outcome

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["add_parser", "rules_toml"]

_SEED = 5
_DECIDE = Figure("decide", "verdict for a new flow, µs", "less", 2)
_START = Figure("start", "start-up, s", "less", 2)
# More than a policy remembers (sidecar.policy): each verdict is found, not recalled.
_FLOWS = 20_000
_MICROSECONDS = 1_000_000
_LOWEST_NETWORK = int(IPv4Address("20.0.0.0"))
_NETWORK_SIZE = 1 << 8
_SOMEWHERE = IPv4Address("8.0.0.0")


@dataclass(frozen=True, slots=True)
class _Size:
    """How many rules of each kind a policy has."""

    names: int
    networks: int

    @property
    def label(self) -> str:
        """What its column is called."""
        return f"{self.names:,} names, {self.networks:,} networks"


_FEW = _Size(10, 10)
_MANY = _Size(100_000, 10_000)
_SIZES = {size.label: size for size in (_FEW, _MANY)}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `policy` and its options."""
    parser = commands.add_parser("policy", help="verdicts and start-up, with few rules and many")
    parser.add_argument("--rounds", type=positive, default=7, help="how often (7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here too")
    parser.set_defaults(run=_run)


def rules_toml(names: int, networks: int) -> str:
    """Return a configuration with so many rules that allow names, and networks."""
    rules = [f"{_host(number)}:443" for number in range(names)]
    rules += [f"{_network(number)}/24:5432" for number in range(networks)]
    lines = "".join(f'    "{rule}",\n' for rule in rules)
    return f'[policy]\ndefault = "deny"\nallow = [\n{lines}]\n'


def _host(number: int) -> str:
    # Suffix rules and names in turn, eleven in a zone, as allow lists of registries are.
    name = f"h{number}.zone{number // 11}.example"
    return f"*.{name}" if number % 2 else name


def _network(number: int) -> IPv4Address:
    return IPv4Address(_LOWEST_NETWORK + 2 * number * _NETWORK_SIZE)


def _flows(size: _Size) -> list[Flow]:
    """Make flows for rules from all over the policy, and as many that no rule is for."""
    chance = random.Random(_SEED)  # noqa: S311 - not for secrets
    flows = []
    for number in range(_FLOWS):
        rule = chance.randrange(size.names)
        host = _host(rule).replace("*", f"a{number}")
        port = 443
        address = _SOMEWHERE + number
        if number % 4 == 1:
            host = f"x{number}.nobody.example"
        elif number % 4 == 2:
            address = _network(chance.randrange(size.networks)) + number % _NETWORK_SIZE
            port = 5432
        flow = Flow(ListenerKind.OUTBOUND, None, SocketAddress(str(address), port), None, None)
        flow.host = host
        flow.protocol = Protocol.TLS
        flow.names_known = True
        flows.append(flow)
    return flows


def _run(arguments: argparse.Namespace) -> int:
    samples = Samples()
    with tempfile.TemporaryDirectory(prefix="sidecar-benchmark-") as name:
        directory = Path(name)
        files = {}
        for label, size in _SIZES.items():
            files[label] = directory / f"{size.names}.toml"
            files[label].write_text(rules_toml(size.names, size.networks), encoding="ascii")
        policies = {label: load(str(file)).policy.build() for label, file in files.items()}
        flows = {label: _flows(size) for label, size in _SIZES.items()}
        for number in range(arguments.rounds):
            for label in rotated(list(_SIZES), number):
                decide = policies[label].decide
                gc.collect()  # what the one before left is not this one's to clear
                began = time.perf_counter()
                for flow in flows[label]:
                    decide(flow)
                seconds = time.perf_counter() - began
                samples.add(_DECIDE, label, seconds / _FLOWS * _MICROSECONDS)
                samples.add(_START, label, _start_up(files[label], directory))
        shares = {
            label: sum(
                policies[label].decide(flow).outcome is Outcome.ALLOW for flow in flows[label]
            )
            for label in _SIZES
        }
    sys.stdout.write("\n".join(_report(arguments.rounds, samples, shares)) + "\n")
    if arguments.json is not None:
        values = {
            figure.key: {label: list(samples.of(figure, label)) for label in _SIZES}
            for figure in (_DECIDE, _START)
        }
        arguments.json.write_text(json.dumps({"version": __version__, **values}))
    return 0


def _start_up(file: Path, directory: Path) -> float:
    port = free_port()
    command = [
        *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
        *("--nodaemon", "--pidfile=", "sidecar", "--config", str(file)),
        *("--sni-proxy", f"tcp:{port}:interface={HOST}"),
    ]
    began = time.perf_counter()
    with running("sidecar", command, directory, [port]):
        return time.perf_counter() - began


def _report(rounds: int, samples: Samples, shares: dict[str, int]) -> Sequence[str]:
    allowed = ", ".join(f"{share / _FLOWS:.0%}" for share in shares.values())
    flows = f"{_FLOWS:,} flows a sample, no two alike ({allowed} of them allowed)"
    machine = f"machine: Linux {platform.release()}, {os.cpu_count()} processors"
    return [
        f"Medians of {rounds} interleaved rounds; {flows}; ratios to the first column.",
        "",
        table(samples, [_DECIDE, _START], list(_SIZES), _FEW.label),
        "",
        f"{machine}; Python {platform.python_version()}; sidecar {__version__}",
    ]
