from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from relay.transcripts import Peer, tcp_pair
from support import arrived
from turning import Turning, turning
from twisted.internet.defer import Deferred
from wire.hello_maker import hello, host_name, name_list, server_name
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.errors import CertificateMismatch, NameNotResolved, VerificationImpossible
from sidecar.flow import DestinationSource, Flow, FlowEnd, ListenerKind, Protocol, Verdict
from sidecar.interfaces import IFlowObserver
from sidecar.names.served import Served
from sidecar.names.verifying import Addresses, IVerifier
from sidecar.policy import Default, Policy, parse_rule
from sidecar.protocols.judging import Allowed, Judge, Judging
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "allowed.example"
HELLO = hello(server_name(NAME.encode()))
DENIED = bytes((21, 3, 3, 0, 2, 2, 49))
# Public, and nothing dials it here.
DESTINATION = SocketAddress("9.9.9.1", 443)
OTHER = SocketAddress("9.9.9.2", 443)


@implementer(IFlowObserver)
class Observer:
    def __init__(self) -> None:
        self.flows: list[Flow] = []

    def flow_ended(self, flow: Flow) -> None:
        self.flows.append(flow)


@implementer(IVerifier)
class Asked:
    """A verifier that answers when the test does."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, SocketAddress]] = []
        self.cancelled = 0
        self.answer: Deferred[Addresses] = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    def verify(
        self, host: str, address: SocketAddress, acceptable: Callable[[SocketAddress], bool]
    ) -> Deferred[Addresses]:
        assert acceptable(address)
        self.questions.append((host, address))
        return self.answer


class Bug(Asked):
    """A verifier that raises."""

    def verify(
        self, host: str, address: SocketAddress, acceptable: Callable[[SocketAddress], bool]
    ) -> Deferred[Addresses]:
        raise RuntimeError(host)


class Scene:
    """One judged flow.

    Attributes:
        client: Its client.
        flow: Its facts.
        allowed: What was allowed of it.
    """

    def __init__(self, turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge) -> None:
        near, connection = tcp_pair()
        stack.enter_context(near)
        self.connection = connection
        stack.enter_context(connection)
        self.client = Peer(turning, near, 1)
        self.allowed: list[Allowed] = []
        source = SocketAddress.from_kernel(connection.getpeername())
        self.flow = Flow(
            *(ListenerKind.OUTBOUND, source, DESTINATION, DestinationSource.TPROXY),
            runtime.observer,
        )
        self.judging = Judging(runtime, judge, connection, self.flow, self.allowed.append)


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def runtime(turning: Turning, observer: Observer) -> Iterator[Runtime]:
    made = Runtime.make(turning.reactor, observer, mark=None)
    yield made
    made.close()
    turning.settle()


@pytest.fixture
def stack(runtime: Runtime) -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def verifier() -> Asked:
    return Asked()


@pytest.fixture
def judge(verifier: Asked) -> Judge:
    policy = Policy(default=Default.DENY, allow=[parse_rule(NAME, "file:1")])
    return Judge(policy, verifier, silence=3600.0, patience=3600.0)


@pytest.fixture
def scene(turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge) -> Scene:
    return Scene(turning, stack, runtime, judge)


def ended(scene: Scene) -> list[object]:
    """How it ended."""
    flow = scene.flow
    return [flow.verdict, flow.reason, flow.end, scene.allowed]


class TestVerified:
    @pytest.mark.parametrize("address", [DESTINATION, OTHER])
    def test_allowed(
        self, turning: Turning, scene: Scene, verifier: Asked, address: SocketAddress
    ) -> None:
        """What the verifier answers is dialled; the bytes read go along, each once."""
        for at in range(len(HELLO)):
            scene.client.say(HELLO[at : at + 1])
            turning.settle()
        turning.until(lambda: verifier.questions)
        assert [(NAME, DESTINATION)] == verifier.questions
        assert [] == scene.allowed
        verifier.answer.callback((address,))
        expected = Allowed(scene.connection, scene.flow, (address,), HELLO, None)
        assert [expected] == scene.allowed
        assert (Verdict.ALLOW, "rule", f"{NAME} (file:1)") == (
            scene.flow.verdict,
            scene.flow.reason,
            scene.flow.rule,
        )
        assert scene.flow.end is None

    @pytest.mark.parametrize(
        ("error", "reason", "end"),
        [
            (CertificateMismatch(NAME, "a", "b"), "certificate_mismatch", FlowEnd.DENIED),
            (
                VerificationImpossible(NAME, "a", NameNotResolved(NAME, "none")),
                "dns_error",
                FlowEnd.DNS_ERROR,
            ),
        ],
    )
    def test_refused(
        self,
        turning: Turning,
        scene: Scene,
        verifier: Asked,
        observer: Observer,
        error: Exception,
        reason: str,
        end: FlowEnd,
    ) -> None:
        """What the verifier fails with is the denial's reason."""
        scene.client.say(HELLO)
        turning.until(lambda: verifier.questions)
        verifier.answer.errback(error)
        assert DENIED == scene.client.read_to_end()
        assert [Verdict.DENY, reason, end, []] == ended(scene)
        assert [scene.flow] == observer.flows

    def test_bug(self, turning: Turning, scene: Scene, verifier: Asked) -> None:
        """A verifier that fails in any other way is one that denies."""
        scene.client.say(HELLO)
        turning.until(lambda: verifier.questions)
        verifier.answer.errback(RuntimeError("bug"))
        assert DENIED == scene.client.read_to_end()
        assert [Verdict.DENY, "internal_error", FlowEnd.DENIED, []] == ended(scene)
        assert 1 == len(turning.failures)
        turning.failures.clear()

    def test_raises(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge
    ) -> None:
        """So is one that raises."""
        judge.verifier = Bug()
        scene = Scene(turning, stack, runtime, judge)
        scene.client.say(HELLO)
        assert DENIED == scene.client.read_to_end()
        assert [Verdict.DENY, "internal_error", FlowEnd.DENIED, []] == ended(scene)
        assert 1 == len(turning.failures)
        turning.failures.clear()


