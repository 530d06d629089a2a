"""What does a client say that had said nothing when its flow was allowed?

It was allowed as one that names nobody: for the name that its address was answered for, or
since no name of the rules was said. Its connection is relayed, but its first bytes,
whenever they come, are read before the server gets any of them. TLS and HTTP say names, so
that the flow is judged again, as that of a client that had spoken at once; all else is
passed on from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.flow import Flow, Protocol
from sidecar.peeking import Peek
from sidecar.protocols.nearly_http import is_nearly_http

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from sidecar.relay.screened import Screened
    from sidecar.runtime import Runtime

__all__ = ["LateWords"]


class LateWords:
    """The first words of one client, when they come.

    Args:
        runtime: Shared by all.
        flow: The client's, which stays as it was judged.
        patience: Seconds from its first byte to its name; absolute.
        judge_again: Called with this once the words want a verdict, and the relay is no more.
        failed: Called if there was a bug then.

    Attributes:
        said: What the client says, as far as it is known.
        data: All that was read of it.
        late: Whether it began to speak, and took too long.
        upstream: With `judge_again`: the server's connection, which the callee gets.
        server_spoke: Likewise: whether the server has said something, or has ended.
    """

    __slots__ = (
        "_half",
        "_judge_again",
        "_patience",
        "_peek",
        "_runtime",
        "_timer",
        "data",
        "failed",
        "late",
        "said",
        "server_spoke",
        "upstream",
    )

    def __init__(
        self,
        runtime: Runtime,
        flow: Flow,
        patience: float,
        judge_again: Callable[[LateWords], None],
        failed: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._patience = patience
        self._judge_again = judge_again
        self.failed = failed
        self.said = Flow(flow.listener, None, None, None)
        self.data = b""
        self.late = False
        self.upstream: socket.socket | None = None
        self.server_spoke = False
        self._peek: Peek | None = None
        self._half: Screened | None = None
        self._timer: IDelayedCall | None = None

    def heard(self, half: Screened, data: bytes) -> None:
        """As `Screen.heard`."""
        if self._peek is None:
            if not data:
                # It has nothing to say.
                half.pass_on(b"")
                return
            self._peek = Peek(self.said)
            self._half = half
            self._timer = self._runtime.reactor.callLater(self._patience, self._waited)
        self.data += data
        if not self._peek.feed(data):
            return
        self.forget()
        said = self.said
        if said.protocol is Protocol.TCP and not is_nearly_http(self.data):
            data, self.data = self.data, b""
            half.pass_on(data)
        else:
            half.give_back()

    def _waited(self) -> None:
        half, self._timer = self._half, None
        self._half = None
        if half is not None:
            self.late = True
            half.give_back()

    def given_back(self, upstream: socket.socket, *, spoken: bool) -> None:
        """The relay is no more (`Screen.given_back`)."""
        self.upstream = upstream
        self.server_spoke = spoken
        self._judge_again(self)

    def forget(self) -> None:
        """Wait for nothing any more."""
        self._half = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
