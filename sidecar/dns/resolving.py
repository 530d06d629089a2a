"""Which addresses has a name? Found as a program finds those of `sidecar.dns.server`.

That is the C library's way, but for the C library: getaddrinfo(3) runs the modules that
nsswitch.conf names, and loads them from wherever its loader looks, whenever it is asked.
Here the lines of hosts(5) are those that were read before, and the rest is asked of the host's
name servers; only what the policy lets be asked.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, NamedTuple, cast

from twisted.internet.defer import DeferredList, ensureDeferred, fail, succeed
from twisted.names import dns
from zope.interface import implementer

from sidecar.dns.asking import Trouble
from sidecar.dns.chains import addresses_in
from sidecar.dns.messages import Question, edns_of, rcode_of, rcode_text
from sidecar.dns.questions import Local, Refused, decide
from sidecar.errors import AddressError, DialError, NameNotResolved, ResolverBusy, ResolveTimeout
from sidecar.names.resolving import INameResolver, is_canonical
from sidecar.names.sharing import Recent
from sidecar.policy.reach import CurrentReach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from sidecar.dns.asking import Outcome
    from sidecar.dns.forwarding import Forwarder
    from sidecar.dns.resolvconf import NameServers
    from sidecar.policy import Policy

    Hosts = tuple[str, ...]

__all__ = ["DNSResolver"]

# Seconds for one name, whatever its search list: half a second more than for one question.
_DEADLINE = 5.0
# Seconds. A browser's dozen connections to one name come within a second or two; names that
# move (a failover) have TTLs of no less than this.
_KEPT_SECONDS = 5.0
# Names, some 500 bytes each and at most 30 KB. Who asks for more drives out others' answers.
_KEPT_NAMES = 1024
# Addresses of one name; each would be compared for each connection.
_ANSWERS = 256
_NO_ADDRESS = "the name has no address"


class _Answer(NamedTuple):
    """What was answered for one family.

    Attributes:
        addresses: Canonical.
        problem: Why there are none, in words; empty if the name has none.
        trouble: Why there is no answer.
    """

    addresses: tuple[str, ...] = ()
    problem: str = ""
    trouble: Trouble | None = None


@implementer(INameResolver)
class DNSResolver:
    """Asks the host's name servers, both families at once.

    All methods belong to the reactor's thread. How many wait is bounded by the forwarder,
    whose end is also the end of what waits here.

    Args:
        clock: For deadlines and ages; usually the reactor.
        forwarder: Asks.
        lists: Tells what is appended to which names: resolv.conf's search list.
        policy: Tells which policy is in force.
        hosts: Names and addresses that are known without asking, canonical.
        deadline: Seconds that anybody waits for an answer.
        kept_seconds: Seconds for which an answer is given again.
        kept_names: How many answers are kept.
    """

    def __init__(
        self,
        clock: IReactorTime,
        forwarder: Forwarder,
        lists: NameServers,
        policy: Callable[[], Policy],
        hosts: Iterable[tuple[str, str]] = (),
        *,
        deadline: float = _DEADLINE,
        kept_seconds: float = _KEPT_SECONDS,
        kept_names: int = _KEPT_NAMES,
    ) -> None:
        self._clock = clock
        self._forwarder = forwarder
        self._lists = lists
        self._reach = CurrentReach(policy)
        self._deadline = deadline
        self._hosts: dict[str, Hosts] = {}
        for name, address in hosts:
            known = self._hosts.get(name, ())
            if address not in known:
                self._hosts[name] = (*known, address)
        self._recent: Recent[str, Hosts | NameNotResolved] = Recent(
            clock, seconds=kept_seconds, size=kept_names
        )

    def recent(self, host: str) -> Hosts | None:
        """As `INameResolver.recent`."""
        known = self._known(host)
        return known if isinstance(known, tuple) else None

    def resolve(self, host: str) -> Deferred[Hosts]:
        """Find a name's addresses, as `INameResolver.resolve`.

        Fails with `ResolverBusy` where too many questions wait.
        """
        known = self._known(host)
        if known is not None:
            # Each failure gets an error of its own: tracebacks are added to it.
            return succeed(known) if isinstance(known, tuple) else fail(copy(known))
        if not is_canonical(host):
            return fail(AddressError(host, "not a canonical host name"))
        timeout = self._deadline

        def too_late(_: object, __: float) -> Hosts:
            raise ResolveTimeout(host, f"no answer within {timeout:g} s")

        return ensureDeferred(self._find(host)).addTimeout(timeout, self._clock, too_late)

    def _known(self, host: str) -> Hosts | NameNotResolved | None:
        return self._hosts.get(host) or self._recent.get(host)

    async def _find(self, host: str) -> Hosts:
        error = NameNotResolved(host, _NO_ADDRESS)
        for name in self._meant(host):
            addresses, problem = await self._ask(host, name)
            if addresses:
                self._recent.keep(host, addresses)
                return addresses
            if problem:
                error = NameNotResolved(host, problem)
        self._recent.keep(host, error)
        raise copy(error)

    def _meant(self, host: str) -> list[str]:
        """The names that a program asks for, in its order; the first that there is, is meant."""
        if host.count(".") >= self._lists.dots():
            return [host]
        longer = [f"{host}.{domain}" for domain in self._lists.search()]
        return [*filter(is_canonical, longer), host]

    async def _ask(self, host: str, name: str) -> tuple[Hosts, str]:
        """Ask for the addresses of one of the names that may be meant.

        Returns:
            Them, and why there are none, in words; none of these where that is how it is.

        Raises:
            DialError: Nobody could be asked, or has answered.
        """
        questions = [Question(0, name.encode("ascii"), kind) for kind in (dns.A, dns.AAAA)]
        # Has their failures among the results: that they were cancelled, if nothing else.
        results = await DeferredList([self._answer(each) for each in questions], consumeErrors=True)
        found: dict[str, None] = {}
        trouble, problem = None, ""
        for succeeded, result in results:
            if not succeeded:
                cast("Failure", result).raiseException()
            found.update(dict.fromkeys(result.addresses))
            trouble = result.trouble or trouble
            problem = result.problem or problem
        if trouble is not None and not found:
            raise _error(host, trouble)
        return tuple(found)[:_ANSWERS], problem

    def _answer(self, question: Question) -> Deferred[_Answer]:
        judged = decide(question, self._reach(), self._lists.search)
        if isinstance(judged, Refused):
            return succeed(_Answer(problem="the policy doesn't let it be asked for"))
        if isinstance(judged, Local):
            return succeed(_Answer(addresses_in(judged.reply.answers, question)))
        return self._forwarder.ask(question).addCallback(_read, question)


def _read(outcome: Outcome, question: Question) -> _Answer:
    if isinstance(outcome, Trouble):
        return _Answer(trouble=outcome)
    rcode = rcode_of(outcome, edns_of(outcome))
    if rcode == dns.OK:
        return _Answer(addresses_in(outcome.answers, question))
    if rcode == dns.ENAME:
        return _Answer()
    return _Answer(problem=f"a name server answered {rcode_text(rcode)}")


def _error(host: str, trouble: Trouble) -> DialError:
    if trouble is Trouble.TIMEOUT:
        return ResolveTimeout(host, trouble.value)
    if trouble is Trouble.BUSY:
        return ResolverBusy(host, trouble.value)
    return NameNotResolved(host, trouble.value)
