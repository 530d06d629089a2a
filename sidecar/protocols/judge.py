"""By what flows are judged, and what comes out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sidecar.flow import HostSource
from sidecar.names.served import name_of
from sidecar.policy import Outcome
from sidecar.protocols.lingering import Lingerers

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from sidecar.flow import Flow
    from sidecar.interfaces import IDecisionStep
    from sidecar.names.served import Served
    from sidecar.names.verifying import Addresses, IVerifier
    from sidecar.policy import Policy
    from sidecar.protocols.late import LateWords
    from sidecar.protocols.relaying import Relaying

__all__ = ["Allowed", "Judge"]

# Seconds that a decision step may take; as long as a dial.
_DEADLINE = 10.0
# Seconds; one that speaks first has spoken by then, wherever it is.
_BRIEF = 0.25


class Allowed(NamedTuple):
    """A flow that may go.

    Attributes:
        connection: The client's; the callee's from here on.
        flow: With all its facts.
        addresses: What to dial, one after another until one answers, and nothing else.
        data: What has been read from the client.
        upstream: A connection to the first address that has been made already; None if
            there is none.
        words: Hears what the client says first, since it was allowed for its silence; None
            where that was heard, or doesn't matter.
    """

    connection: socket.socket
    flow: Flow
    addresses: Addresses
    data: bytes
    upstream: socket.socket | None
    words: LateWords | None = None


class Judge:
    """What all flows are judged by.

    Args:
        policy: The rules; may be replaced at any time, for the flows to come.
        verifier: Says whether an address belongs to a name.
        silence: Seconds that a client may stay silent before it is taken for one
            whose server speaks first.
        patience: Seconds from a client's first byte to its name; absolute.
        steps: Asked of every flow that the policy allows.
        deadline: Seconds that each step may take.
        brief: Likewise, at most, where its denial is certain, or it is denied by the name that
            DNS has given it, unless it says another.
        served: What our own DNS has answered: names the flows that say no name themselves.
        curious: Whether clients are also listened to where their name changes nothing, for
            who wants to know it (``--learn``).

    Attributes:
        open: The judged flows that are being relayed, by serial number.
        lingerers: The clients that were told of their denial, and still speak.
    """

    def __init__(
        self,
        policy: Policy,
        verifier: IVerifier,
        *,
        silence: float,
        patience: float,
        steps: Sequence[IDecisionStep] = (),
        deadline: float = _DEADLINE,
        brief: float = _BRIEF,
        served: Served | None = None,
        curious: bool = False,
    ) -> None:
        self.policy = policy
        self.verifier = verifier
        self.silence = silence
        self.patience = patience
        self.steps = steps
        self.deadline = deadline
        self.brief = brief
        self.served = served
        self.curious = curious
        self.open: dict[int, tuple[Flow, Relaying]] = {}
        self.lingerers = Lingerers()

    def name(self, flow: Flow) -> None:
        """Give a flow the name that its address was answered for, until it says another."""
        if self.served is None or flow.destination is None or flow.host is not None:
            return
        flow.host = name_of(self.served, self.policy, flow.destination)
        if flow.host is not None:
            flow.host_from = HostSource.DNS

    def relayed(self, flow: Flow, relaying: Relaying) -> None:
        """Take note of a judged flow that is being relayed, until it ends."""
        if flow.end is None:
            self.open[flow.serial] = flow, relaying

    def ended(self, flow: Flow) -> None:
        """Forget a flow."""
        self.open.pop(flow.serial, None)

    def close_denied(self) -> None:
        """End the open flows that the policy, a new one, denies."""
        for flow, relaying in list(self.open.values()):
            decision = self.policy.decide(flow)
            if decision.outcome is Outcome.DENY:
                relaying.deny(decision.reason.value, decision.rule_with_place)
