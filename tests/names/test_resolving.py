from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from support import PATIENCE, wait_for
from turning import Turning, turning
from twisted.internet.defer import CancelledError, Deferred
from zope.interface.verify import verifyObject

import sidecar
from sidecar.errors import (
    AddressError,
    NameNotResolved,
    ResolverBusy,
    ResolveTimeout,
)
from sidecar.flow import FlowEnd
from sidecar.names import resolving
from sidecar.names.resolving import INameResolver, SystemResolver, system_lookup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.task import Clock


NAME = "www.example.org"
ONE = ("198.51.100.1",)


class Lookups:
    """A blocking lookup whose every call waits until the test lets it go on.

    Attributes:
        asked: What was asked for, in order.
        threads: In which threads.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.threads: set[int] = set()
        self._answers: dict[str, SimpleQueue[list[str] | Exception]] = {}

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        self.threads.add(threading.get_ident())
        answer = self._queue(host).get(timeout=PATIENCE)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _queue(self, host: str) -> SimpleQueue[list[str] | Exception]:
        return self._answers.setdefault(host, SimpleQueue())

    def answer(self, host: str, answer: list[str] | Exception) -> None:
        """Let one call go on, now or when it comes."""
        self._queue(host).put(answer)


class Heard:
    """What one who asked has heard."""

    def __init__(self, resolving: Deferred[tuple[str, ...]]) -> None:
        self.all: list[object] = []
        self.resolving = resolving
        resolving.addCallbacks(self.all.append, lambda failure: self.all.append(failure.value))

    @property
    def error(self) -> object:
        """The one failure."""
        (error,) = self.all
        return error


def everybody(heard: list[Heard]) -> bool:
    """Whether each has heard."""
    return all(each.all for each in heard)


@pytest.fixture
def lookups() -> Lookups:
    return Lookups()


@contextmanager
def made(turning: Turning, clock: Clock, **options: Any) -> Iterator[SystemResolver]:
    """A resolver that is closed."""
    resolver = SystemResolver(turning.reactor, clock, **options)
    yield resolver
    resolver.close()


@pytest.fixture
def resolver(turning: Turning, clock: Clock, lookups: Lookups) -> Iterator[SystemResolver]:
    with made(turning, clock, lookup=lookups, threads=2, queue=3, kept_names=4) as resolver:
        yield resolver


class TestAnswers:
    def test_interface(self, resolver: SystemResolver) -> None:
        """It is what others may implement."""
        assert verifyObject(INameResolver, resolver)

    def test_addresses(self, turning: Turning, resolver: SystemResolver, lookups: Lookups) -> None:
        """The addresses come in the lookup's order, each once."""
        lookups.answer(NAME, ["2001:db8::1", "198.51.100.1", "2001:DB8:0::1", "198.51.100.1"])
        expected = ("2001:db8::1", "198.51.100.1")
        assert expected == turning.result(resolver.resolve(NAME))

    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            (["::ffff:10.0.0.1"], ["10.0.0.1"]),
            (["::ffff:10.0.0.1", "10.0.0.1"], ["10.0.0.1"]),
            (["fe80::1%eth0", "198.51.100.1"], ["198.51.100.1"]),
            (["0x7f.1", "127.1", "198.51.100.1", "", "x" * 9999, "1\0"], ["198.51.100.1"]),
            (["0.0.0.0", "::"], ["0.0.0.0", "::"]),
        ],
        ids=str,
    )
    def test_hostile(
        self,
        turning: Turning,
        resolver: SystemResolver,
        lookups: Lookups,
        answers: list[str],
        expected: list[str],
    ) -> None:
        """Mapped addresses are unwrapped; what is no canonical address is left out."""
        lookups.answer(NAME, answers)
        assert tuple(expected) == turning.result(resolver.resolve(NAME))

    def test_thousands(self, turning: Turning, resolver: SystemResolver, lookups: Lookups) -> None:
        """Of an answer with thousands of addresses only the first are taken."""
        lookups.answer(NAME, [f"10.0.{n // 256}.{n % 256}" for n in range(5000)])
        found = turning.result(resolver.resolve(NAME))
        assert tuple(f"10.0.0.{n}" for n in range(256)) == found

    @pytest.mark.parametrize("answers", [[], ["fe80::1%eth0"], ["nonsense"]])
    def test_none(
        self, turning: Turning, resolver: SystemResolver, lookups: Lookups, answers: list[str]
    ) -> None:
        """A name without an address that could be dialled is one that is not resolved."""
        lookups.answer(NAME, answers)
        with pytest.raises(NameNotResolved, match=r"www\.example\.org: the name has no address"):
            turning.result(resolver.resolve(NAME))

    def test_error(self, turning: Turning, resolver: SystemResolver, lookups: Lookups) -> None:
        """The lookup's error says why, and how a flow ends."""
        lookups.answer(NAME, OSError(-2, "Name or service not known"))
        with pytest.raises(NameNotResolved, match="Name or service not known") as caught:
            turning.result(resolver.resolve(NAME))
        assert FlowEnd.DNS_ERROR == caught.value.end

    def test_bug(self, turning: Turning, resolver: SystemResolver, lookups: Lookups) -> None:
        """A lookup that raises anything else is logged; its thread goes on."""
        lookups.answer(NAME, ZeroDivisionError())
        with pytest.raises(NameNotResolved, match="the resolver failed"):
            turning.result(resolver.resolve(NAME))
        assert 1 == len(turning.failures)
        turning.failures.clear()
        lookups.answer("x.example", ["198.51.100.1"])
        assert ONE == turning.result(resolver.resolve("x.example"))


