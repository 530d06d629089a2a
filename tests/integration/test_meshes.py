"""sidecar stands in for the proxies of Istio and Linkerd behind their own rule sets.

The rules are those that istio-iptables (REDIRECT mode) and linkerd2-proxy-init leave
in a pod's namespace. sidecar runs as the user that they exempt, without capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from integration import clients, origins
from integration.netns import FAMILIES
from integration.origins import Origin
from integration.proxy import ISTIO, LINKERD, Identity, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.netns import Family, Namespace, Pair
    from integration.proxy import Sidecar

# tools/istio-iptables of Istio, defaults: inbound ports "*", outbound ranges "*".
# 15008 is its tunnel (HBONE); 15090, 15021 and 15020 are its own metrics and health.
_ISTIO_RULES = """\
*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -o lo -s {pass_through} -j RETURN
-A ISTIO_OUTPUT -o lo ! -d {loopback} -p tcp ! --dport 15008 -m owner --uid-owner 1337 \
-j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d {loopback} -p tcp ! --dport 15008 -m owner --gid-owner 1337 \
-j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d {loopback} -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
"""

# linkerd2-proxy-init, defaults: 4190 and 4191 are the proxy's control and admin ports,
# 4567 and 4568 Galera's, skipped for both directions.
_LINKERD_RULES = """\
*nat
:PROXY_INIT_REDIRECT - [0:0]
:PROXY_INIT_OUTPUT - [0:0]
-A PROXY_INIT_REDIRECT -p tcp -m multiport --dports 4190,4191,4567,4568 -j RETURN
-A PROXY_INIT_REDIRECT -p tcp -j REDIRECT --to-port 4143
-A PREROUTING -j PROXY_INIT_REDIRECT
-A PROXY_INIT_OUTPUT -m owner --uid-owner 2102 -j RETURN
-A PROXY_INIT_OUTPUT -o lo -j RETURN
-A PROXY_INIT_OUTPUT -p tcp -m multiport --dports 4567,4568 -j RETURN
-A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-port 4140
-A OUTPUT -j PROXY_INIT_OUTPUT
COMMIT
"""

_LOOPBACK = {"ipv4": "127.0.0.1/32", "ipv6": "::1/128"}
_PASS_THROUGH = {"ipv4": "127.0.0.6", "ipv6": "::6"}
_RESTORE = {"ipv4": "iptables-restore", "ipv6": "ip6tables-restore"}


@dataclass(frozen=True)
class Mesh:
    """Somebody else's interception.

    Attributes:
        rules: iptables-restore text.
        outbound, inbound: Where they redirect to.
        identity: Whom they exempt.
    """

    rules: str
    outbound: int
    inbound: int
    identity: Identity


_MESHES = {
    "istio": Mesh(_ISTIO_RULES, 15001, 15006, ISTIO),
    "linkerd": Mesh(_LINKERD_RULES, 4140, 4143, LINKERD),
}


def _intercept(namespace: Namespace, rules: str) -> None:
    for family in FAMILIES:
        text = rules.format(
            loopback=_LOOPBACK[family],
            pass_through=_PASS_THROUGH[family] + ("/32" if family == "ipv4" else "/128"),
        )
        namespace.run([_RESTORE[family], "--noflush"], stdin=text)
    # So does istio-iptables: 127.0.0.6 is local anyhow, ::6 is not.
    namespace.ip("addr", "replace", "::6/128", "dev", "lo")


def _let_go(namespace: Namespace) -> None:
    for program in _RESTORE.values():
        namespace.run([program], stdin="*nat\nCOMMIT\n")
    namespace.ip("addr", "del", "::6/128", "dev", "lo")


@pytest.fixture(scope="module", params=list(_MESHES))
def mesh(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Mesh]:
    mesh = _MESHES[request.param]
    _intercept(pair.near.namespace, mesh.rules)
    yield mesh
    _let_go(pair.near.namespace)


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, pair: Pair, outside: Path) -> Iterator[Sidecar]:
    arguments = ["--outbound", f"transparent:{mesh.outbound}"]
    arguments += ["--inbound", f"transparent:{mesh.inbound}"]
    with running(
        pair.near.namespace,
        arguments,
        ports=(mesh.outbound, mesh.inbound),
        cwd=outside,
        identity=mesh.identity,
    ) as sidecar:
        yield sidecar


def test_outbound(pair: Pair, sidecar: Sidecar, family: Family, port: int) -> None:
    """What the application fetches passes through sidecar, once."""
    server = pair.far.at(family, port)
    with Origin(pair.far.namespace, server, origins.http_page) as origin:
        fetched = clients.curl(pair.near.namespace, server)
    assert origins.PAGE == fetched.page
    line = sidecar.line(destination=server)
    expected = {
        "listener": "outbound",
        "source": str(fetched.source),
        "destination_from": "redirect",
        "upstream": str(server),
        "sent": fetched.sent,
        "received": fetched.received,
        "end": "closed",
    }
    assert expected == {key: line[key] for key in expected}
    assert [pair.near.at(family, 0).host] == [peer.host for peer in origin.peers]


def test_inbound(pair: Pair, sidecar: Sidecar, family: Family, port: int) -> None:
    """What is fetched from the application passes through sidecar, once.

    The application sees the pass-through address, which is what Istio's rules know the
    proxy's own connections by.
    """
    server = pair.near.at(family, port)
    with Origin(pair.near.namespace, server, origins.http_page) as origin:
        fetched = clients.curl(pair.far.namespace, server)
    assert origins.PAGE == fetched.page
    line = sidecar.line(destination=server)
    expected = {
        "listener": "inbound",
        "source": str(fetched.source),
        "destination_from": "redirect",
        "upstream": str(server),
        "sent": fetched.sent,
        "received": fetched.received,
        "end": "closed",
    }
    assert expected == {key: line[key] for key in expected}
    assert [_PASS_THROUGH[family]] == [peer.host for peer in origin.peers]


def test_to_itself(pair: Pair, sidecar: Sidecar, family: Family, port: int) -> None:
    """An application that connects to its own address reaches itself, past the proxy."""
    server = pair.near.at(family, port)
    before = len(sidecar.lines())
    with Origin(pair.near.namespace, server, origins.http_page) as origin:
        fetched = clients.curl(pair.near.namespace, server)
    assert origins.PAGE == fetched.page
    assert [fetched.source] == origin.peers
    assert before == len(sidecar.lines())


def test_refused(pair: Pair, sidecar: Sidecar, family: Family, port: int) -> None:
    """Nobody listening is a reset both ways, with no loop through the rules."""
    for client, server in ((pair.near, pair.far), (pair.far, pair.near)):
        destination = server.at(family, port)
        outcome = clients.outcome_of_talking(client.namespace, destination)
        assert outcome.reset
        assert sidecar.line(destination=destination)["end"] == "connection_refused"
