"""Whom is a request for, and may it go there?

Text of the client's becomes a name or an address in `sidecar.addresses` only; a name is
resolved here, once, and what is dialled is an answer that the policy has judged.

    Forward         to a proxy: the request's target says whom it is for
    (by_host.py)    to others: Host says it
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from typing import Protocol as Typed

from twisted.internet.defer import Deferred

from sidecar.addresses import SocketAddress
from sidecar.flow import DestinationSource, HostSource, ListenerKind, Protocol
from sidecar.names.verifying import MOST_ADDRESSES, acceptable_answers
from sidecar.policy import Default, Outcome, Reason
from sidecar.protocols.http import replies
from sidecar.protocols.http.places import MOST_PLACES, Place, place_of
from sidecar.wire.http1.targets import TargetForm, parse_target

if TYPE_CHECKING:
    from sidecar.flow import Flow
    from sidecar.names.resolving import INameResolver
    from sidecar.names.verifying import Addresses
    from sidecar.policy import Decision, Policy
    from sidecar.protocols.http.replies import Reply
    from sidecar.protocols.judge import Judge
    from sidecar.wire.http1.messages import RequestHead

__all__ = [
    "ByName",
    "Forward",
    "Refusal",
    "Routing",
    "take",
    "unsupported",
]

# Seconds for which what was decided of a name holds: the resolver's own answers are older.
# A policy that is replaced is felt at once.
_KEPT_SECONDS = 1.0

_SCHEME_BYTES = len(b"http://")
_UNSPECIFIED = "::"
_CONNECT = b"CONNECT"


class Refusal(Exception):
    """A request that goes nowhere.

    Attributes:
        reply: What the client is told.
        rule: The rule that decided, with its place; None if none did.
    """

    def __init__(self, reply: Reply, rule: str | None = None) -> None:
        super().__init__(reply, rule)
        self.reply = reply
        self.rule = rule

    @classmethod
    def of(cls, decision: Decision) -> Refusal:
        """What the policy's denial is to the client."""
        reply = replies.denied(decision.reason.value, decision.hint)
        return cls(reply, decision.rule_with_place)


class Routing(Typed):
    """How requests find their way."""

    @property
    def kind(self) -> ListenerKind:
        """What they are logged as."""

    @property
    def destination(self) -> SocketAddress | None:
        """Where all of them were going; None where each says it."""

    @property
    def found_by(self) -> DestinationSource | None:
        """Who said so."""

    @property
    def unseen(self) -> bool:
        """Whether clients believe that they have dialled their servers themselves."""

    def place(self, head: RequestHead) -> tuple[Place, bytes]:
        """Read whom a request is for.

        Returns:
            That, and its target in origin form, or asterisk form; empty for a tunnel.

        Raises:
            Refusal: It is for nobody here.
            AddressError: It names no host.
            HttpMessageError: Its target is none.
        """

    def note(self, flow: Flow, place: Place) -> None:
        """Take down whom a request names, before anything is decided."""

    def find(self, flow: Flow, place: Place) -> Addresses | Deferred[Addresses]:
        """Decide, and find out what to dial.

        Args:
            flow: Noted; gains destination, reason and rule.
            place: From `place`.

        Returns:
            The addresses, or a Deferred that may fail with `Refusal` or a
            `VerificationError`. Cancelling it gives up.

        Raises:
            Refusal: The policy denies it.
        """


class _Found(NamedTuple):
    """What was decided of a place."""

    policy: Policy
    until: float
    addresses: Addresses
    reason: str
    rule: str | None


class ByName:
    """Goes where a name, or an address, says.

    Args:
        judge: Whose policy is asked; it may be replaced at any time.
        resolver: Asked for the names.
    """

    def __init__(self, judge: Judge, resolver: INameResolver) -> None:
        self._judge = judge
        self._resolver = resolver
        # By what the place is called: a name or address, and a port.
        self._found: dict[bytes, _Found] = {}

    def find(self, flow: Flow, place: Place) -> Addresses | Deferred[Addresses]:
        """As `Routing.find`."""
        flow.names_known = True
        host = place.host
        policy = self._judge.policy
        found = self._found.get(place.field)
        if found is not None and found.policy is policy and found.until >= flow.started_monotonic:
            flow.reason = found.reason
            flow.rule = found.rule
            flow.destination = found.addresses[0]
            return found.addresses
        if host is None:
            assert place.address is not None  # noqa: S101 - the one or the other
            return self._resolved((place.address,), flow, place, policy)
        port = place.authority.port
        # What no address could make allowed isn't even looked up.
        decision = policy.judge_name(host, port)
        if decision.outcome is Outcome.DENY:
            raise Refusal.of(decision)
        answers = acceptable_answers(
            self._resolver,
            host,
            SocketAddress(_UNSPECIFIED, port),
            partial(policy.accepts_address, flow),
        )
        if isinstance(answers, Deferred):
            return answers.addCallback(self._resolved, flow, place, policy)
        return self._resolved(answers, flow, place, policy)

    def _resolved(self, answers: Addresses, flow: Flow, place: Place, policy: Policy) -> Addresses:
        addresses = answers[:MOST_ADDRESSES]
        flow.destination = addresses[0]
        decision = policy.decide(flow)
        take(decision, flow)
        if len(self._found) >= MOST_PLACES:
            self._found.clear()
        until = time.monotonic() + _KEPT_SECONDS
        self._found[place.field] = _Found(policy, until, addresses, flow.reason, flow.rule)
        return addresses


