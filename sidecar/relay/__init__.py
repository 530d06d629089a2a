"""Joining two connected transports until both are done."""

from sidecar.relay.joining import Joined, Side, join, start
from sidecar.relay.protocol import RelayProtocol
from sidecar.relay.spliced import SplicedEngine
from sidecar.relay.totals import Totals

__all__ = ["Joined", "RelayProtocol", "Side", "SplicedEngine", "Totals", "join", "start"]
