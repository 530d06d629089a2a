"""Rules that don't exempt the proxy from interception: it knows its own connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from integration import clients, origins
from integration.clients import Outcome
from integration.origins import Origin
from integration.proxy import ISTIO, ROOT, eventually, running

if TYPE_CHECKING:
    from pathlib import Path

    from integration.netns import Family, Namespace, Pair

pytestmark = pytest.mark.thorough

# Interception with nothing that exempts the proxy.
_UNPROTECTED_REDIRECT = """
table inet unprotected {
    chain output {
        type nat hook output priority -100; policy accept;
        meta l4proto tcp redirect to :15001
    }
}
"""
_UNPROTECTED_TPROXY = """
table inet unprotected {
    chain output {
        type route hook output priority mangle; policy accept;
        meta l4proto tcp ct direction original meta mark set 0x99
    }
    chain prerouting {
        type filter hook prerouting priority mangle; policy accept;
        meta mark 0x99 meta l4proto tcp tproxy to :15001 accept
    }
}
"""


def _unprotected(namespace: Namespace, rules: str) -> None:
    namespace.run(["nft", "-f", "-"], stdin=rules)
    if "tproxy" in rules:
        for family in ("-4", "-6"):
            namespace.ip(family, "rule", "add", "fwmark", "0x99", "lookup", "99")
            namespace.ip(family, "route", "add", "local", "default", "dev", "lo", "table", "99")


@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_rules_that_catch_the_proxy_itself(
    pair: Pair, outside: Path, mode: str, family: Family, port: int
) -> None:
    """Where the rules don't exempt the proxy, its own connection is known when it comes back."""
    redirect = mode == "redirect"
    rules = _UNPROTECTED_REDIRECT if redirect else _UNPROTECTED_TPROXY
    server = pair.far.at(family, port)
    namespace = pair.near.namespace
    # Without a capability it couldn't mark its packets; with one, these rules overwrite it.
    with (
        Origin(pair.far.namespace, server, origins.http_page) as origin,
        running(namespace, cwd=outside, identity=ISTIO if redirect else ROOT) as sidecar,
    ):
        descriptors = sidecar.descriptors()
        _unprotected(namespace, rules)
        try:
            outcome = clients.outcome_of_talking(namespace, server)
            assert Outcome(b"", reset=True) == outcome
            again = clients.outcome_of_talking(namespace, server)
            assert Outcome(b"", reset=True) == again
        finally:
            namespace.run(["nft", "delete", "table", "inet", "unprotected"])
            if not redirect:
                for option in ("-4", "-6"):
                    namespace.ip(option, "rule", "del", "fwmark", "0x99")
                    namespace.ip(option, "route", "flush", "table", "99")
        # With the rules gone nothing that might still be going round does so unseen.
        lines = sidecar.wait_for_lines(2)
        eventually(descriptors, sidecar.descriptors)
        assert [] == origin.peers
        assert lines == sidecar.lines()
        assert ["proxy_loop_detected"] * 2 == [line["end"] for line in lines]
        assert [str(server)] * 2 == [line["destination"] for line in lines]
