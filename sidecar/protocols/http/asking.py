"""May a request go, and where to? What is asked before anything is dialled.

    is it us, again? may this user? whom is it for? may that be, and which addresses has
    it? does anybody object?

What needs no waiting is answered without: nothing here is deferred that is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from sidecar.errors import AddressError, AddressRefused, SidecarError
from sidecar.flow import Protocol
from sidecar.policy import Outcome
from sidecar.protocols.http import replies
from sidecar.protocols.http.access import Access
from sidecar.protocols.http.forwarding import COUNTED, hops_left
from sidecar.protocols.http.routing import Forward, Refusal
from sidecar.protocols.steps import objection
from sidecar.wire.http1.messages import HttpMessageError

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from sidecar.names.verifying import Addresses
    from sidecar.protocols.http.downstream import Downstream
    from sidecar.protocols.http.places import Place
    from sidecar.protocols.http.replies import Reply
    from sidecar.upstream_proxy import UpstreamProxy
    from sidecar.wire.http1.messages import RequestHead

__all__ = ["Asking"]

CONNECT = b"CONNECT"
_REFUSED = {
    Access.REFUSED: replies.AUTHENTICATION_REQUIRED,
    Access.UNAVAILABLE: replies.AUTHENTICATION_UNAVAILABLE,
    Access.BUSY: replies.AUTHENTICATION_BUSY,
}


class Asking:
    """A request until it is decided where it goes.

    Args:
        downstream: The client's connection.
        head: The request's.

    Attributes:
        flow: What is known of it.
        addresses: What may be dialled; empty until that is known.
        proxy: The proxy that is dialled instead; None for none.
    """

    _log = Logger()
    __slots__ = (
        "_asking",
        "_downstream",
        "_shared",
        "addresses",
        "flow",
        "head",
        "place",
        "proxy",
        "target",
    )

    place: Place
    target: bytes

    def __init__(self, downstream: Downstream, head: RequestHead) -> None:
        self._downstream = downstream
        self._shared = downstream.shared
        self.head = head
        self.flow = downstream.flow()
        self.flow.method = head.method
        self.addresses: Addresses = ()
        self.proxy: UpstreamProxy | None = None
        self._asking: Deferred[None] | None = None

    # What comes of it

    def _allowed(self) -> None:
        """Go on: `addresses` or `proxy` may be dialled."""
        raise NotImplementedError

    def _name_needed(self) -> None:
        """Go on: a tunnel that may be opened, but not used without a name."""
        raise NotImplementedError

    def _no_further(self) -> None:
        """Go on: the request is for us."""
        raise NotImplementedError

    def fail(self, reply: Reply, rule: str | None = None, challenge: bytes | None = None) -> None:
        """Answer that it goes nowhere."""
        raise NotImplementedError

    # The questions

    def _identify(self) -> bool:
        """Whom is it for?

        Returns:
            Whether it is for anybody; if not, it is answered.
        """
        routing = self._downstream.routing
        try:
            self.place, self.target = routing.place(self.head)
        except (Refusal, AddressError, HttpMessageError) as error:
            self._refuse(error)
            return False
        routing.note(self.flow, self.place)
        if self.target:
            self.flow.target = self.target
        self._shared.opened(self.flow)
        return True

    def _ask(self) -> None:
        """Ask the other questions."""
        head = self.head
        if self._shared.pseudonym.is_in(head):
            self.fail(replies.LOOP)
            return
        authenticator = self._shared.authenticator
        if authenticator is None:
            self._route()
            return
        access = authenticator.authenticate(head.fields)
        if isinstance(access, Deferred):
            self._wait(access.addCallback(self._authenticated))
        else:
            self._authenticated(access)

    def _authenticated(self, access: Access) -> None:
        self._asking = None
        if access is Access.GRANTED:
            self._route()
            return
        authenticator = self._shared.authenticator
        challenge = None
        if access is Access.REFUSED and authenticator is not None:
            challenge = authenticator.challenge
        self.fail(_REFUSED[access], challenge=challenge)

    def _route(self) -> None:
        try:
            if self.head.method == CONNECT:
                self._open_tunnel()
                return
            if self.head.method in COUNTED and hops_left(self.head) == 0:
                self._no_further()
                return
            if self._shared.upstream_proxy is not None and self._passed_on():
                return
            found = self._downstream.routing.find(self.flow, self.place)
        except Refusal as error:
            self._refuse(error)
            return
        if isinstance(found, Deferred):
            self._wait(found.addCallback(self._found))
        else:
            self._found(found)

    def _passed_on(self) -> bool:
        """Whether the next proxy is to find the way."""
        place = self.place
        routing, proxy = self._downstream.routing, self._shared.upstream_proxy
        if proxy is None or not isinstance(routing, Forward) or not proxy.is_for(place.authority):
            return False
        routing.pass_on(self.flow, place)
        self.proxy = proxy
        self._found(())
        return True

    def _open_tunnel(self) -> None:
        routing, flow = self._downstream.routing, self.flow
        if not isinstance(routing, Forward):
            raise Refusal(replies.NOT_FOR_A_PROXY)
        if self._passed_on():
            return
        found = routing.open(flow, self.place)
        if isinstance(found, Deferred):
            self._wait(found.addCallback(self._found))
            return
        if found is not None:
            self._found(found)
            return
        address = flow.destination
        assert address is not None  # noqa: S101 - only an address's name isn't known
        nameless = self._shared.judge.policy.judge(
            address.host, address.port, protocol=Protocol.TCP
        )
        if nameless.outcome is Outcome.ALLOW:
            # Decisions steps are asked when the name is known.
            self.addresses = (address,)
            self._allowed()
        else:
            self._name_needed()

    def _found(self, addresses: Addresses) -> None:
        """The policy allows it; has anybody else an objection?"""
        self._asking = None
        self.addresses = addresses
        judge = self._shared.judge
        if not judge.steps:
            self._allowed()
            return
        asked = objection(self._shared.runtime.reactor, judge.steps, self.flow, judge.deadline)
        self._wait(Deferred.fromCoroutine(asked).addCallback(self._objected))

    def _objected(self, reason: str | None) -> None:
        self._asking = None
        if reason is None:
            self._allowed()
        else:
            self.fail(replies.denied(reason))

    # Waiting

    def _wait(self, asking: Deferred[Any]) -> None:
        """Wait; whatever goes wrong is a refusal."""
        self._asking = asking
        asking.addErrback(self._refused)

    def _refused(self, failure: Failure) -> None:
        self._asking = None
        error = failure.value
        if failure.check(CancelledError) is not None or error is None:
            return
        if not isinstance(error, (Refusal, SidecarError)):
            self._log.failure("bug while a request was being judged; refused", failure)
        self._refuse(error)

    def _refuse(self, error: BaseException) -> None:
        if isinstance(error, Refusal):
            self.fail(error.reply, error.rule)
        elif isinstance(error, HttpMessageError):
            self.fail(replies.malformed_request(error))
        elif isinstance(error, AddressRefused):
            self.fail(replies.denied(error.reason, self._hint()), self.flow.rule)
        else:
            self.fail(replies.reply_to(error), self.flow.rule)

    def _hint(self) -> str:
        """Which rule would allow an address of the name; empty for none."""
        flow = self.flow
        known = None if flow.host is None else self._shared.resolver.recent(flow.host)
        if not known:
            return ""
        decision = self._shared.judge.policy.judge(
            known[0], self.place.authority.port, host=flow.host
        )
        return decision.hint

    def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
