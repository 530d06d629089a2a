"""Endpoints that Twisted does not have: transparent listening and dialling.

`TransparentServerEndpoint` makes every accepted connection's ``getHost()`` its
original destination, whichever way it was intercepted. `TransparentClientEndpoint`
dials from an address that isn't this host's. `adopt_port` has other endpoints' ports
served as fast as these.
"""

from sidecar.endpoints.client import TransparentClientEndpoint
from sidecar.endpoints.ports import adopt_port
from sidecar.endpoints.server import BACKLOG, TransparentServerEndpoint

__all__ = [
    "BACKLOG",
    "TransparentClientEndpoint",
    "TransparentServerEndpoint",
    "adopt_port",
]
