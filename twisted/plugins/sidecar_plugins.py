"""What sidecar adds to Twisted: a twistd service and endpoints, ``transparent:`` and ``connect:``.

Every twistd and every endpoint string on the machine imports this module, so it
only names things. There is no ``__init__.py`` beside it or above it, ever: one
would hide this and all other plugins.
"""

from __future__ import annotations

from twisted.application.service import ServiceMaker

from sidecar.endpoint_strings import (
    ConnectClientParser,
    TransparentClientParser,
    TransparentServerParser,
)

__all__ = ["connect_client", "sidecar_service", "transparent_client", "transparent_server"]

sidecar_service = ServiceMaker(
    "Sidecar",
    "sidecar.tap",
    "Intercept TCP connections and relay them to where they were going",
    "sidecar",
)
transparent_server = TransparentServerParser()
transparent_client = TransparentClientParser()
connect_client = ConnectClientParser()
