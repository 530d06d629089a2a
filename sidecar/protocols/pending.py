"""One flow until its verdict, whichever way that is found: allowed, or denied and told so."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from sidecar.errors import VerificationError
from sidecar.flow import FlowEnd, Verdict
from sidecar.protocols.denials import refuse
from sidecar.protocols.hearing import Hearing
from sidecar.protocols.judge import Allowed, Judge
from sidecar.protocols.steps import objection
from sidecar.relay.resets import reset

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from sidecar.addresses import SocketAddress
    from sidecar.flow import Flow
    from sidecar.names.verifying import Addresses
    from sidecar.protocols.late import LateWords
    from sidecar.runtime import Runtime

__all__ = ["Denial", "Pending"]

# What honest clients say, too, and no name can be read in.
_UNREADABLE = frozenset({"http_version", "proxy_request"})


class Denial(NamedTuple):
    """What a client is to be told.

    Attributes:
        reason: A reason code.
        rule: The rule that decided, with its place; None if none did.
        hint: The text of a rule that would allow it; empty if none would.
        end: How the flow ends.
    """

    reason: str
    rule: str | None = None
    hint: str = ""
    end: FlowEnd = FlowEnd.DENIED


class Pending(Hearing):
    """One flow until its verdict.

    Args:
        runtime: Shared by all.
        judge: What the flow is judged by.
        connection: The client's; ours until `allowed` is called.
        flow: Ended here if it is refused.
        allowed: Called at most once.
    """

    _log = Logger()
    __slots__ = ("_allowed", "_allowed_anyway", "_asking", "_denial", "_judge")

    def __init__(
        self,
        runtime: Runtime,
        judge: Judge,
        connection: socket.socket,
        flow: Flow,
        allowed: Callable[[Allowed], None],
    ) -> None:
        super().__init__(runtime, connection, flow)
        self._judge = judge
        self._allowed = allowed
        self._asking: Deferred[None] | None = None
        # What was decided before the client was heard.
        self._denial: Denial | None = None
        # Whether the client is only listened to for others to know its name.
        self._allowed_anyway = False

    # Where the two kinds differ

    def _names_known(self) -> None:
        """Go on: the flow has all the names that it will have."""
        raise NotImplementedError

    def _upstream(self, address: SocketAddress) -> socket.socket | None:  # noqa: ARG002
        """A connection to the address that has been made already."""
        return None

    def _drop_upstream(self) -> None:
        """Nothing will be relayed."""

    def _late_words(self) -> LateWords | None:
        """Who hears what the client says first, once it is being relayed; None for nobody."""
        return None

    # What came of hearing

    def _heard(self) -> None:
        if self._denial is not None:
            self._deny(self._denial)
            return
        problem = self._flow.problem
        if problem is not None and not self._allowed_anyway:
            self.deny(problem, hint=self._way_round() if problem in _UNREADABLE else "")
            return
        try:
            self._names_known()
        except Exception:  # noqa: BLE001 - a timer or the upstream may have called us
            self._log.failure("bug while a flow was being judged; denied")
            self.failed()

    def _way_round(self) -> str:
        """What would allow the flow, whatever its client says."""
        destination = self._flow.destination
        if destination is None:
            return ""
        return self._judge.policy.rule_to_pass_unread(destination.host, destination.port)

    def _ran_out(self) -> None:
        if self._allowed_anyway:
            self._flow.problem = "peek_timeout"
            self._peeked()
            return
        self._deny(self._denial or Denial("peek_timeout"))

    def _gone(self, end: FlowEnd) -> None:
        self._let_go()
        self._peek = None
        self._drop_upstream()
        flow = self._flow
        flow.verdict = Verdict.DENY
        if self._denial is None:
            # Nobody has allowed it.
            flow.reason = "not_judged"
            flow.rule = None
            flow.hint = ""
        else:
            end = self._denial.end
        if self._asking is not None:
            self._asking.cancel()
        reset(self._connection)
        flow.finish(end)

    def failed(self) -> None:
        """A bug: refuse, which is the safe side."""
        self._deny(Denial("internal_error"))

    # The verdict

    def _ask(
        self,
        answer: Addresses | Deferred[Addresses],
        answered: Callable[[Addresses], None],
    ) -> None:
        """Take a name's addresses; where they take a while, learn if the client goes."""
        if not isinstance(answer, Deferred):
            answered(answer)
            return
        if not answer.called:
            self._watch(0)
        self._asking = answer.addCallback(answered).addErrback(self._refused)

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
            self.failed()

    def _allow(self, addresses: Addresses) -> None:
        """The policy allows it; has anybody else an objection?"""
        judge = self._judge
        if not judge.steps:
            self._go(addresses)
            return
        self._watch(0)
        asked = objection(self._runtime.reactor, judge.steps, self._flow, judge.deadline)
        self._asking = (
            Deferred.fromCoroutine(asked)
            .addCallback(self._objected, addresses)
            .addErrback(self._refused)
        )

    def _objected(self, reason: str | None, addresses: Addresses) -> None:
        if reason is None:
            self._go(addresses)
        else:
            self.deny(reason)

    def _go(self, addresses: Addresses) -> None:
        self._let_go()
        upstream = self._upstream(addresses[0])
        words = self._late_words()
        self._allowed(Allowed(self._connection, self._flow, addresses, self._data, upstream, words))

    def deny(
        self, reason: str, rule: str | None = None, hint: str = "", end: FlowEnd = FlowEnd.DENIED
    ) -> None:
        """Refuse the flow, tell the client, and end."""
        self._deny(Denial(reason, rule, hint, end))

    def _deny_unheard(self, denial: Denial) -> None:
        """Refuse the flow, whatever its client says; in its own language, if it speaks soon."""
        self._denial = denial
        flow = self._flow
        flow.verdict = Verdict.DENY
        flow.reason = denial.reason
        flow.rule = denial.rule
        flow.hint = denial.hint
        judge = self._judge
        self._listen(min(judge.silence, judge.brief), judge.patience)

    def _deny(self, denial: Denial) -> None:
        self._let_go()
        self._peek = None
        self._drop_upstream()
        flow = self._flow
        flow.verdict = Verdict.DENY
        flow.reason = denial.reason
        flow.rule = denial.rule
        flow.hint = denial.hint
        advice = f"; to allow it: {denial.hint}" if denial.hint else ""
        refuse(
            self._connection,
            flow.protocol,
            f"sidecar: denied: {denial.reason}{advice}",
            partial(self._judge.lingerers.linger, self._runtime),
        )
        flow.finish(denial.end)
