"""How a connection, or an HTTP request, may end.

Errors know these as well, before there is any flow; so nothing else is imported here.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["FlowEnd"]


class FlowEnd(Enum):
    """How a flow ended; exactly one each."""

    CLOSED = "closed"
    DENIED = "denied"
    CLIENT_RESET = "client_reset"
    SERVER_RESET = "server_reset"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_TIMEOUT = "connection_timeout"
    DESTINATION_UNROUTABLE = "destination_unroutable"
    DNS_ERROR = "dns_error"
    DNS_TIMEOUT = "dns_timeout"
    PROXY_LOOP_DETECTED = "proxy_loop_detected"
    IDLE_TIMEOUT = "idle_timeout"
    HTTP_REQUEST_ERROR = "http_request_error"
    PROTOCOL_ERROR = "protocol_error"
    SHUTDOWN = "shutdown"
