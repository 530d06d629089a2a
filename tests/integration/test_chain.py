"""Sidecars one behind the other: each intercepts, none mistakes the other for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from integration import clients, origins
from integration.origins import Origin
from integration.proxy import ISTIO, ROOT, applied, running

if TYPE_CHECKING:
    from pathlib import Path

    from integration.netns import Family, Gateway

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_client_router_and_server_each_have_one(
    gateway: Gateway, outside: Path, mode: str, family: Family, port: int
) -> None:
    """A fetch passes the client's, the router's and the server's sidecar and is a line in each."""
    identity = ISTIO if mode == "redirect" else ROOT
    options = ("--mode", mode, "--exclude-uid", "1337")
    client, router, server = gateway.client, gateway.router, gateway.server
    address = server.at(family, port)
    with (
        running(client.namespace, cwd=outside, identity=identity) as first,
        running(router.namespace, cwd=outside, identity=identity) as second,
        running(server.namespace, cwd=outside, identity=identity) as third,
        applied(client.namespace, *options),
        applied(router.namespace, *options, "--forwarded"),
        applied(server.namespace, *options),
        Origin(server.namespace, address, origins.http_page),
    ):
        fetched = clients.curl(client.namespace, address)
        assert origins.PAGE == fetched.page
        for sidecar, listener, source in (
            (first, "outbound", client),
            (second, "outbound", client),
            (third, "inbound", gateway.router_to_server),
        ):
            line = sidecar.line(destination=address)
            expected = {
                "listener": listener,
                "destination_from": mode,
                "upstream": str(address),
                "sent": fetched.sent,
                "received": fetched.received,
                "end": "closed",
            }
            assert expected == {key: line[key] for key in expected}
            assert str(source.at(family, 0)).removesuffix(":0") in line["source"]