class TestGone:
    @pytest.mark.parametrize("said", [b"", HELLO[:9]], ids=["silent", "peeking"])
    def test_peeking(
        self, turning: Turning, scene: Scene, verifier: Asked, observer: Observer, said: bytes
    ) -> None:
        """A client that resets before its name is known ends the flow."""
        if said:
            scene.client.say(said)
        turning.settle()
        scene.client.reset()
        turning.until(lambda: observer.flows)
        assert [Verdict.DENY, "not_judged", FlowEnd.CLIENT_RESET, []] == ended(scene)
        assert [] == verifier.questions

    def test_verifying(
        self, turning: Turning, scene: Scene, verifier: Asked, observer: Observer
    ) -> None:
        """A client that resets meanwhile: nobody waits for the answer any more."""
        scene.client.say(HELLO)
        turning.until(lambda: verifier.questions)
        scene.client.reset()
        turning.until(lambda: observer.flows)
        assert FlowEnd.CLIENT_RESET is scene.flow.end
        assert ([], 1) == (scene.allowed, verifier.cancelled)

    @pytest.mark.parametrize("said", [b"", HELLO[:9], HELLO], ids=["silent", "peeking", "asked"])
    def test_shut_down(
        self, turning: Turning, runtime: Runtime, scene: Scene, observer: Observer, said: bytes
    ) -> None:
        """The process's end ends it."""
        if said:
            scene.client.say(said)
        turning.settle()
        runtime.close()
        assert FlowEnd.SHUTDOWN is scene.flow.end
        assert [scene.flow] == observer.flows
        assert b"" == scene.client.read_to_reset()