class TestNames:
    @pytest.mark.parametrize("host", ["localhost", "_x.example", "xn--bcher-kva.example", "a" * 63])
    def test_canonical(
        self, turning: Turning, resolver: SystemResolver, lookups: Lookups, host: str
    ) -> None:
        """Canonical names are looked up as they are."""
        lookups.answer(host, ["198.51.100.1"])
        assert ONE == turning.result(resolver.resolve(host))
        assert [host] == lookups.asked

    @pytest.mark.parametrize(
        "host",
        [
            *("", ".", "example.", "Example", "a..b", ".a", "a" * 64, "a." * 127 + "b"),
            *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "a.1", "::1", "[::1]"),
            *(
                "127.0.0.1\0.allowed.example",
                "a b",
                "a\n",
                "a/b",
                "a@b",
                "é.example",
                "\uff11.example",
            ),
            *("-a.example", "%lo", "a,b", "*.example"),
        ],
        ids=ascii,
    )
    def test_refused(self, resolver: SystemResolver, lookups: Lookups, host: str) -> None:
        """Nothing else ever gets to the lookup (CASES H1 to H9)."""
        assert isinstance(Heard(resolver.resolve(host)).error, AddressError)
        assert [] == lookups.asked


class TestAtOnce:
    def test_one_for_all(
        self, turning: Turning, resolver: SystemResolver, lookups: Lookups
    ) -> None:
        """All who ask for a name meanwhile get one lookup's answer."""
        heard = [Heard(resolver.resolve(NAME)) for _ in range(5)]
        lookups.answer(NAME, ["198.51.100.1"])
        turning.until(lambda: heard[0].all)
        assert [[ONE]] * 5 == [each.all for each in heard]
        assert [NAME] == lookups.asked

    def test_one_error_for_all(
        self, turning: Turning, resolver: SystemResolver, lookups: Lookups
    ) -> None:
        """Likewise its error."""
        heard = [Heard(resolver.resolve(NAME)) for _ in range(2)]
        lookups.answer(NAME, OSError("x"))
        turning.until(lambda: heard[0].all)
        assert [NameNotResolved] * 2 == [type(each.error) for each in heard]

    def test_stuck(
        self, turning: Turning, clock: Clock, resolver: SystemResolver, lookups: Lookups
    ) -> None:
        """A name that is never answered times out after 5 s, and holds up no other."""
        stuck = Heard(resolver.resolve("stuck.example"))
        lookups.answer(NAME, ["198.51.100.1"])
        assert ONE == turning.result(resolver.resolve(NAME))
        clock.advance(4.9)
        assert [] == stuck.all
        clock.advance(0.1)
        assert isinstance(stuck.error, ResolveTimeout)
        assert "can't reach stuck.example: no answer within 5 s" == str(stuck.error)
        assert FlowEnd.DNS_TIMEOUT == stuck.error.end
        lookups.answer("stuck.example", [])

    def test_own_deadlines(self, clock: Clock, resolver: SystemResolver, lookups: Lookups) -> None:
        """Each who asks for a stuck name waits for 5 s of their own, and holds no thread more."""
        first = Heard(resolver.resolve("stuck.example"))
        clock.advance(4)
        second = Heard(resolver.resolve("stuck.example"))
        clock.advance(1)
        assert ([ResolveTimeout], []) == ([type(first.error)], second.all)
        third = Heard(resolver.resolve("stuck.example"))
        clock.advance(4)
        assert ([ResolveTimeout], []) == ([type(second.error)], third.all)
        clock.advance(1)
        lookups.answer("stuck.example", [])
        assert 1 == resolver._started

    def test_late(
        self, turning: Turning, clock: Clock, resolver: SystemResolver, lookups: Lookups
    ) -> None:
        """An answer that comes too late for one is there for the next."""
        heard = Heard(resolver.resolve(NAME))
        clock.advance(5)
        assert isinstance(heard.error, ResolveTimeout)
        lookups.answer(NAME, ["198.51.100.1"])
        turning.until(lambda: len(resolver._recent))
        assert [ONE] == Heard(resolver.resolve(NAME)).all

    def test_all_stuck(
        self, turning: Turning, clock: Clock, resolver: SystemResolver, lookups: Lookups
    ) -> None:
        """With every thread stuck others wait, time out without a lookup, and go on after it."""
        stuck = [Heard(resolver.resolve(f"stuck{n}.example")) for n in range(2)]
        waiting = Heard(resolver.resolve(NAME))
        clock.advance(5)
        assert [ResolveTimeout] * 3 == [type(each.error) for each in (*stuck, waiting)]
        again = Heard(resolver.resolve(NAME))
        lookups.answer(NAME, ["198.51.100.1"])
        lookups.answer("stuck1.example", ["198.51.100.2"])
        turning.until(lambda: again.all)
        assert [ONE] == again.all
        # Its thread may not have come to ask yet.
        wait_for(lambda: len(lookups.asked) == 3)
        lookups.answer("stuck0.example", ["198.51.100.2"])
        assert {"stuck0.example", "stuck1.example", NAME} == set(lookups.asked)

    def test_threads(self, turning: Turning, resolver: SystemResolver, lookups: Lookups) -> None:
        """No more threads than there may be; those there are serve the next names."""
        for _ in range(3):
            heard = [Heard(resolver.resolve(f"{n}.example")) for n in range(5)]
            for n in range(5):
                lookups.answer(f"{n}.example", ["198.51.100.1"])
            turning.until(partial(everybody, heard))
            resolver._recent.clear()
        assert (2, 15) == (resolver._started, len(lookups.asked))
        assert len(lookups.threads) <= 2

    def test_full(self, turning: Turning, resolver: SystemResolver, lookups: Lookups) -> None:
        """Beyond so many names that wait the next is refused at once; known ones join in."""
        names = [f"{n}.example" for n in range(5)]
        heard = [Heard(resolver.resolve(name)) for name in names * 2]
        refused = Heard(resolver.resolve(NAME))
        assert isinstance(refused.error, ResolverBusy)
        assert FlowEnd.DNS_ERROR == refused.error.end
        for name in names:
            lookups.answer(name, ["198.51.100.1"])
        turning.until(lambda: all(each.all for each in heard))
        assert [[ONE]] * 10 == [each.all for each in heard]
        assert NAME not in lookups.asked

    def test_given_up(self, turning: Turning, resolver: SystemResolver, lookups: Lookups) -> None:
        """Who gives up makes room; a name that nobody waits for is not looked up."""
        heard = [Heard(resolver.resolve(f"{n}.example")) for n in range(5)]
        heard[4].resolving.cancel()
        assert isinstance(heard[4].error, CancelledError)
        last = Heard(resolver.resolve(NAME))
        for name in ("0.example", "1.example", "2.example", "3.example", NAME):
            lookups.answer(name, ["198.51.100.1"])
        turning.until(lambda: last.all)
        assert "4.example" not in lookups.asked

    def test_no_thread(
        self, monkeypatch: pytest.MonkeyPatch, resolver: SystemResolver, lookups: Lookups
    ) -> None:
        """Where no thread can be started the name is refused, and the next tries again."""

        def refuse(**_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(resolving, "Thread", refuse)
        heard = [Heard(resolver.resolve(name)) for name in (NAME, NAME, "x.example")]
        assert [ResolverBusy] * 3 == [type(each.error) for each in heard]
        assert 0 == resolver._started

    def test_asks_again_when_told(
        self, turning: Turning, resolver: SystemResolver, lookups: Lookups
    ) -> None:
        """Who asks again when answered gets the same answer."""
        again: list[Heard] = []
        lookups.answer(NAME, ["198.51.100.1"])
        first = resolver.resolve(NAME)
        first.addCallback(lambda _: again.append(Heard(resolver.resolve(NAME))))
        turning.until(lambda: again)
        assert [ONE] == again[0].all


class TestKept:
    @pytest.mark.parametrize("answer", [["198.51.100.1"], OSError("x")], ids=["good", "bad"])
    def test_age(
        self,
        turning: Turning,
        clock: Clock,
        resolver: SystemResolver,
        lookups: Lookups,
        answer: list[str] | Exception,
    ) -> None:
        """An answer is given again for 5 s, then the name is looked up anew."""
        for wait, asked in ((0, 1), (4.9, 1), (0.1, 2)):
            clock.advance(wait)
            lookups.answer(NAME, answer)
            heard = Heard(resolver.resolve(NAME))
            turning.until(partial(everybody, [heard]))
            assert asked == len(lookups.asked)

    def test_own_errors(self, turning: Turning, resolver: SystemResolver, lookups: Lookups) -> None:
        """Each who asks gets an error of their own."""
        lookups.answer(NAME, OSError("x"))
        heard = [Heard(resolver.resolve(NAME))]
        turning.until(lambda: heard[0].all)
        heard += [Heard(resolver.resolve(NAME)) for _ in range(2)]
        assert 3 == len({id(each.error) for each in heard})
        assert 1 == len({str(each.error) for each in heard})

    def test_number(self, turning: Turning, resolver: SystemResolver, lookups: Lookups) -> None:
        """Only so many answers are kept."""
        for n in range(6):
            lookups.answer(f"{n}.example", ["198.51.100.1"])
            turning.result(resolver.resolve(f"{n}.example"))
        assert 4 == len(resolver._recent)

    def test_rebinding(
        self, turning: Turning, clock: Clock, resolver: SystemResolver, lookups: Lookups
    ) -> None:
        """A name that changes its mind is believed again only after a while (CASES H12)."""
        lookups.answer(NAME, ["198.51.100.1"])
        lookups.answer(NAME, ["10.0.0.1"])
        assert ONE == turning.result(resolver.resolve(NAME))
        assert ONE == turning.result(resolver.resolve(NAME))
        clock.advance(5)
        assert ("10.0.0.1",) == turning.result(resolver.resolve(NAME))


class TestClosing:
    def test_close(self, resolver: SystemResolver, lookups: Lookups) -> None:
        """Who waits is told, and nobody is served any more; late answers are nobody's."""
        heard = [Heard(resolver.resolve(f"{n}.example")) for n in range(3)]
        resolver.close()
        assert [NameNotResolved] * 3 == [type(each.error) for each in heard]
        assert isinstance(Heard(resolver.resolve(NAME)).error, NameNotResolved)
        for n in range(2):
            lookups.answer(f"{n}.example", ["198.51.100.1"])

    def test_stuck_at_exit(self) -> None:
        """A lookup that never returns does not keep the process from ending."""
        script = """
import threading
from twisted.internet import reactor
from sidecar.names.resolving import SystemResolver
begun = threading.Event()
def lookup(host):
    begun.set()
    threading.Event().wait()
resolver = SystemResolver(reactor, reactor, lookup=lookup)
resolver.resolve("x.example").addErrback(lambda failure: print(failure.value.problem))
def stop():
    begun.wait()
    resolver.close()
    reactor.stop()
reactor.callWhenRunning(stop)
reactor.run()
"""
        assert "sidecar is being stopped\n" == run([sys.executable, "-c", script])


class TestSystem:
    def test_localhost(self, turning: Turning, clock: Clock) -> None:
        """The system knows localhost."""
        with made(turning, clock) as resolver:
            found = turning.result(resolver.resolve("localhost"))
        assert isinstance(found, tuple)
        assert "127.0.0.1" in found

    def test_unknown(self) -> None:
        """What it doesn't know is an OSError."""
        with pytest.raises(OSError, match=r"\w"):
            system_lookup("no-such-name.invalid")

    def test_reactor_threads(self) -> None:
        """The reactor's own threads are not used, though there are none to be had."""
        with turning() as own:
            before = set(threading.enumerate())
            resolver = SystemResolver(own.reactor, own.reactor)
            own.result(resolver.resolve("localhost"))
            new = {thread.name for thread in set(threading.enumerate()) - before}
            resolver.close()
        assert {"sidecar-resolver"} == new

    @pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
    def test_own_files(self, tmp_path: Path) -> None:
        """/etc/hosts, /etc/resolv.conf and DNS are asked as nsswitch.conf says."""
        files = {
            "hosts": "127.0.0.1 localhost\n192.0.2.1 hosts.example\n",
            "resolv.conf": "nameserver 127.0.0.1\noptions timeout:30 attempts:1\n",
            "nsswitch.conf": "hosts: files dns\n",
        }
        steps = ["set -e"]
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="ascii")
            steps.append(f"mount --bind {tmp_path / name} /etc/{name}")
        program = str(Path(__file__).parent / "nameserver.py")
        script = "\n".join([*steps, f"exec {sys.executable} {program}"])
        namespaces = ("unshare", "--mount", "--net", "--propagation", "private")
        found = json.loads(run([*namespaces, "sh", "-c", script]))
        assert {
            "hosts.example": ["192.0.2.1"],
            "both.example": ["198.51.100.1", "2001:db8::1"],
            # The end of a chain is what counts (CASES H13).
            "chain.example": ["10.0.0.1"],
            "mapped.example": ["10.0.0.2"],
            "rebinding.example": ["198.51.100.2"],
            "rebinding.example, later": ["10.0.0.3"],
            "none.example": "NameNotResolved",
            "missing.example": "NameNotResolved",
            "refused.example": "NameNotResolved",
        } == found


def run(command: list[str]) -> str:
    """What a program prints; nothing may go to its standard error."""
    checkout = str(Path(sidecar.__file__).parent.parent)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": checkout},
    )
    assert ("", 0) == (done.stderr, done.returncode), done
    return done.stdout
