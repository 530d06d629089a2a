"""As whom sidecar may run, and by what the rules then know its connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from integration import clients, origins
from integration.netns import FAMILIES
from integration.origins import Origin
from integration.proxy import ISTIO, ROOT, Identity, applied, running

if TYPE_CHECKING:
    from pathlib import Path

    from integration.netns import Pair

pytestmark = pytest.mark.thorough

_BY_UID = ("--exclude-uid", "1337")
_BY_GID = ("--exclude-gid", "1337")
_WITH_RAW = Identity(1337, ("net_raw",))
_WITH_ADMIN = Identity(1337, ("net_admin",))


@pytest.mark.parametrize(
    ("mode", "identity", "exclusion"),
    [
        pytest.param("redirect", ROOT, (), id="redirect-root-mark"),
        pytest.param("redirect", ISTIO, _BY_UID, id="redirect-nobody-uid"),
        pytest.param("redirect", ISTIO, _BY_GID, id="redirect-nobody-gid"),
        pytest.param("redirect", _WITH_RAW, (), id="redirect-net_raw-mark"),
        pytest.param("tproxy", ROOT, (), id="tproxy-root-mark"),
        pytest.param("tproxy", _WITH_RAW, _BY_UID, id="tproxy-net_raw-uid"),
        pytest.param("tproxy", _WITH_RAW, (), id="tproxy-net_raw-mark"),
        pytest.param("tproxy", _WITH_ADMIN, (), id="tproxy-net_admin-mark"),
    ],
)
def test_fetches_work(
    pair: Pair,
    outside: Path,
    mode: str,
    identity: Identity,
    exclusion: tuple[str, ...],
    port: int,
) -> None:
    """Out and in, in both families, a fetch passes through the proxy exactly once."""
    with (
        running(pair.near.namespace, cwd=outside, identity=identity) as sidecar,
        applied(pair.near.namespace, "--mode", mode, *exclusion),
    ):
        for client, server in ((pair.near, pair.far), (pair.far, pair.near)):
            for family in FAMILIES:
                address = server.at(family, port)
                with Origin(server.namespace, address, origins.http_page) as origin:
                    fetched = clients.curl(client.namespace, address)
                assert origins.PAGE == fetched.page
                assert len(origin.peers) == 1
                line = sidecar.line(destination=address)
                assert (mode, "closed") == (line["destination_from"], line["end"])
