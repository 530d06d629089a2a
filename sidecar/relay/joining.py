"""Which engine joins two connections: the kernel's, or Twisted's transports."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from sidecar.flow import FlowEnd
from sidecar.relay.buffered import BufferedRelay
from sidecar.relay.protocol import RelayProtocol, adopt
from sidecar.relay.stream import SocketTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.relay.screened import Screen
    from sidecar.relay.spliced import SplicedEngine, SplicedRelay
    from sidecar.relay.totals import Totals

__all__ = ["Joined", "Side", "join", "start"]

Side = socket.socket | RelayProtocol


def join(
    engine: SplicedEngine,
    downstream: Side,
    upstream: Side,
    *,
    to_upstream: bytes = b"",
    to_downstream: bytes = b"",
) -> Deferred[Totals]:
    """Pass everything on between two connections until both are done.

    Spliced where both are plain TCP sockets, or transports of plain TCP sockets; by
    producers and consumers otherwise.

    Args:
        engine: Of the reactor that both belong to.
        downstream: The client's side: a connected non-blocking TCP socket, or a
            connected `RelayProtocol`. Owned by the relay from here on.
        upstream: The server's side, likewise.
        to_upstream: Bytes already read from the client, delivered first (after what
            its transport has yet to write).
        to_downstream: Bytes already read from the server, likewise.

    Returns:
        Fires with the totals and the end reason after both are closed; fails only with
        CancelledError. Cancelling it resets both sides.
    """
    joined = Joined()
    totals: Deferred[Totals] = Deferred(lambda _: joined.abort(FlowEnd.SHUTDOWN))

    def done(amount: Totals) -> None:
        # Twisted's transports close in a later turn; a cancelled Deferred doesn't wait.
        if not totals.called:
            totals.callback(amount)

    start(
        engine,
        downstream,
        upstream,
        done,
        joined,
        to_upstream=to_upstream,
        to_downstream=to_downstream,
    )
    return totals


class Joined:
    """A hold on a relay that may not have started yet."""

    __slots__ = ("_aborted", "_relay")

    def __init__(self) -> None:
        self._relay: SplicedRelay | BufferedRelay | None = None
        self._aborted: FlowEnd | None = None

    def started(self, relay: SplicedRelay | BufferedRelay) -> None:
        """The relay runs."""
        self._relay = relay
        if self._aborted is not None:
            relay.abort(self._aborted)

    @property
    def totals(self) -> Totals | None:
        """Bytes handed on so far; None where the relay hasn't started."""
        return None if self._relay is None else self._relay.totals

    def abort(self, end: FlowEnd) -> None:
        """Reset both sides with this end, or as soon as the relay starts."""
        self._aborted = end
        if self._relay is not None:
            self._relay.abort(end)


def start(
    engine: SplicedEngine,
    downstream: Side,
    upstream: Side,
    done: Callable[[Totals], None],
    joined: Joined,
    *,
    to_upstream: bytes = b"",
    to_downstream: bytes = b"",
    screen: Screen | None = None,
) -> None:
    """As `join`, by callbacks: a Deferred for every connection is one too many.

    Args:
        engine, downstream, upstream, to_upstream, to_downstream: As `join`.
        done: Called once with the totals, after both are closed.
        joined: Gets the relay.
        screen: Reads what the client says first; both sides are sockets then.

    Raises:
        TypeError: One of them is none, so that nobody could be kept from being heard.
    """
    if isinstance(downstream, socket.socket) and isinstance(upstream, socket.socket):
        joined.started(
            engine.relay(
                downstream,
                upstream,
                done,
                to_upstream=to_upstream,
                to_downstream=to_downstream,
                screen=screen,
            )
        )
        return
    if screen is not None:
        raise TypeError("only the bytes of sockets can be screened")
    if _spliceable(downstream) and _spliceable(upstream):
        _detach_both(engine, downstream, upstream, done, joined, to_upstream, to_downstream)
        return
    down = _as_protocol(engine, downstream)
    up = _as_protocol(engine, upstream)
    if to_upstream:
        down.early.insert(0, to_upstream)
    if to_downstream:
        up.early.insert(0, to_downstream)
    joined.started(
        BufferedRelay(
            engine.reactor,
            down,
            up,
            done,
            idle_timeout=engine.idle_timeout,
            half_close_timeout=engine.half_close_timeout,
        )
    )


def _spliceable(side: Side) -> bool:
    return isinstance(side, socket.socket) or side.detachable


def _detach_both(
    engine: SplicedEngine,
    downstream: Side,
    upstream: Side,
    done: Callable[[Totals], None],
    joined: Joined,
    to_upstream: bytes,
    to_downstream: bytes,
) -> None:
    sockets: dict[Side, socket.socket] = {}

    def have(side: Side, connection: socket.socket) -> None:
        sockets[side] = connection
        if len(sockets) == 2:  # noqa: PLR2004 - both
            joined.started(
                engine.relay(
                    sockets[downstream],
                    sockets[upstream],
                    done,
                    to_upstream=_unwritten(upstream) + to_upstream + _early(downstream),
                    to_downstream=_unwritten(downstream) + to_downstream + _early(upstream),
                )
            )

    for side in (downstream, upstream):
        if isinstance(side, RelayProtocol):
            side.detach(partial(have, side))
        else:
            have(side, side)


def _early(side: Side) -> bytes:
    return b"".join(side.early) if isinstance(side, RelayProtocol) else b""


def _unwritten(side: Side) -> bytes:
    return side.unwritten if isinstance(side, RelayProtocol) else b""


def _as_protocol(engine: SplicedEngine, side: Side) -> RelayProtocol:
    """A side on a Twisted transport, since the buffered relay needs more than ours has."""
    protocol = RelayProtocol(_ignore)
    if isinstance(side, RelayProtocol):
        if not isinstance(side.transport, SocketTransport) or not side.transport.connected:
            return side
        protocol.early = side.early
        # Calls back before it returns.
        side.detach(partial(adopt, engine.reactor, protocol=protocol))
        if side.unwritten and protocol.lost_for is None:
            protocol.stream.write(side.unwritten)
    else:
        adopt(engine.reactor, side, protocol)
    return protocol


def _ignore(_: RelayProtocol) -> None:
    """Nobody waits for a connection that is adopted and joined in one go."""
