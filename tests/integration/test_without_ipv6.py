"""Hosts without IPv6 are served in IPv4, with no option to set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration import clients, netns, origins
from integration.origins import Origin
from integration.proxy import ISTIO, ROOT, applied, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.netns import Pair

pytestmark = pytest.mark.thorough

_WITHOUT_IPV6 = (sys.executable, str(Path(__file__).with_name("without_ipv6.py")))
_IDENTITIES = {"redirect": ISTIO, "tproxy": ROOT}


@pytest.fixture(scope="module")
def switched_off() -> Iterator[Pair]:
    """Two hosts, the first with IPv6 switched off on all its interfaces."""
    with netns.pair("n") as pair:
        pair.near.namespace.sysctl("ipv6/conf/all/disable_ipv6", "1")
        pair.near.namespace.sysctl("ipv6/conf/default/disable_ipv6", "1")
        yield pair


def _fetch_both_ways(pair: Pair, outside: Path, mode: str, port: int, *wrapper: str) -> None:
    with (
        running(
            pair.near.namespace, cwd=outside, identity=_IDENTITIES[mode], wrapper=wrapper
        ) as sidecar,
        applied(pair.near.namespace, "--mode", mode, "--exclude-uid", "1337"),
    ):
        for client, server in ((pair.near, pair.far), (pair.far, pair.near)):
            address = server.at("ipv4", port)
            with Origin(server.namespace, address, origins.http_page):
                assert origins.PAGE == clients.curl(client.namespace, address).page
            line = sidecar.line(destination=address)
            assert (mode, "closed") == (line["destination_from"], line["end"])


@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_switched_off_by_sysctl(switched_off: Pair, outside: Path, mode: str, port: int) -> None:
    """With disable_ipv6=1 rules can be applied and IPv4 is intercepted and relayed."""
    _fetch_both_ways(switched_off, outside, mode, port)


@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_no_such_address_family(pair: Pair, outside: Path, mode: str, port: int) -> None:
    """Where there are no IPv6 sockets at all the listener is an IPv4 one."""
    _fetch_both_ways(pair, outside, mode, port, *_WITHOUT_IPV6)
