"""One connection from its arrival to the verdict: peeked at where a name matters.

    decide ─ allow ───────────────────────────────┐
       │ └── deny ── tell the client, end         ├─► allowed(address, bytes read)
       └──── need more ── peek ── decide ── verify ┘

What was read while peeking belongs to the relay, which delivers it first. A client
that stays silent is one whose server speaks first: after a moment it is judged as one
without a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from sidecar.addresses import SocketAddress
from sidecar.errors import VerificationError
from sidecar.flow import Flow, FlowEnd, Protocol, Verdict
from sidecar.names.verifying import acceptable_answers
from sidecar.peeking import Peek
from sidecar.policy import Outcome
from sidecar.protocols.denials import refuse
from sidecar.protocols.early import EarlyUpstream
from sidecar.protocols.steps import objection
from sidecar.relay.poller import ERROR, READ
from sidecar.relay.resets import reset

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from sidecar.interfaces import IDecisionStep
    from sidecar.names.resolving import INameResolver
    from sidecar.names.verifying import IVerifier
    from sidecar.policy import Policy
    from sidecar.protocols.relaying import Relaying
    from sidecar.runtime import Runtime

__all__ = ["Allowed", "Judge", "Judging", "Routing"]

# Bytes taken from the client at a time. A post-quantum ClientHello is 1.8 KB.
_READ_SIZE = 1 << 14
# Seconds that a decision step may take; as long as a dial.
_DEADLINE = 10.0


class Allowed(NamedTuple):
    """A flow that may go.

    Attributes:
        connection: The client's; the callee's from here on.
        flow: With all its facts.
        address: What to dial, and nothing else.
        data: What has been read from the client.
        upstream: A connection to `address` that has been made already; None if there
            is none.
    """

    connection: socket.socket
    flow: Flow
    address: SocketAddress
    data: bytes
    upstream: socket.socket | None


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

    Attributes:
        open: The judged flows that are being relayed, by serial number.
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
    ) -> None:
        self.policy = policy
        self.verifier = verifier
        self.silence = silence
        self.patience = patience
        self.steps = steps
        self.deadline = deadline
        self.open: dict[int, tuple[Flow, Relaying]] = {}

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


class _Peeking:
    """One flow while its names are being learnt, and how it is refused.

    Args:
        runtime: Shared by all.
        judge: What the flow is judged by.
        connection: The client's; ours until `allowed` is called.
        flow: Ended here if it is refused.
        allowed: Called at most once.
    """

    _log = Logger()
    __slots__ = (
        "_allowed",
        "_asking",
        "_connection",
        "_data",
        "_fd",
        "_flow",
        "_judge",
        "_peek",
        "_runtime",
        "_timer",
        "_watched",
    )

    def __init__(
        self,
        runtime: Runtime,
        judge: Judge,
        connection: socket.socket,
        flow: Flow,
        allowed: Callable[[Allowed], None],
    ) -> None:
        self._runtime = runtime
        self._judge = judge
        self._connection = connection
        self._fd = connection.fileno()
        self._flow = flow
        self._allowed = allowed
        self._data = bytearray()
        self._peek: Peek | None = None
        self._timer: IDelayedCall | None = None
        self._asking: Deferred[None] | None = None
        self._watched = False

    def _names_known(self) -> None:
        """Go on: the flow has all the names that it will have."""
        raise NotImplementedError

    # The poller's side

    def ready(self, events: int) -> None:
        """The client has something to say, or is gone."""
        if events & READ and self._peek is not None:
            self._read(self._peek)
        elif events & ERROR:
            self._give_up(FlowEnd.CLIENT_RESET)

    def failed(self) -> None:
        """A bug: refuse, which is the safe side."""
        self.deny("internal_error")

    def shut_down(self) -> None:
        """The process ends."""
        if self._watched:
            self._give_up(FlowEnd.SHUTDOWN)

    def _watch(self, events: int) -> None:
        if self._watched:
            self._runtime.poller.modify(self._fd, events)
        else:
            self._watched = True
            self._runtime.poller.register(self._fd, events, self)

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watched:
            self._watched = False
            self._runtime.poller.unregister(self._fd)

    # Peeking

    def _begin(self) -> None:
        self._peek = Peek(self._flow)
        self._watch(READ)
        self._timer = self._runtime.reactor.callLater(self._judge.silence, self._waited)

    def _read(self, peek: Peek) -> None:
        try:
            data = self._connection.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._give_up(FlowEnd.CLIENT_RESET)
            return
        if data and not self._data and self._timer is not None:
            # It speaks: from now on what counts is when it has said its name.
            self._timer.reset(self._judge.patience)
        self._data += data
        if peek.feed(data):
            self._peeked(peek)

    def _waited(self) -> None:
        self._timer = None
        peek = self._peek
        if self._data or peek is None:
            self.deny("peek_timeout")
        else:
            self._peeked(peek)

    def _peeked(self, peek: Peek) -> None:
        self._let_go()
        self._peek = None
        self._flow.names_known = True
        if peek.problem is not None:
            self.deny(peek.problem)
            return
        try:
            self._names_known()
        except Exception:  # noqa: BLE001 - a timer or the upstream may have called us
            self._log.failure("bug while a flow was being judged; denied")
            self.failed()

    # The verdict

    def _ask(
        self, asking: Deferred[SocketAddress], answered: Callable[[SocketAddress], None]
    ) -> None:
        """Wait for a name's address, and learn meanwhile if the client goes."""
        self._watch(0)
        self._asking = asking.addCallback(answered).addErrback(self._refused)

    def _acceptable(self, address: SocketAddress) -> bool:
        return self._judge.policy.accepts_address(self._flow, address)

    def _refused(self, failure: Failure) -> None:
        if failure.check(CancelledError) is not None:
            return
        error = failure.value
        if isinstance(error, VerificationError):
            self.deny(error.reason, self._flow.rule, end=error.end)
        else:
            self._log.failure("bug while a name was being verified; denied", failure)
            self.deny("internal_error")

    def _allow(self, address: SocketAddress) -> None:
        """The policy allows it; has anybody else an objection?"""
        judge = self._judge
        if not judge.steps:
            self._go(address)
            return
        self._watch(0)
        asked = objection(self._runtime.reactor, judge.steps, self._flow, judge.deadline)
        self._asking = (
            Deferred.fromCoroutine(asked)
            .addCallback(self._objected, address)
            .addErrback(self._refused)
        )

    def _objected(self, reason: str | None, address: SocketAddress) -> None:
        if reason is None:
            self._go(address)
        else:
            self.deny(reason)

    def _go(self, address: SocketAddress) -> None:
        self._let_go()
        self._allowed(
            Allowed(
                self._connection, self._flow, address, bytes(self._data), self._upstream(address)
            )
        )

    def _upstream(self, address: SocketAddress) -> socket.socket | None:  # noqa: ARG002
        """A connection to the address that has been made already."""
        return None

    def _drop_upstream(self) -> None:
        """Nothing will be relayed."""

    def deny(
        self, reason: str, rule: str | None = None, hint: str = "", end: FlowEnd = FlowEnd.DENIED
    ) -> None:
        """Refuse the flow, tell the client, and end."""
        self._let_go()
        self._drop_upstream()
        flow = self._flow
        flow.verdict = Verdict.DENY
        flow.reason = reason
        flow.rule = rule
        advice = f"; to allow it: {hint}" if hint else ""
        refuse(self._connection, flow.protocol, f"sidecar: denied: {reason}{advice}")
        flow.finish(end)

    def _give_up(self, end: FlowEnd) -> None:
        self._let_go()
        self._drop_upstream()
        # Nobody has allowed it.
        self._flow.verdict = Verdict.DENY
        self._flow.reason = "not_judged"
        self._flow.rule = None
        if self._asking is not None:
            self._asking.cancel()
        reset(self._connection)
        self._flow.finish(end)