class Forward(ByName):
    """Requests to a proxy: whom they are for is in their targets."""

    kind = ListenerKind.HTTP_PROXY
    destination = None
    found_by = None
    unseen = False

    def __init__(self, judge: Judge, resolver: INameResolver) -> None:
        super().__init__(judge, resolver)
        # By scheme and authority, as clients write them.
        self._places: dict[bytes, Place] = {}

    def place(self, head: RequestHead) -> tuple[Place, bytes]:
        """As `Routing.place`."""
        # A target that goes on where a known authority ends has the same: no blank or
        # fragment is in it (`sidecar.wire.http1.screening`).
        end = head.target.find(b"/", _SCHEME_BYTES)
        known = self._places.get(head.target[:end]) if end > 0 else None
        if known is not None and head.method != _CONNECT:
            return known, head.target[end:]
        target = parse_target(head.method, head.target)
        if target.form is TargetForm.ABSOLUTE:
            if target.scheme != b"http":
                raise Refusal(unsupported(target.scheme))
            place = place_of(target.authority)
            if end > 0 and b"?" not in head.target[:end]:
                if len(self._places) >= MOST_PLACES:
                    self._places.clear()
                self._places[head.target[:end]] = place
            return place, target.origin
        if target.form is TargetForm.AUTHORITY:
            return place_of(target.authority, None), b""
        raise Refusal(replies.NOT_FOR_A_PROXY)

    def note(self, flow: Flow, place: Place) -> None:
        """As `Routing.note`."""
        tunnel = flow.method == _CONNECT
        flow.destination_from = DestinationSource.CONNECT if tunnel else DestinationSource.REQUEST
        if tunnel:
            flow.protocol = Protocol.TCP
        if place.host is None:
            flow.destination = place.address
        else:
            flow.host = place.host
            flow.host_from = HostSource.CONNECT if tunnel else HostSource.HOST

    def open(self, flow: Flow, place: Place) -> Addresses | Deferred[Addresses] | None:
        """As `find`, for a tunnel.

        Returns:
            None where only the name that the client is going to say inside can tell.
        """
        if place.address is None:
            return self.find(flow, place)
        decision = self._judge.policy.decide(flow)
        if decision.outcome is Outcome.NEED_MORE:
            return None
        take(decision, flow)
        # No name inside could change that.
        flow.names_known = True
        return (place.address,)

    def pass_on(self, flow: Flow, place: Place) -> None:
        """Decide by what is asked for alone: the next proxy is going to resolve it.

        Raises:
            Refusal: The policy denies it.
        """
        policy = self._judge.policy
        flow.names_known = True
        if place.host is None:
            take(policy.decide(flow), flow)
            return
        decision = policy.judge_name(place.host, place.authority.port)
        if decision.outcome is not Outcome.NEED_MORE:
            take(decision, flow)
        elif decision.rule is not None:
            flow.reason = Reason.RULE.value
            flow.rule = decision.rule_with_place
        elif policy.default is Default.DENY:
            # Only a rule for its address could allow it, and nobody here knows that.
            raise Refusal(replies.denied(Reason.DEFAULT.value, str(place.authority)))


def take(decision: Decision, flow: Flow) -> None:
    """Take an answer down.

    Raises:
        Refusal: It is a denial.
    """
    if decision.outcome is not Outcome.ALLOW:
        raise Refusal.of(decision)
    flow.reason = decision.reason.value
    flow.rule = decision.rule_with_place


def unsupported(scheme: bytes) -> Reply:
    """What a client is told that asks for a scheme other than http."""
    if scheme == b"https":
        return replies.HTTPS_UNSUPPORTED
    return replies.FTP_UNSUPPORTED if scheme == b"ftp" else replies.SCHEME_UNSUPPORTED
