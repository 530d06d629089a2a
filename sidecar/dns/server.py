"""From a question's bytes to its answer's: judged, asked further, filtered, told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.names import dns

from sidecar.dns.asking import Trouble
from sidecar.dns.filtering import filter_answer
from sidecar.dns.messages import (
    EDE_FILTERED,
    EDE_NETWORK_ERROR,
    EDE_NO_REACHABLE_AUTHORITY,
    MESSAGE_MAX,
    ExtendedError,
    QuestionError,
    Reply,
    edns_of,
    errors_in,
    presentation,
    rcode_of,
    rcode_text,
    read_question,
    type_text,
    write_reply,
)
from sidecar.dns.questions import Local, Refused, decide
from sidecar.flow import Verdict
from sidecar.lookups import Lookup
from sidecar.policy.reach import CurrentReach

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from sidecar.addresses import SocketAddress
    from sidecar.dns.asking import Outcome
    from sidecar.dns.filtering import Filtered
    from sidecar.dns.forwarding import Forwarder
    from sidecar.dns.messages import Message, Question
    from sidecar.dns.questions import Forward
    from sidecar.interfaces import IDNSObserver
    from sidecar.names.served import Served
    from sidecar.policy import Policy

__all__ = ["Answerer", "Asked"]

_SUCCESSES = frozenset({dns.OK, dns.ENAME})


class Asked(msgspec.Struct, frozen=True):
    """How a question came.

    Attributes:
        send: Called at most once, with the answer.
        stream: Whether over TCP, where an answer may be long.
        server: The address that was asked; None if it isn't known.
        source: Who asked.
    """

    send: Callable[[bytes], None]
    stream: bool
    server: str | None
    source: SocketAddress | None


class Answerer:
    """Answers questions.

    Args:
        clock: For how long a question took.
        policy: Tells which one is in force.
        served: Takes note of every address that is given out.
        forwarder: Asks the host's name servers.
        search: Tells the domains that programs append to names.
        observer: Told of every question; None for nobody.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        policy: Callable[[], Policy],
        served: Served,
        forwarder: Forwarder,
        search: Callable[[], Sequence[str]],
        observer: IDNSObserver | None = None,
    ) -> None:
        self._clock = clock
        self.reach = CurrentReach(policy)
        self._served = served
        self._forwarder = forwarder
        self.search = search
        self._observer = observer

    def ask(self, data: bytes, asked: Asked) -> bool:
        """Take a message.

        Args:
            data: What a client sent.
            asked: Where from, and where the answer goes.

        Returns:
            Whether there is an answer, now or later; if not, the message was none that any
            answer fits.
        """
        try:
            question = read_question(data)
        except QuestionError as error:
            if error.reply is None:
                return False
            asked.send(error.reply)
            return True
        _Answering(self, question, asked).start()
        return True

    # What one question needs

    def now(self) -> float:
        """Seconds."""
        return self._clock.seconds()

    def forward(self, answering: _Answering, forward: Forward) -> None:
        """Ask the host's name servers."""
        waiting = self._forwarder.ask(answering.question)
        waiting.addCallback(answering.answered, forward)
        waiting.addErrback(answering.failed)

    def serve(self, forward: Forward, filtered: Filtered) -> None:
        """Take note of what is given out."""
        for host in (forward.short, forward.host):
            if host is not None:
                for address, ttl in filtered.addresses.items():
                    self._served.record(host, address, ttl)

    def tell(self, lookup: Lookup) -> None:
        """Tell the observer."""
        if self._observer is None:
            return
        try:
            self._observer.lookup_ended(lookup)
        except Exception:  # noqa: BLE001 - an observer can't be allowed to stop answers
            self._log.failure("bug in an observer of lookups")