class Judging(_Peeking):
    """One intercepted flow until its verdict: its destination is known.

    Where the policy would allow it without a name, its upstream is dialled while the
    client is being listened to, so that a server that speaks first is heard at once.

    Args: as `_Peeking`.
    """

    __slots__ = ("_early",)

    def __init__(
        self,
        runtime: Runtime,
        judge: Judge,
        connection: socket.socket,
        flow: Flow,
        allowed: Callable[[Allowed], None],
    ) -> None:
        super().__init__(runtime, judge, connection, flow, allowed)
        self._early: EarlyUpstream | None = None
        self._decide()

    def _decide(self) -> None:
        flow = self._flow
        decision = self._judge.policy.decide(flow)
        if decision.outcome is Outcome.NEED_MORE and not flow.names_known:
            self._begin()
            self._dial_early()
            return
        if decision.outcome is not Outcome.ALLOW or flow.destination is None:
            self.deny(decision.reason.value, decision.rule_with_place, decision.hint)
            return
        flow.reason = decision.reason.value
        flow.rule = decision.rule_with_place
        if decision.by_name and flow.host is not None:
            verifier = self._judge.verifier
            self._ask(verifier.verify(flow.host, flow.destination, self._acceptable), self._allow)
        else:
            self._allow(flow.destination)

    _names_known = _decide

    def _dial_early(self) -> None:
        address = self._flow.destination
        if address is None:
            return
        nameless = self._judge.policy.judge(address.host, address.port, protocol=Protocol.TCP)
        if nameless.outcome is Outcome.ALLOW:
            self._early = EarlyUpstream(self._runtime, address, self._server_spoke, self._looped)

    def _server_spoke(self) -> None:
        peek = self._peek
        if peek is None or self._data:
            return
        # What the client said meanwhile comes first: a server that greets everybody
        # must not hide for whom the connection is.
        self._read(peek)
        if self._peek is peek and not self._data:
            self._peeked(peek)

    def _looped(self) -> None:
        reason = FlowEnd.PROXY_LOOP_DETECTED
        self.deny(reason.value, end=reason)

    def _upstream(self, address: SocketAddress) -> socket.socket | None:
        early, self._early = self._early, None
        if early is None:
            return None
        if address != self._flow.destination:
            early.drop()
            return None
        return early.take()

    def _drop_upstream(self) -> None:
        if self._early is not None:
            self._early.drop()
            self._early = None


class Routing(_Peeking):
    """One flow that goes to the name that it asks for, at the listener's own port.

    Args:
        resolver: Asked for the name.
        Others: as `_Peeking`.
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
        self._begin()

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
        found = acceptable_answers(self._resolver, host, unspecified, self._acceptable)
        self._ask(found.addCallback(lambda answers: answers[0]), self._resolved)

    def _resolved(self, address: SocketAddress) -> None:
        flow = self._flow
        flow.destination = address
        decision = self._judge.policy.decide(flow)
        flow.reason = decision.reason.value
        flow.rule = decision.rule_with_place
        self._allow(address)
