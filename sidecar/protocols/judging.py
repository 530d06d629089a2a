"""One intercepted connection from its arrival to the verdict: heard where a name matters.

    decide ─ allow ───────────────────────────────┐
       │ └── deny ── hear ── tell the client, end ├─► allowed(addresses, bytes read)
       └──── need more ── hear ── decide ── verify┘

What was read of the client belongs to the relay, which delivers it first. A client that
stays silent is one whose server speaks first: after a moment it is judged as one without
a name, and again if it says one after all (`late`). A denial that no name could change is
only told once the client has spoken, so that it can be told in its language; nothing is
dialled meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.flow import Flow, FlowEnd, HostSource, Protocol
from sidecar.policy import Outcome
from sidecar.protocols.early import EarlyUpstream
from sidecar.protocols.judge import Allowed, Judge
from sidecar.protocols.late import LateWords
from sidecar.protocols.nearly_http import is_nearly_http
from sidecar.protocols.pending import Denial, Pending

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sidecar.addresses import SocketAddress
    from sidecar.names.verifying import Addresses
    from sidecar.policy import Decision
    from sidecar.runtime import Runtime

__all__ = ["Allowed", "Judge", "Judging"]


class Judging(Pending):
    """One intercepted flow until its verdict: its destination is known.

    Where the policy would allow it without a name, its upstream is dialled while the
    client is being listened to, so that a server that speaks first is heard at once.

    Args: as `Pending`.
    """

    __slots__ = ("_early", "_given_back", "_name_matters", "_server_spoke")

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
        # Whether the verdict may hang on what the client says.
        self._name_matters = False
        # Where it was relayed already, for its silence: the server's connection, and
        # whether the client has heard it, so that it can have no other.
        self._given_back: socket.socket | None = None
        self._server_spoke = False
        judge.name(flow)
        self._decide()

    def _heard(self) -> None:
        flow = self._flow
        if (
            flow.protocol is Protocol.TCP
            and flow.host_from is HostSource.DNS
            and is_nearly_http(self._data)
        ):
            # It would be let go for its address's name, whatever it says in Host.
            flow.protocol = Protocol.HTTP
            flow.problem = "http_request_line"
        elif flow.to_proxy is not None and self._asks_for_others(flow.to_proxy):
            # It is for the proxy, whomever that is asked for: its own name, if it has one.
            flow.host = flow.host_from = None
            self._judge.name(flow)
            flow.problem = "proxy_request"
            if self._denial is not None and self._denial.hint:
                self._denial = self._denial._replace(hint=self._way_round())
        super()._heard()

    def _asks_for_others(self, host: str) -> bool:
        """Whether a server is taken for a proxy that leads to somebody else."""
        served, destination = self._judge.served, self._flow.destination
        if self._data.startswith(b"CONNECT "):
            return True
        if served is None or destination is None:
            # Nobody knows whose the address is before it is verified.
            return False
        return host != destination.host and not served.owns(host, destination.host)

    def _decide(self) -> None:
        flow = self._flow
        judge = self._judge
        decision = judge.policy.decide(flow)
        outcome = decision.outcome
        if outcome is Outcome.ALLOW and judge.curious:
            self._allowed_anyway = True
        if outcome is Outcome.NEED_MORE:
            self._name_matters = True
        if not flow.names_known and (self._name_matters or self._allowed_anyway):
            self._listen(self._silence(), judge.patience)
            if self._peek is not None:
                self._dial_early()
            return
        destination = flow.destination
        if outcome is not Outcome.ALLOW or destination is None:
            hint = decision.hint if flow.names_known else self._hint(decision.hint)
            denial = Denial(decision.reason.value, decision.rule_with_place, hint)
            if flow.names_known:
                self._deny(denial)
            else:
                self._deny_unheard(denial)
            return
        flow.reason = decision.reason.value
        flow.rule = decision.rule_with_place
        if decision.by_name and flow.host is not None:
            self._ask(judge.verifier.verify(flow.host, destination, self._acceptable), self._allow)
        else:
            self._allow((destination,))

    _names_known = _decide

    def _hint(self, hint: str) -> str:
        """What would allow a flow that is denied before it is heard: by its name, if it has one."""
        flow = self._flow
        address = flow.destination
        if not hint or flow.host is None or address is None:
            return hint
        return self._judged_silent(address).hint or hint

    def _silence(self) -> float:
        """For how long to wait for the client's words: briefly where DNS has denied it already."""
        judge, address = self._judge, self._flow.destination
        if self._flow.host is None or address is None:
            return judge.silence
        denied = self._judged_silent(address).outcome is Outcome.DENY
        return min(judge.silence, judge.brief) if denied else judge.silence

    def _judged_silent(self, address: SocketAddress) -> Decision:
        """What becomes of the flow if its client never says a name."""
        return self._judge.policy.judge(
            address.host, address.port, host=self._flow.host, protocol=Protocol.TCP
        )

    def _dial_early(self) -> None:
        address = self._flow.destination
        if address is None:
            return
        nameless = self._judge.policy.judge(address.host, address.port, protocol=Protocol.TCP)
        if nameless.outcome is Outcome.ALLOW:
            self._early = EarlyUpstream(self._runtime, address, self._server_speaks, self._looped)

    def _server_speaks(self) -> None:
        peek = self._peek
        if peek is None or self._data:
            return
        # What the client said meanwhile comes first: a server that greets everybody
        # must not hide for whom the connection is.
        self._read(peek)
        if self._peek is peek and not self._data:
            self._peeked()

    def _looped(self) -> None:
        reason = FlowEnd.PROXY_LOOP_DETECTED
        self.deny(reason.value, end=reason)

    def _late_words(self) -> LateWords | None:
        if self._data or not (self._name_matters or self._allowed_anyway):
            return None
        judge = self._judge
        return LateWords(self._runtime, self._flow, judge.patience, self._judge_again, self.failed)

    def _judge_again(self, words: LateWords) -> None:
        """Go on as if the client, allowed for its silence, had said this at once."""
        flow, said = self._flow, words.said
        flow.protocol = said.protocol
        flow.alpn = said.alpn
        flow.ja4 = said.ja4
        flow.ech = said.ech
        flow.problem = said.problem
        flow.to_proxy = said.to_proxy
        if said.host is not None:
            flow.host = said.host
            flow.host_from = said.host_from
        self._data = words.data
        self._given_back = words.upstream
        self._server_spoke = words.server_spoke
        if words.late:
            self._ran_out()
        else:
            self._heard()

    def _go(self, addresses: Addresses) -> None:
        if self._server_spoke and addresses[0] != self._flow.upstream:
            self.deny("server_spoke_first", hint=self._way_round())
        else:
            super()._go(addresses)

    def _upstream(self, address: SocketAddress) -> socket.socket | None:
        if self._given_back is not None:
            if address != self._flow.upstream:
                self._drop_upstream()
                return None
            given_back, self._given_back = self._given_back, None
            return given_back
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
        if self._given_back is not None:
            self._given_back.close()
            self._given_back = None
