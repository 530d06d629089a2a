"""A relay whose client is heard by somebody before its server hears it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
from relay.transcripts import SMALL_BUFFER, Peer, close_engine, make_engine, noise, tcp_pair
from turning import turning

from sidecar.flow import FlowEnd
from sidecar.relay import RelayProtocol, start
from sidecar.relay.joining import Joined
from sidecar.relay.totals import Totals

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from turning import Turning

    from sidecar.relay.screened import Screened
    from sidecar.relay.spliced import SplicedEngine

GREETING = b"220 ready\r\n"


class Listener:
    """A screen that decides once it has heard enough.

    Attributes:
        heard_all: What it has heard.
        back: What it was given back.
        half: To be told later.
    """

    def __init__(self, enough: int, *, pass_on: bool = True) -> None:
        self._enough = enough
        self._pass_on = pass_on
        self.heard_all = b""
        self.pieces = 0
        self.back: list[tuple[socket.socket, int, bool]] = []
        self.half: Screened | None = None
        self.bugs = 0

    def heard(self, half: Screened, data: bytes) -> None:
        self.half = half
        self.heard_all += data
        self.pieces += 1
        if data and len(self.heard_all) < self._enough:
            return
        if self._pass_on:
            half.pass_on(self.heard_all)
        else:
            half.give_back()

    def given_back(self, upstream: socket.socket, received: int, *, spoken: bool) -> None:
        self.back.append((upstream, received, spoken))

    def failed(self) -> None:
        self.bugs += 1


class Scene:
    """A client, a server, and such a relay between them."""

    def __init__(
        self, turning: Turning, engine: SplicedEngine, screen: Listener, buffers: int | None = None
    ) -> None:
        near, self.downstream = tcp_pair(buffers)
        far, self.upstream = tcp_pair(buffers)
        self.turning = turning
        self.client, self.server = Peer(turning, near, 1), Peer(turning, far, 2)
        self.screen = screen
        self.totals: list[Totals] = []
        self.relay = engine.relay(self.downstream, self.upstream, self.totals.append, screen=screen)

    def heard(self, count: int) -> bool:
        return len(self.screen.heard_all) >= count

    def end(self) -> Totals:
        self.turning.until(lambda: self.totals)
        return self.totals[0]

    def read_until_over(self) -> None:
        """Have the client read until the relay is no more."""

        def over() -> bool:
            with suppress(ConnectionResetError):
                self.client.read_some()
            return bool(self.totals or self.screen.back)

        self.turning.until(over, self.client.sock)

    def close(self) -> None:
        if not self.totals and not self.screen.back:
            self.relay.abort(FlowEnd.SHUTDOWN)
        for sock in (self.downstream, self.upstream):
            sock.close()
        self.client.close()
        self.server.close()
        self.turning.settle()


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def engine(turning: Turning) -> Iterator[SplicedEngine]:
    made = make_engine(turning)
    yield made
    close_engine(made)


@pytest.fixture
def stack(engine: SplicedEngine) -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


class TestPassedOn:
    @pytest.mark.parametrize("pieces", [1, 3, 40])
    def test_whole(
        self, turning: Turning, engine: SplicedEngine, stack: ExitStack, pieces: int
    ) -> None:
        """Nothing reaches the server before; then all does, in order, and what follows."""
        said = noise(3)[:40]
        scene = Scene(turning, engine, Listener(len(said)))
        stack.callback(scene.close)
        scene.server.say(GREETING)
        assert GREETING == scene.client.read(len(GREETING))
        size = -(-len(said) // pieces)
        for at in range(0, len(said), size):
            assert scene.server.read_some() is None
            scene.client.say(said[at : at + size])
            turning.settle()
        assert pieces == scene.screen.pieces
        scene.client.send(1 << 20)
        scene.client.half_close()
        assert said + scene.client.written == scene.server.read_to_end()
        scene.server.half_close()
        assert Totals(40 + (1 << 20), len(GREETING), FlowEnd.CLOSED) == scene.end()

    def test_slow_server(self, turning: Turning, engine: SplicedEngine, stack: ExitStack) -> None:
        """A server that doesn't read gets what was heard when it does."""
        said = noise(3)[: 1 << 20]
        scene = Scene(turning, engine, Listener(1 << 20), SMALL_BUFFER)
        stack.callback(scene.close)
        for at in range(0, len(said), 1 << 13):
            scene.client.say(said[at : at + (1 << 13)])
            turning.until(partial(scene.heard, at + (1 << 13)))
        scene.client.half_close()
        assert said == scene.server.read_to_end()

    def test_bulk_meanwhile(
        self, turning: Turning, engine: SplicedEngine, stack: ExitStack
    ) -> None:
        """The server's bytes pass as ever, by the kernel, while the client is silent."""
        acquired: list[bool] = []
        acquire = engine.pipes.acquire

        def counted() -> object:
            acquired.append(True)
            return acquire()

        engine.pipes.acquire = counted  # type: ignore[assignment,method-assign]
        scene = Scene(turning, engine, Listener(1))
        stack.callback(scene.close)
        size = 12 << 20
        received = bytearray()
        while len(received) < size:
            scene.server.write_some(min(1 << 18, size - scene.server.sent))
            turning.settle()
            received += scene.client.read_some() or b""
        assert bytes(received) == scene.server.written
        assert acquired
        scene.client.say(b"thanks")
        assert b"thanks" == scene.server.read(6)

    def test_silent_to_the_end(
        self, turning: Turning, engine: SplicedEngine, stack: ExitStack
    ) -> None:
        """A client that ends without a word half-closes, as without a screen."""
        scene = Scene(turning, engine, Listener(1))
        stack.callback(scene.close)
        scene.client.half_close()
        assert b"" == scene.server.read_to_end()
        scene.server.say(GREETING)
        scene.server.half_close()
        assert GREETING == scene.client.read_to_end()
        assert Totals(0, len(GREETING), FlowEnd.CLOSED) == scene.end()

    def test_server_ends_first(
        self, turning: Turning, engine: SplicedEngine, stack: ExitStack
    ) -> None:
        """A server's half-close passes, and what the client says after it does."""
        scene = Scene(turning, engine, Listener(5))
        stack.callback(scene.close)
        scene.server.half_close()
        assert b"" == scene.client.read_to_end()
        scene.client.say(b"words")
        scene.client.half_close()
        assert b"words" == scene.server.read_to_end()
        assert Totals(5, 0, FlowEnd.CLOSED) == scene.end()

    def test_reset_after_words(
        self, turning: Turning, engine: SplicedEngine, stack: ExitStack
    ) -> None:
        """What a client said before its reset is passed on before the reset is."""
        scene = Scene(turning, engine, Listener(5))
        stack.callback(scene.close)
        scene.client.say(b"words")
        scene.client.reset()
        assert b"words" == scene.server.read_to_reset()
        assert Totals(5, 0, FlowEnd.CLIENT_RESET) == scene.end()

    def test_reset_while_written_to(
        self, turning: Turning, engine: SplicedEngine, stack: ExitStack
    ) -> None:
        """Likewise where the reset is noticed by writing to the client."""
        scene = Scene(turning, engine, Listener(5))
        stack.callback(scene.close)
        # Both are seen in one turn; the server's bytes may be passed on first.
        scene.client.say(b"words")
        scene.client.reset()
        scene.server.say(GREETING)
        assert b"words" == scene.server.read_to_reset()
        assert FlowEnd.CLIENT_RESET is scene.end().end

    @pytest.mark.parametrize("said", [b"", b"wo"])
    def test_resets(
        self, turning: Turning, engine: SplicedEngine, stack: ExitStack, said: bytes
    ) -> None:
        """Resets pass both ways; what wasn't enough goes nowhere."""
        first, second = (Scene(turning, engine, Listener(5)) for _ in range(2))
        stack.callback(first.close)
        stack.callback(second.close)
        if said:
            first.client.say(said)
            turning.settle()
        first.client.reset()
        assert b"" == first.server.read_to_reset()
        assert Totals(0, 0, FlowEnd.CLIENT_RESET) == first.end()
        second.server.say(GREETING)
        turning.settle()
        second.server.reset()
        assert GREETING == second.client.read_to_reset()
        assert Totals(0, len(GREETING), FlowEnd.SERVER_RESET) == second.end()

    def test_bug(self, turning: Turning, engine: SplicedEngine, stack: ExitStack) -> None:
        """A screen that raises ends the relay; nothing is passed on."""
        scene = Scene(turning, engine, Listener(1))
        stack.callback(scene.close)
        scene.screen.heard = lambda *_: 1 / 0  # type: ignore[assignment,method-assign]
        scene.client.say(b"words")
        assert b"" == scene.server.read_to_reset()
        assert FlowEnd.PROTOCOL_ERROR is scene.end().end
        turning.failures.clear()

    def test_only_sockets(self, engine: SplicedEngine) -> None:
        """What can't be kept from being heard is not relayed at all."""
        near, connection = tcp_pair()
        with near, connection, pytest.raises(TypeError):
            start(
                *(engine, connection, RelayProtocol(lambda _: None), lambda _: None, Joined()),
                screen=Listener(1),
            )


