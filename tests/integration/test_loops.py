"""A connection that would come back to sidecar is refused, once, and costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from integration import clients
from integration.clients import Outcome
from integration.proxy import (
    INBOUND,
    ISTIO,
    MESH_PORTS,
    OUTBOUND,
    ROOT,
    applied,
    eventually,
    running,
)

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.netns import Family, Host, Pair
    from integration.proxy import Line, Sidecar

pytestmark = pytest.mark.thorough

_LOCALHOST = {"ipv4": "127.0.0.1", "ipv6": "::1"}
_ANYWHERE = {"ipv4": "0.0.0.0", "ipv6": "::"}

# Static relays that are told to relay to themselves or to one another.
_FORWARDS = {
    8001: r"tcp:8001:interface=127.0.0.1 tcp:127.0.0.1:8001",
    8002: r"tcp:8002:interface=0.0.0.0 tcp:0.0.0.0:8002",
    8003: r"tcp:8003:interface=0.0.0.0 tcp:10.71.0.1:8003",
    8004: r"tcp:8004:interface=\:\:1 tcp:\:\:1:8004",
    8005: r"tcp:8005:interface=\:\: tcp:\:\::8005",
    8006: r"tcp:8006:interface=\:\: tcp:fd71\:\:1:8006",
    8007: r"tcp:8007:interface=127.0.0.1 tcp:localhost:8007",
    8008: r"tcp:8008:interface=127.0.0.1 tcp:127.0.0.1:15001",
    8009: r"tcp:8009:interface=127.0.0.1 tcp:\:\:ffff\:127.0.0.1:8009",
}

# Which of the two it is depends on whether a rule touches connections to this host.
_REFUSALS = {
    ("denied", "not_intercepted"),
    ("proxy_loop_detected", "proxy_loop_detected"),
}


class Watch:
    """Sees whether a connection left exactly one line and nothing else behind.

    Args:
        pair: Where.
        sidecar: Whose log and descriptors.
    """

    def __init__(self, pair: Pair, sidecar: Sidecar) -> None:
        self._pair = pair
        self._sidecar = sidecar
        self._fence()
        self._lines = len(sidecar.lines())
        self._descriptors = sidecar.idle_descriptors()

    def _fence(self) -> None:
        """Have an ordinary connection relayed, or refused, after which no earlier one can log."""
        server = self._pair.far.at("ipv4", 9)
        before = len(self._sidecar.wait_for_lines(0, destination=server))
        clients.outcome_of_talking(self._pair.near.namespace, server)
        self._sidecar.wait_for_lines(before + 1, destination=server)

    def lines(self) -> list[Line]:
        """Return what was logged since, once nothing more can be, and no descriptor is left."""
        self._fence()
        eventually(self._descriptors, self._sidecar.descriptors)
        *lines, _fence = self._sidecar.lines()[self._lines :]
        return lines


@pytest.fixture(scope="module", params=["redirect", "tproxy"])
def sidecar(request: pytest.FixtureRequest, pair: Pair, outside: Path) -> Iterator[Sidecar]:
    namespace = pair.near.namespace
    arguments = ["--outbound", f"transparent:{OUTBOUND}", "--inbound", f"transparent:{INBOUND}"]
    for forward in _FORWARDS.values():
        arguments += ["--forward", forward]
    ports = (*MESH_PORTS, *_FORWARDS)
    redirect = request.param == "redirect"
    exclusion = ("--exclude-uid", "1337") if redirect else ("--exclude-mark", "0x539")
    with (
        running(
            namespace, arguments, ports=ports, cwd=outside, identity=ISTIO if redirect else ROOT
        ) as sidecar,
        applied(namespace, "--mode", request.param, *exclusion),
    ):
        yield sidecar


def _addresses(host: Host, family: Family) -> dict[str, str]:
    return {
        "interface": host.at(family, 0).host,
        "localhost": _LOCALHOST[family],
        "anywhere": _ANYWHERE[family],
    }


@pytest.mark.parametrize("port", MESH_PORTS)
@pytest.mark.parametrize("dialled", ["interface", "localhost", "anywhere"])
def test_listener_dialled_from_its_own_host(
    pair: Pair, sidecar: Sidecar, family: Family, dialled: str, port: int
) -> None:
    """A program here that dials the proxy itself is reset and logged once."""
    watch = Watch(pair, sidecar)
    address = SocketAddress(_addresses(pair.near, family)[dialled], port)
    outcome = clients.outcome_of_talking(pair.near.namespace, address)
    assert Outcome(b"", reset=True) == outcome
    (line,) = watch.lines()
    assert ("deny", 0, 0) == (line["verdict"], line["sent"], line["received"])
    assert (line["end"], line["reason"]) in _REFUSALS


@pytest.mark.parametrize("port", MESH_PORTS)
def test_listener_dialled_from_outside(
    pair: Pair, sidecar: Sidecar, family: Family, port: int
) -> None:
    """A stranger who dials the proxy itself is reset and logged once."""
    watch = Watch(pair, sidecar)
    outcome = clients.outcome_of_talking(pair.far.namespace, pair.near.at(family, port))
    assert Outcome(b"", reset=True) == outcome
    (line,) = watch.lines()
    assert ("deny", 0, 0) == (line["verdict"], line["sent"], line["received"])
    assert (line["end"], line["reason"]) in _REFUSALS


@pytest.mark.parametrize("port", _FORWARDS)
def test_relay_to_itself(pair: Pair, sidecar: Sidecar, port: int) -> None:
    """A static relay whose target leads back to this process refuses, and logs once."""
    watch = Watch(pair, sidecar)
    host = "::1" if r"interface=\:\:" in _FORWARDS[port] else "127.0.0.1"
    outcome = clients.outcome_of_talking(pair.near.namespace, SocketAddress(host, port))
    assert Outcome(b"", reset=True) == outcome
    (line,) = watch.lines()
    expected = {
        "listener": "forward",
        "destination_from": "static",
        "verdict": "deny",
        "reason": "proxy_loop_detected",
        "received": 0,
        "end": "proxy_loop_detected",
    }
    assert expected == {key: line[key] for key in expected}