class _Answering:
    """One question that is being answered."""

    _log = Logger()
    __slots__ = ("_answerer", "_asked", "_forward", "_since", "question")

    def __init__(self, answerer: Answerer, question: Question, asked: Asked) -> None:
        self._answerer = answerer
        self.question = question
        self._asked = asked
        self._forward: Forward | None = None
        self._since = answerer.now()

    def start(self) -> None:
        """Judge the question, and answer it or pass it on."""
        try:
            found = decide(self.question, self._answerer.reach(), self._answerer.search)
        except Exception:  # noqa: BLE001 - refuse, which is the safe side
            self._log.failure("bug while a DNS question was being judged; refused")
            self._finish(Reply(dns.ESERVER))
            return
        if isinstance(found, Local):
            self._finish(found.reply)
        elif isinstance(found, Refused):
            self._finish(found.reply, Verdict.DENY, found.reason, found.rule, found.hint)
        else:
            self._forward = found
            self._answerer.forward(self, found)

    def answered(self, answer: Outcome, forward: Forward) -> None:
        """Filter what came back."""
        if isinstance(answer, Trouble):
            unreachable = answer is Trouble.TIMEOUT or answer is Trouble.UNREACHABLE
            code = EDE_NO_REACHABLE_AUTHORITY if unreachable else EDE_NETWORK_ERROR
            error = ExtendedError(code, f"sidecar: {answer.value}")
            self._finish(Reply(dns.ESERVER, error=error), problem=answer.value)
            return
        edns = edns_of(answer)
        rcode = rcode_of(answer, edns)
        if rcode not in _SUCCESSES:
            # What else there is in it is nobody's answer.
            problem = f"a name server answered {rcode_text(rcode)}"
            self._finish(Reply(rcode, options=errors_in(edns)), problem=problem)
            return
        self._pass_on(answer, rcode, errors_in(edns), forward)

    def _pass_on(self, answer: Message, rcode: int, errors: bytes, forward: Forward) -> None:
        # The policy may have been replaced since; the addresses are judged by the new one.
        filtered = filter_answer(answer, self.question, forward.host, self._answerer.reach())
        error = None
        verdict, reason, rule, hint = Verdict.ALLOW, "default", None, ""
        denial = filtered.denial
        if denial is not None:
            reason, rule, hint = denial.reason.value, denial.rule_with_place, denial.hint
            if not filtered.addresses:
                verdict = Verdict.DENY
            shown = ", ".join(list(filtered.withheld)[:4])
            error = ExtendedError(EDE_FILTERED, f"sidecar: withheld {shown}: {reason}")
        self._answerer.serve(forward, filtered)
        wants_bit = self.question.authentic or self.question.dnssec
        reply = Reply(
            rcode,
            tuple(filtered.answers),
            tuple(filtered.authority),
            authentic=bool(answer.authenticData) and wants_bit and filtered.is_whole,
            error=error,
            options=errors,
        )
        self._finish(reply, verdict, reason, rule, hint, filtered)

    def failed(self, failure: Failure) -> None:
        """There was a bug, or the process ends."""
        if failure.check(CancelledError) is None:
            self._log.failure("bug while a DNS answer was being filtered; refused", failure)
            self._finish(Reply(dns.ESERVER))

    def _finish(
        self,
        reply: Reply,
        verdict: Verdict = Verdict.ALLOW,
        reason: str = "default",
        rule: str | None = None,
        hint: str = "",
        filtered: Filtered | None = None,
        *,
        problem: str = "",
    ) -> None:
        question = self.question
        room = MESSAGE_MAX if self._asked.stream else question.room
        try:
            written = write_reply(question, reply, room)
        except ValueError:
            # A name server's answer that no message can hold.
            reply = Reply(dns.ESERVER)
            written = write_reply(question, reply, room)
        self._asked.send(written)
        source = self._asked.source
        self._answerer.tell(
            Lookup(
                presentation(question.name),
                type_text(question.type),
                rcode_text(reply.rcode),
                verdict=verdict,
                reason=reason,
                rule=rule,
                hint=hint,
                addresses=() if filtered is None else tuple(filtered.addresses),
                withheld=() if filtered is None else tuple(filtered.withheld),
                problem=problem,
                forwarded=self._forward is not None,
                made_of=() if self._forward is None else self._forward.made_of,
                chain=() if filtered is None else tuple(map(presentation, filtered.chain)),
                stream=self._asked.stream,
                server=self._asked.server,
                source=source,
                seconds=self._answerer.now() - self._since,
            )
        )
