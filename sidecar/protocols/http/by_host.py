"""Whom is a request for that was not sent to a proxy? Host says it.

Named           to a listener that goes by names: the port is the listener's
Intercepted     on its way elsewhere: Host must be allowed there, and verified
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NoReturn

from sidecar.addresses import Authority, SocketAddress
from sidecar.flow import HostSource, ListenerKind
from sidecar.policy import Reason
from sidecar.protocols.http import replies
from sidecar.protocols.http.places import Place, place_of
from sidecar.protocols.http.routing import ByName, Refusal, take, unsupported
from sidecar.wire.http1.messages import HttpMessageError, HttpMessageReason
from sidecar.wire.http1.targets import TargetForm, parse_target

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from sidecar.flow import DestinationSource, Flow
    from sidecar.names.resolving import INameResolver
    from sidecar.names.verifying import Addresses
    from sidecar.protocols.judge import Judge
    from sidecar.wire.http1.messages import RequestHead

__all__ = ["Intercepted", "Named"]


class _ByHost:
    """Requests as origin servers get them: whom they are for is in Host.

    Args:
        kind: What they are logged as.
        port: Where they go, whatever Host says.
    """

    destination: SocketAddress | None = None
    found_by: DestinationSource | None = None

    def __init__(self, kind: ListenerKind, port: int) -> None:
        self.kind = kind
        self._port = port

    def place(self, head: RequestHead) -> tuple[Place, bytes]:
        """As `Routing.place`."""
        target = parse_target(head.method, head.target)
        if target.form is TargetForm.AUTHORITY:
            self._refuse_proxying()
        named = head.host
        if target.form is TargetForm.ABSOLUTE:
            # RFC 9112 §3.2.2: it wins, and is what servers look at.
            if target.scheme != b"http":
                raise Refusal(unsupported(target.scheme))
            named = target.authority
            self._check_absolute(place_of(named))
        if named is None:
            return self._unnamed(), target.origin
        # The field keeps the port that it has; what is dialled is ours to say.
        place = place_of(named)
        host, port = place.authority.host, self._port
        address = None if place.address is None else SocketAddress(place.address.host, port)
        return Place(place.host, address, Authority(host, port), place.field), target.origin

    def _refuse_proxying(self) -> NoReturn:
        """Refuse CONNECT, and what else only a proxy would have: it would not be judged."""
        raise HttpMessageError(HttpMessageReason.TARGET)

    def _check_absolute(self, place: Place) -> None:
        """See whether whom a URL names may be asked for here.

        Raises:
            Refusal: Only a proxy would have it.
        """

    def _unnamed(self) -> Place:
        """Whom a request of HTTP/1.0 is for that has no Host.

        Raises:
            Refusal: Nobody knows.
        """
        raise Refusal(replies.denied(Reason.NO_NAME.value))

    def note(self, flow: Flow, place: Place) -> None:
        """As `Routing.note`."""
        if place.host is not None:
            flow.host = place.host
            flow.host_from = HostSource.HOST


class Named(_ByHost):
    """Requests that go to the name in Host, at the listener's port.

    Args:
        judge, resolver: As `Forward`.
        port: The listener's.
    """

    unseen = False

    def __init__(self, judge: Judge, resolver: INameResolver, port: int) -> None:
        super().__init__(ListenerKind.SNI_PROXY, port)
        self._names = ByName(judge, resolver)

    def find(self, flow: Flow, place: Place) -> Addresses | Deferred[Addresses]:
        """As `Routing.find`."""
        if place.host is None:
            raise Refusal(replies.denied(Reason.NO_NAME.value))
        return self._names.find(flow, place)


class Intercepted(_ByHost):
    """Requests that were going somewhere: Host must be allowed there, and verified.

    Args:
        judge: As `Forward`; its verifier is asked as well.
        kind: What they are logged as.
        destination: Where they were going.
        found_by: Who said so.
    """

    unseen = True

    def __init__(
        self,
        judge: Judge,
        kind: ListenerKind,
        destination: SocketAddress,
        found_by: DestinationSource | None,
    ) -> None:
        super().__init__(kind, destination.port)
        self._judge = judge
        self.destination: SocketAddress = destination
        self.found_by = found_by

    def _refuse_proxying(self) -> NoReturn:
        address = self.destination
        hint = self._judge.policy.rule_to_pass_unread(address.host, address.port)
        raise Refusal(replies.denied("proxy_request", hint))

    def _check_absolute(self, place: Place) -> None:
        served, host = self._judge.served, self.destination.host
        asked = str(place.authority.host)
        if served is not None and asked != host and not served.owns(asked, host):
            self._refuse_proxying()

    def _unnamed(self) -> Place:
        # Judged as a client is that gives no name. Its server sees the Host that HTTP/1.1
        # wants to see, and can't take it for another's.
        return place_of(str(self.destination).encode("ascii"))

    def note(self, flow: Flow, place: Place) -> None:
        """As `Routing.note`."""
        super().note(flow, place)
        if place.address is None or place.address.host == self.destination.host:
            self._judge.name(flow)

    def find(
        self,
        flow: Flow,
        place: Place,  # noqa: ARG002 - noted
    ) -> Addresses | Deferred[Addresses]:
        """As `Routing.find`."""
        destination, judge = self.destination, self._judge
        flow.names_known = True
        policy = judge.policy
        decision = policy.decide(flow)
        take(decision, flow)
        # That of the place, or that by which DNS knows the address.
        if not decision.by_name or flow.host is None:
            return (destination,)
        acceptable = partial(policy.accepts_address, flow)
        found: Addresses | Deferred[Addresses] = judge.verifier.verify(
            flow.host, destination, acceptable
        )
        return found
