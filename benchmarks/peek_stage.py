"""What is up in a run of `peek`: origins, proxies, and the ways through them."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import TYPE_CHECKING

from benchmarks import measures
from benchmarks.options import say
from benchmarks.peek_peers import INTERCEPTED, SNI_HOST, Dialled, Proxy, nginx_origin
from benchmarks.peers import DIRECT, PEERS, Route
from benchmarks.processes import HOST, StartError, free_port, running
from sidecar.errors import SidecarError
from sidecar.linux.namespaces import set_up_loopback
from sidecar.linux.netfilter import lifecycle
from sidecar.linux.netfilter.model import Mode, RuleSet
from sidecar.sandbox.users import enter_network_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Measure", "Stage", "Way", "enter_namespace", "start_origins", "start_proxies"]

_Address = tuple[str, int]

_START_SECONDS = 10.0
_POLL_SECONDS = 0.2


class Measure(Enum):
    """What --only chooses from. The value is what the client is told."""

    RATE = "rate"
    ANSWER = "answer"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class Way:
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
class Stage:
    """What is up, what is missing, what went wrong.

    Attributes:
        directory: For every file.
        namespace: Whether connections can be intercepted.
        origins: The origins' ports.
        ways: The ways to them, by column.
        missing, failures: What was said of these.
    """

    directory: Path
    namespace: bool = False
    origins: dict[Measure, int] = field(default_factory=dict)
    ways: dict[str, dict[Measure, Way]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

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
            self.figures(column, measure, 0)
        except measures.MeasureError:
            if last:
                raise
            return False
        return True

    def figures(self, column: str, measure: Measure, seconds: int) -> list[float]:
        """Measure one column once.

        Raises:
            MeasureError, SidecarError: It can't be had.
        """
        with self.ways[column][measure].open() as (host, port):
            arguments = [measure.value, host, str(port)]
            return measures.client_figures("peek_client", arguments, seconds)

    def lack(self, text: str) -> None:
        """Note what is missing, and say it at once."""
        self.missing.append(text)
        say(text)

    def fail(self, text: str) -> None:
        """Note a failure, and say it at once."""
        self.failures.append(text)
        say(f"! {text}")


def enter_namespace(stage: Stage) -> None:
    """Have a network of our own, in which connections can be intercepted; say why not."""
    try:
        enter_network_namespace()
        set_up_loopback([IPv4Address(HOST)], [IPv4Network(INTERCEPTED)])
    except SidecarError as error:
        stage.lack(f"without the interception's columns: {error}")
    else:
        stage.namespace = True


def start_origins(stage: Stage, stack: ExitStack, chosen: Sequence[Measure]) -> list[Measure]:
    """Start what answers; returns the measures that there is an origin for."""
    hosts = [HOST, INTERCEPTED] if stage.namespace else [HOST]
    started = list(chosen)
    if Measure.BULK in chosen:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.peek_sink", str(port), *hosts]
        stack.enter_context(running("sink", command, stage.directory, [port]))
        stage.origins[Measure.BULK] = port
    others = [measure for measure in chosen if measure is not Measure.BULK]
    if others:
        # The same program answers as relays: nginx.
        problem = _named_peer("nginx")
        if problem is None:
            port, directory = free_port(), stage.directory / "origin"
            directory.mkdir()
            command = nginx_origin(directory, port, hosts)
            stack.enter_context(running("origin", command, directory, [port]))
            stage.origins |= dict.fromkeys(others, port)
        else:
            stage.lack(f"without rate and answer: {problem}")
            started = [measure for measure in chosen if measure is Measure.BULK]
    stage.ways[DIRECT] = {measure: Way((HOST, port)) for measure, port in stage.origins.items()}
    return started


def _named_peer(name: str) -> str | None:
    return next(peer.missing() for peer in PEERS if peer.name == name)


def start_proxies(stage: Stage, stack: ExitStack, proxies: Sequence[Proxy]) -> dict[str, str]:
    """Start what is installed; returns the versions."""
    versions = {}
    for proxy in proxies:
        problem = proxy.missing()
        if problem is not None:
            stage.lack(f"without {proxy.name}: {problem}")
            continue
        if proxy.dialled is Dialled.ORIGIN and not stage.namespace:
            continue
        with ExitStack() as starting:
            try:
                stage.ways[proxy.name] = _start(stage, starting, proxy)
                stage.check(proxy.name)
            except (StartError, measures.MeasureError, SidecarError) as error:
                stage.ways.pop(proxy.name, None)
                stage.fail(f"without {proxy.name}: {error}")
                continue
            stack.push(starting.pop_all())
        versions[proxy.name] = proxy.version()
    return versions


def _start(stage: Stage, stack: ExitStack, proxy: Proxy) -> dict[Measure, Way]:
    """Run a proxy, a process for each origin, and find the way through it."""
    by_origin = {}
    for origin in sorted(set(stage.origins.values())):
        directory = stage.directory / f"{proxy.name}-{origin}"
        directory.mkdir()
        route = Route(free_port(), origin)
        command = proxy.command(directory, route)
        # /proc/net/tcp can't tell an SNI proxy from the origin, and lacks the transparent
        # listener, which is IPv6's: they are up when they answer.
        ports = [route.listen] if proxy.dialled is Dialled.LISTENER else []
        stack.enter_context(running(proxy.name, command, directory, ports))
        by_origin[origin] = _way(proxy, route)
    return {measure: by_origin[origin] for measure, origin in stage.origins.items()}


def _way(proxy: Proxy, route: Route) -> Way:
    if proxy.dialled is Dialled.LISTENER:
        return Way((HOST, route.listen))
    if proxy.dialled is Dialled.ORIGIN_PORT:
        return Way((SNI_HOST, route.origin))
    rules = RuleSet(
        mode=Mode.TPROXY,
        outbound_port=route.listen,
        inbound_port=None,
        include_cidrs=(ip_network(INTERCEPTED),),
    )
    return Way((INTERCEPTED, route.origin), rules)