class TestGivenBack:
    def test_silent_server(self, turning: Turning, engine: SplicedEngine, stack: ExitStack) -> None:
        """Both sockets are as they were; what the client says further is still unread."""
        scene = Scene(turning, engine, Listener(5, pass_on=False))
        stack.callback(scene.close)
        scene.client.say(b"words")
        turning.until(lambda: scene.screen.back)
        scene.client.say(b"more")
        scene.client.half_close()
        scene.server.say(GREETING)
        turning.settle()
        assert [(scene.upstream, 0, False)] == scene.screen.back
        assert ([], b"words") == (scene.totals, scene.screen.heard_all)
        assert (b"more", GREETING) == (scene.downstream.recv(9), scene.upstream.recv(99))
        assert engine.poller.descriptors() == []

    @pytest.mark.parametrize("ended", [True, False])
    def test_server_spoke(
        self, turning: Turning, engine: SplicedEngine, stack: ExitStack, ended: bool
    ) -> None:
        """Whether the server has said anything is told, and how much the client got."""
        scene = Scene(turning, engine, Listener(1, pass_on=False))
        stack.callback(scene.close)
        if ended:
            scene.server.half_close()
        else:
            scene.server.say(GREETING)
        turning.settle()
        scene.client.say(b"words")
        turning.until(lambda: scene.screen.back)
        assert [(scene.upstream, 0 if ended else len(GREETING), True)] == scene.screen.back

    def test_slow_client(self, turning: Turning, engine: SplicedEngine, stack: ExitStack) -> None:
        """A client that has yet to read what the server said gets all of it before."""
        scene = Scene(turning, engine, Listener(1, pass_on=False), SMALL_BUFFER)
        stack.callback(scene.close)
        scene.server.send_until_stopped()
        scene.client.say(b"words")
        turning.settle()
        assert ([], b"words") == (scene.screen.back, scene.screen.heard_all)
        scene.read_until_over()
        ((_, received, _),) = scene.screen.back
        while len(scene.client.got) < received:
            scene.client.read_some()
        assert scene.server.written[:received] == bytes(scene.client.got)
        assert received < scene.server.sent
        # The rest is where it was.
        rest = scene.upstream.recv(99)
        assert scene.server.written[received : received + len(rest)] == rest

    @pytest.mark.parametrize("who", ["client", "server"])
    def test_gone_meanwhile(
        self, turning: Turning, engine: SplicedEngine, stack: ExitStack, who: str
    ) -> None:
        """If one resets before that, the relay has ended."""
        scene = Scene(turning, engine, Listener(1, pass_on=False), SMALL_BUFFER)
        stack.callback(scene.close)
        scene.server.send_until_stopped()
        scene.client.say(b"words")
        turning.settle()
        if who == "client":
            scene.client.reset()
            assert FlowEnd.CLIENT_RESET is scene.end().end
            assert [] == scene.screen.back
        else:
            scene.server.reset()
            turning.settle()
            scene.read_until_over()
        assert 1 == len(scene.screen.back) + len(scene.totals)

    def test_reset_at_once(self, turning: Turning, engine: SplicedEngine, stack: ExitStack) -> None:
        """Sockets of a client that was reset are nobody's to have."""
        scene = Scene(turning, engine, Listener(1, pass_on=False))
        stack.callback(scene.close)
        scene.client.say(b"words")
        scene.client.reset()
        scene.server.say(GREETING)
        turning.until(lambda: scene.totals or scene.screen.back)
        turning.settle()
        assert 1 == len(scene.screen.back) + len(scene.totals)

    def test_bug(self, turning: Turning, engine: SplicedEngine, stack: ExitStack) -> None:
        """A bug of who was given them back is told to the screen."""
        scene = Scene(turning, engine, Listener(1, pass_on=False))
        stack.callback(scene.close)
        given_back = scene.screen.given_back

        def broken(upstream: socket.socket, received: int, *, spoken: bool) -> None:
            given_back(upstream, received, spoken=spoken)
            raise RuntimeError("bug")

        scene.screen.given_back = broken  # type: ignore[method-assign]
        scene.client.say(b"words")
        turning.until(lambda: scene.screen.bugs)
        assert [] == scene.totals
        turning.failures.clear()
