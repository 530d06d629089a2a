"""Flows that have ended as a test wants them."""

from __future__ import annotations

import time
from typing import Any

from sidecar.addresses import SocketAddress
from sidecar.flow import DestinationSource, Flow, FlowEnd, HostSource, ListenerKind, Protocol

__all__ = ["DENIED_HINT", "denied_flow", "ended_flow", "open_flow"]

DENIED_HINT = "198.51.100.1:443"


def open_flow(address: str = "198.51.100.1:443", host: str | None = None, **facts: Any) -> Flow:
    """One that goes on."""
    return Flow(
        ListenerKind.OUTBOUND,
        SocketAddress("192.0.2.1", 40000),
        SocketAddress.parse(address),
        DestinationSource.TPROXY,
        protocol=facts.pop("protocol", Protocol.TLS),
        host=host,
        host_from=None if host is None else HostSource.SNI,
        **facts,
    )


def ended_flow(
    address: str = "198.51.100.1:443",
    host: str | None = None,
    *,
    end: FlowEnd = FlowEnd.CLOSED,
    seconds: float = 0.25,
    **facts: Any,
) -> Flow:
    """One that was allowed."""
    flow = open_flow(address, host, **facts)
    flow.started_monotonic = time.monotonic() - seconds
    flow.finish(end)
    flow.seconds = seconds
    return flow


def denied_flow(
    address: str = "198.51.100.1:443",
    host: str | None = None,
    *,
    reason: str = "default",
    hint: str = DENIED_HINT,
    **facts: Any,
) -> Flow:
    """One that was denied."""
    flow = open_flow(address, host, hint=hint, **facts)
    flow.deny(reason)
    return flow
