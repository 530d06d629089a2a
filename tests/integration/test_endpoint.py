"""Anybody's Factory behind `transparent:` sees the original destination as its address."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration import clients
from integration.clients import Outcome, local_address
from integration.proxy import INBOUND, ISTIO, OUTBOUND, ROOT, Program, applied, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.netns import Family, Pair
    from integration.proxy import Identity

_TELLER = Path(__file__).with_name("teller.py")
_IDENTITIES = {"redirect": ISTIO, "tproxy": ROOT}


@contextmanager
def _teller(pair: Pair, outside: Path, identity: Identity, *endpoints: str) -> Iterator[Program]:
    command = [*identity.command(), sys.executable, str(_TELLER), *endpoints]
    program = Program(pair.near.namespace, command, cwd=outside)
    try:
        program.wait_until(lambda: "listening" in program.printed)
        yield program
    finally:
        program.kill()


@pytest.fixture(scope="module", params=["redirect", "tproxy"])
def mode(request: pytest.FixtureRequest, pair: Pair, outside: Path) -> Iterator[str]:
    """Have a teller on both ports and everything routed to it."""
    mode: str = request.param
    endpoints = [f"transparent:{OUTBOUND}", f"transparent:{INBOUND}:mode={mode}:backlog=10"]
    with (
        _teller(pair, outside, _IDENTITIES[mode], *endpoints),
        applied(pair.near.namespace, "--mode", mode, "--exclude-uid", "1337"),
    ):
        yield mode


@pytest.mark.parametrize("direction", ["outbound", "inbound"])
def test_get_host_is_the_original_destination(
    pair: Pair, mode: str, direction: str, family: Family, port: int
) -> None:
    """`transport.getHost()` is where the client wanted to go, `getPeer()` the client."""
    client, server = (pair.near, pair.far) if direction == "outbound" else (pair.far, pair.near)
    destination = server.at(family, port)
    kind = "IPv4Address" if family == "ipv4" else "IPv6Address"
    with client.namespace.connect(destination) as connection, connection.makefile("rwb") as file:
        source = local_address(connection)
        expected = f"{kind} TCP {destination.host} {port} {source.host} {source.port}\n"
        assert expected == file.readline().decode()
        file.write(b"and it works\n")
        file.flush()
        assert file.readline() == b"and it works\n"


@pytest.mark.parametrize("port", [OUTBOUND, INBOUND])
def test_direct_dials_never_reach_the_factory(
    pair: Pair, mode: str, family: Family, port: int
) -> None:
    """Who dials the listener itself, from here or from elsewhere, is reset without a word."""
    localhost = "127.0.0.1" if family == "ipv4" else "::1"
    here = type(pair.near.at(family, port))(localhost, port)
    assert Outcome(b"", reset=True) == clients.outcome_of_talking(pair.near.namespace, here)
    there = pair.near.at(family, port)
    assert Outcome(b"", reset=True) == clients.outcome_of_talking(pair.far.namespace, there)


def test_tproxy_without_the_capability(pair: Pair, outside: Path) -> None:
    """`mode=tproxy` without privilege ends twistd with one line that names what is missing."""
    arguments = ["--outbound", "transparent:15001:mode=tproxy"]
    with (
        pytest.raises(AssertionError, match=r"exit status 1") as caught,
        running(pair.near.namespace, arguments, ports=[15001], cwd=outside, identity=ISTIO),
    ):
        pass
    (line,) = [text for text in str(caught.value).splitlines() if text.startswith("twistd sidecar")]
    assert "CAP_NET_ADMIN or CAP_NET_RAW" in line
