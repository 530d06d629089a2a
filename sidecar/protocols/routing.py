"""One connection that goes to the name that it asks for, from its arrival to the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.addresses import SocketAddress
from sidecar.names.verifying import MOST_ADDRESSES, Addresses, acceptable_answers
from sidecar.policy import Outcome
from sidecar.protocols.pending import Pending

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sidecar.flow import Flow
    from sidecar.names.resolving import INameResolver
    from sidecar.protocols.judge import Allowed, Judge
    from sidecar.runtime import Runtime

__all__ = ["Routing"]


class Routing(Pending):
    """One flow that goes to the name that it asks for, at the listener's own port.

    Args:
        resolver: Asked for the name.
        Others: as `Pending`.
    """

    __slots__ = ("_port", "_resolver")

    def __init__(
        self,
        runtime: Runtime,
        judge: Judge,
        connection: socket.socket,
        flow: Flow,
        allowed: Callable[[Allowed], None],
        resolver: INameResolver,
    ) -> None:
        super().__init__(runtime, judge, connection, flow, allowed)
        self._resolver = resolver
        self._port = connection.getsockname()[1]
        self._listen(judge.silence, judge.patience)

    def _names_known(self) -> None:
        host = self._flow.host
        if host is None:
            self.deny("no_name")
            return
        # What no address could make allowed isn't even looked up.
        decision = self._judge.policy.judge_name(host, self._port, ech=self._flow.ech)
        if decision.outcome is Outcome.DENY:
            self.deny(decision.reason.value, decision.rule_with_place, decision.hint)
            return
        unspecified = SocketAddress("::", self._port)
        self._ask(
            acceptable_answers(self._resolver, host, unspecified, self._acceptable), self._resolved
        )

    def _resolved(self, addresses: Addresses) -> None:
        flow = self._flow
        flow.destination = addresses[0]
        decision = self._judge.policy.decide(flow)
        flow.reason = decision.reason.value
        flow.rule = decision.rule_with_place
        self._allow(addresses[:MOST_ADDRESSES])