class TestWaits:
    def test_silent(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge
    ) -> None:
        """A client that stays silent is judged as one without a name."""
        judge.silence = 0.01
        scene = Scene(turning, stack, runtime, judge)
        assert b"" == scene.client.read_to_reset()
        assert [Verdict.DENY, "no_name", FlowEnd.DENIED, []] == ended(scene)

    def test_impatient(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge
    ) -> None:
        """A client that began to speak, and never ends, is denied."""
        judge.patience = 0.01
        scene = Scene(turning, stack, runtime, judge)
        scene.client.say(HELLO[:-1])
        assert DENIED == scene.client.read_to_end()
        assert [Verdict.DENY, "peek_timeout", FlowEnd.DENIED, []] == ended(scene)

    def test_bug_after_a_wait(
        self,
        turning: Turning,
        stack: ExitStack,
        runtime: Runtime,
        judge: Judge,
        observer: Observer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A bug in the policy denies also where only a timer called it."""
        judge.silence = 0.01
        scene = Scene(turning, stack, runtime, judge)

        def decide(_: Flow) -> None:
            raise RuntimeError("bug")

        monkeypatch.setattr(judge.policy, "decide", decide)
        turning.until(lambda: observer.flows)
        assert [Verdict.DENY, "internal_error", FlowEnd.DENIED, []] == ended(scene)
        assert 1 == len(turning.failures)
        turning.failures.clear()


BY_ADDRESS = [Verdict.DENY, "default", FlowEnd.DENIED, []]
REQUEST = b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n"


class TestDeniedByAddress:
    """No name could change it: nothing is dialled, and the client is told in its language."""

    @pytest.fixture
    def judge(self, verifier: Asked, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Judge:
        def dial(*_: object) -> None:
            raise AssertionError("dialled")

        monkeypatch.setattr(runtime.dialer, "dial", dial, raising=True)
        policy = Policy(default=Default.DENY, allow=[parse_rule("9.9.9.2")])
        return Judge(policy, verifier, silence=3600.0, patience=3600.0, brief=3600.0)

    @pytest.mark.parametrize("pieces", [1, 2, 999])
    @pytest.mark.parametrize(
        ("said", "protocol", "answer"),
        [(HELLO, Protocol.TLS, DENIED), (REQUEST, Protocol.HTTP, b"HTTP/1.1 403 Forbidden\r\n")],
        ids=["tls", "http"],
    )
    def test_told(
        self,
        turning: Turning,
        scene: Scene,
        observer: Observer,
        said: bytes,
        protocol: Protocol,
        answer: bytes,
        pieces: int,
    ) -> None:
        """However its words are cut, it hears why, and the log has it all."""
        size = -(-len(said) // pieces)
        for at in range(0, len(said), size):
            assert [] == observer.flows
            scene.client.say(said[at : at + size])
            turning.settle()
        assert scene.client.read_to_end().startswith(answer)
        assert BY_ADDRESS == ended(scene)
        assert [scene.flow] == observer.flows
        assert protocol is scene.flow.protocol

    def test_hint(self, scene: Scene) -> None:
        """A 403 names the rule that would allow it, and so does the flow."""
        scene.client.say(REQUEST)
        answer = scene.client.read_to_end()
        assert answer.endswith(b"sidecar: denied: default; to allow it: 9.9.9.1:443\n")
        assert "9.9.9.1:443" == scene.flow.hint

    def test_said_before(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge
    ) -> None:
        """What is there when the connection is accepted is answered then and there."""
        near, connection = tcp_pair()
        stack.enter_context(near)
        near.send(HELLO)
        arrived(connection, select.POLLIN)
        flow = Flow(ListenerKind.OUTBOUND, None, DESTINATION, None, runtime.observer)
        Judging(runtime, judge, connection, flow, lambda _: None)
        assert FlowEnd.DENIED is flow.end
        arrived(near, select.POLLIN)
        assert DENIED == near.recv(99)

    @pytest.mark.parametrize(
        "said",
        [hello(name_list(host_name(b"a"), host_name(b"b"))), hello(server_name(b"0x7f.1"))],
        ids=["two", "odd"],
    )
    def test_malformed(self, scene: Scene, said: bytes) -> None:
        """What is wrong with the name doesn't matter any more."""
        scene.client.say(said)
        assert DENIED == scene.client.read_to_end()
        assert BY_ADDRESS == ended(scene)

    def test_silent(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge
    ) -> None:
        """One that is silent for a moment is reset, whatever a peek would wait."""
        judge.brief = 0.01
        scene = Scene(turning, stack, runtime, judge)
        assert b"" == scene.client.read_to_reset()
        assert BY_ADDRESS == ended(scene)

    def test_other(
        self,
        turning: Turning,
        stack: ExitStack,
        runtime: Runtime,
        judge: Judge,
    ) -> None:
        """One that says something else is reset at once."""
        scene = Scene(turning, stack, runtime, judge)
        scene.client.say(b"SSH-2.0-x\r\n")
        assert b"" == scene.client.read_to_reset()
        assert BY_ADDRESS == ended(scene)

    def test_silence_is_the_limit(
        self,
        turning: Turning,
        stack: ExitStack,
        runtime: Runtime,
        judge: Judge,
    ) -> None:
        """A shorter silence that is configured holds here, too."""
        judge.silence = 0.01
        scene = Scene(turning, stack, runtime, judge)
        assert b"" == scene.client.read_to_reset()
        assert BY_ADDRESS == ended(scene)

    def test_dripping(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge
    ) -> None:
        """One that never ends its hello is told at the end of the patience, for the same reason."""
        judge.patience = 0.01
        scene = Scene(turning, stack, runtime, judge)
        scene.client.say(HELLO[:-1])
        assert DENIED == scene.client.read_to_end()
        assert BY_ADDRESS == ended(scene)

    @pytest.mark.parametrize("said", [b"", HELLO[:9]], ids=["silent", "speaking"])
    def test_gone(self, turning: Turning, scene: Scene, observer: Observer, said: bytes) -> None:
        """One that resets meanwhile was denied all the same."""
        if said:
            scene.client.say(said)
        turning.settle()
        scene.client.reset()
        turning.until(lambda: observer.flows)
        assert BY_ADDRESS == ended(scene)

    def test_shut_down(self, runtime: Runtime, scene: Scene, observer: Observer) -> None:
        """So was one that the process's end finds silent."""
        runtime.close()
        assert BY_ADDRESS == ended(scene)
        assert [scene.flow] == observer.flows


class TestDecided:
    def test_at_once(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, verifier: Asked
    ) -> None:
        """Where no name matters, nothing is read."""
        policy = Policy(default=Default.DENY, allow=[parse_rule("9.9.9.1")])
        judge = Judge(policy, verifier, silence=3600.0, patience=3600.0)
        scene = Scene(turning, stack, runtime, judge)
        expected = Allowed(scene.connection, scene.flow, (DESTINATION,), b"", None)
        assert [expected] == scene.allowed

    def test_early_upstream(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, verifier: Asked
    ) -> None:
        """Where silence would do, a server that speaks ends the peek, and is not dialled again."""
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        policy = Policy(deny=[parse_rule("bad.example")])
        judge = Judge(policy, verifier, silence=3600.0, patience=3600.0)
        near, connection = tcp_pair()
        stack.enter_context(near)
        stack.enter_context(connection)
        destination = SocketAddress.from_kernel(listener.getsockname())
        flow = Flow(ListenerKind.OUTBOUND, None, destination, None, runtime.observer)
        allowed: list[Allowed] = []
        Judging(runtime, judge, connection, flow, allowed.append)
        server = stack.enter_context(listener.accept()[0])
        server.sendall(b"220 ready\r\n")
        turning.until(lambda: allowed)
        upstream = allowed[0].upstream
        assert upstream is not None
        stack.enter_context(upstream)
        assert server.getsockname() == upstream.getpeername()
        assert b"220 ready\r\n" == upstream.recv(99)


class TestNamedByDNS:
    """Where DNS has named a flow, it is known what becomes of a silent client."""

    @pytest.fixture
    def judge(self, turning: Turning, verifier: Asked) -> Judge:
        policy = Policy(default=Default.DENY, allow=[parse_rule(NAME, "file:1")])
        served = Served(turning.reactor)
        return Judge(policy, verifier, silence=3600.0, patience=3600.0, brief=0.01, served=served)

    def test_denied(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge
    ) -> None:
        """If it is denied, it is told so after a moment, whatever a name's is."""
        assert judge.served is not None
        judge.served.record("bad.example", DESTINATION.host, 60)
        scene = Scene(turning, stack, runtime, judge)
        assert b"" == scene.client.read_to_reset()
        assert [Verdict.DENY, "default", FlowEnd.DENIED, []] == ended(scene)

    def test_saying_another(
        self,
        turning: Turning,
        stack: ExitStack,
        runtime: Runtime,
        judge: Judge,
        verifier: Asked,
    ) -> None:
        """Unless it says a name that is allowed."""
        assert judge.served is not None
        judge.brief = 3600.0
        judge.served.record("bad.example", DESTINATION.host, 60)
        scene = Scene(turning, stack, runtime, judge)
        scene.client.say(HELLO)
        turning.until(lambda: verifier.questions)
        verifier.answer.callback((DESTINATION,))
        expected = Allowed(scene.connection, scene.flow, (DESTINATION,), HELLO, None)
        assert [expected] == scene.allowed

    @pytest.mark.parametrize("named", [True, False])
    def test_others(
        self, turning: Turning, stack: ExitStack, runtime: Runtime, judge: Judge, named: bool
    ) -> None:
        """One that is allowed by its name, or has none, has its time to say more."""
        assert judge.served is not None
        if named:
            judge.served.record(NAME, DESTINATION.host, 60)
        scene = Scene(turning, stack, runtime, judge)
        timer = scene.judging._timer
        assert timer is not None
        assert timer.getTime() - turning.reactor.seconds() > judge.silence - 60
        runtime.close()


class TestCurious:
    """Where somebody learns from a run, clients are heard whose name changes nothing."""

    @pytest.fixture(autouse=True)
    def _undialled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # As it would be while the client is heard (TestDecided.test_early_upstream).
        monkeypatch.setattr(Judging, "_dial_early", lambda _: None)

    @pytest.fixture
    def judge(self, verifier: Asked) -> Judge:
        policy = Policy(default=Default.DENY, allow=[parse_rule("9.9.9.1")])
        return Judge(policy, verifier, silence=3600.0, patience=3600.0, curious=True)

    def test_named(self, turning: Turning, scene: Scene) -> None:
        """The flow has its client's name; what was read goes along."""
        assert [] == scene.allowed
        scene.client.say(HELLO)
        turning.until(lambda: scene.allowed)
        expected = Allowed(scene.connection, scene.flow, (DESTINATION,), HELLO, None)
        assert [expected] == scene.allowed
        assert (NAME, "rule") == (scene.flow.host, scene.flow.reason)

    def test_silent(self, turning: Turning, stack: ExitStack, runtime: Runtime) -> None:
        """One that says nothing goes without a name."""
        policy = Policy(default=Default.ALLOW)
        judge = Judge(policy, Asked(), silence=0.01, patience=3600.0, curious=True)
        scene = Scene(turning, stack, runtime, judge)
        turning.until(lambda: scene.allowed)
        assert (None, None, Verdict.ALLOW) == (
            scene.flow.host,
            scene.flow.problem,
            scene.flow.verdict,
        )

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (hello(server_name(b"a..b")), "invalid_host"),
            (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "hello_truncated"),
        ],
    )
    def test_muddled(self, turning: Turning, scene: Scene, data: bytes, problem: str) -> None:
        """What would be denied where the name counts is only noted."""
        scene.client.say(data)
        turning.until(lambda: scene.allowed)
        assert (problem, Verdict.ALLOW) == (scene.flow.problem, scene.flow.verdict)
        assert data == scene.allowed[0].data

    def test_slow(self, turning: Turning, scene: Scene, judge: Judge) -> None:
        """So is one that takes too long."""
        scene.judging._patience = judge.patience = 0.01
        scene.client.say(HELLO[:9])
        turning.until(lambda: scene.allowed)
        assert ("peek_timeout", HELLO[:9]) == (scene.flow.problem, scene.allowed[0].data)

    def test_denied(self, turning: Turning, stack: ExitStack, runtime: Runtime) -> None:
        """What is denied stays denied, for its reason."""
        policy = Policy(default=Default.DENY)
        judge = Judge(policy, Asked(), silence=3600.0, patience=3600.0, curious=True)
        scene = Scene(turning, stack, runtime, judge)
        scene.client.say(HELLO)
        assert DENIED == scene.client.read_to_end()
        assert [Verdict.DENY, "default", FlowEnd.DENIED, []] == ended(scene)
