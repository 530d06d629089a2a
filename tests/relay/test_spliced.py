"""What only the spliced engine does: switch to the kernel and back, with pipes, under load."""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from relay.transcripts import (
    SMALL_BUFFER,
    Kind,
    Peer,
    Scene,
    bytes_in,
    close_engine,
    close_scene,
    make_engine,
    noise,
    open_scene,
)
from support import arrived
from turning import turning

from sidecar.flow import FlowEnd
from sidecar.linux.sockopt import unacknowledged
from sidecar.relay.pipes import PIPE_SIZE, Pipe, PipePool
from sidecar.relay.poller import ERROR, HANGUP, READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.conftest import Begin
    from turning import Turning

    from sidecar.relay import Totals
    from sidecar.relay.spliced import SplicedEngine, SplicedRelay

KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20
# Bytes of SO_RCVBUF, doubled (tcp(7)): takes what these tests send, whatever tcp_rmem is.
WIDE_BUFFER = 1 << 17


@pytest.fixture
def kind() -> Kind:
    """Spliced only."""
    return Kind.SPLICED


class CountingPool(PipePool):
    """Counts how often a pipe was asked for; can be out of pipes."""

    def __init__(self) -> None:
        super().__init__()
        self.acquired = 0
        self.exhausted = False

    def acquire(self) -> Pipe | None:
        self.acquired += 1
        return None if self.exhausted else super().acquire()


@pytest.fixture
def engine(turning: Turning) -> Iterator[SplicedEngine]:
    made = make_engine(turning)
    made.pipes = CountingPool()
    yield made
    close_engine(made)


@pytest.fixture
def pipes(engine: SplicedEngine) -> CountingPool:
    assert isinstance(engine.pipes, CountingPool)
    return engine.pipes


class TestSwitching:
    def test_small(self, begin: Begin, pipes: CountingPool) -> None:
        """Small messages are copied; no pipe is made for them."""
        scene = begin()
        for _ in range(10):
            scene.client.send(1000)
            scene.server.read(1000)
        assert 0 == pipes.acquired

    def test_bulk(self, begin: Begin, pipes: CountingPool) -> None:
        """Reads that fill the buffer switch to splicing."""
        scene = begin()
        scene.client.send(8 * MEBIBYTE // 8)
        scene.server.read(MEBIBYTE)
        assert pipes.acquired > 0
        assert scene.client.written == scene.server.got

    def test_back_and_forth(self, begin: Begin, pipes: CountingPool) -> None:
        """Bulk and small talk alternate, and every byte keeps its place."""
        scene = begin()
        for _ in range(3):
            scene.client.send(MEBIBYTE // 2)
            scene.server.read(MEBIBYTE // 2)
            acquired = pipes.acquired
            # The first may still be spliced: that is how its size is learnt.
            for _ in range(10):
                scene.client.send(100)
                scene.server.read(100)
            assert pipes.acquired <= acquired + 2
        assert scene.client.written == scene.server.got

    @pytest.mark.parametrize("first", [65535, 65536, 65537, 98304])
    def test_edges(self, begin: Begin, first: int) -> None:
        """A read that just fills the buffer, and nothing after it, is delivered."""

        def early(scene: Scene) -> None:
            scene.client.send(first)
            scene.client.wait_until_acknowledged()

        scene = begin(buffers=WIDE_BUFFER, before=early)
        scene.server.read(first)
        scene.client.send(10)
        scene.server.read(10)
        assert scene.client.written == scene.server.got

    @pytest.mark.parametrize("first", [65536, 65537, 98304])
    @pytest.mark.parametrize("how", ["half_close", "reset"])
    def test_edges_and_the_end(
        self, begin: Begin, first: int, how: Literal["half_close", "reset"]
    ) -> None:
        """Likewise where the connection ends there."""

        def early(scene: Scene) -> None:
            scene.client.send(first)
            scene.client.wait_until_acknowledged()
            getattr(scene.client, how)()

        scene = begin(buffers=WIDE_BUFFER, before=early)
        if how == "half_close":
            assert scene.client.written == scene.server.read_to_end()
        else:
            assert scene.client.written == scene.server.read_to_reset()
            assert FlowEnd.CLIENT_RESET is scene.end

    def test_fair(self, begin: Begin) -> None:
        """A bulk transfer leaves others their turn."""
        bulk, talk = begin(), begin()
        while bulk.server.got == b"":
            bulk.client.write_some(MEBIBYTE)
            bulk.server.read_some(1)
            bulk.turning.turn()
        talk.client.say(b"hello")
        relay = cast("SplicedRelay", talk.running)
        arrived(relay.downstream.sock, select.POLLIN)
        turns = 0
        while relay.totals.sent < 5:
            bulk.client.write_some(MEBIBYTE)
            bulk.server.read_some(MEBIBYTE)
            bulk.turning.turn()
            turns += 1
        assert turns <= 5
        assert b"hello" == talk.server.read(5)


class TestPipes:
    def test_returned(self, begin: Begin, pipes: CountingPool) -> None:
        """A pipe is kept only while bytes wait in it."""
        scene = begin()
        scene.client.send(MEBIBYTE)
        scene.server.read(MEBIBYTE)
        scene.turning.settle()
        assert [0] == [bytes_in(pipe) for pipe in pipes._idle]

    def test_full_pipe_is_not_reused(self, begin: Begin, pipes: CountingPool) -> None:
        """A pipe whose reader went away is closed with what it held."""
        scene = begin()
        scene.client.send_until_stopped()
        scene.server.reset()
        assert FlowEnd.SERVER_RESET is scene.end
        assert [0] * len(pipes._idle) == [bytes_in(pipe) for pipe in pipes._idle]
        other = begin()
        other.server.send(MEBIBYTE)
        other.server.half_close()
        assert noise(2)[:MEBIBYTE] == other.client.read_to_end()

    def test_none_to_be_had(self, begin: Begin, pipes: CountingPool) -> None:
        """Without descriptors for a pipe everything is copied, and arrives."""
        pipes.exhausted = True
        scene = begin()
        scene.client.send(2 * MEBIBYTE // 4)
        scene.client.half_close()
        assert scene.client.written == scene.server.read_to_end()
        assert pipes.acquired > 0

    def test_none_to_be_had_and_a_reset(self, begin: Begin, pipes: CountingPool) -> None:
        """Likewise what came before a reset."""
        pipes.exhausted = True
        scene = begin()
        scene.client.send_until_stopped()
        had = scene.client.acknowledged
        scene.client.reset()
        got = scene.server.read_to_reset()
        assert had <= len(got)
        assert scene.client.written[: len(got)] == got

    def test_none_to_be_had_after_a_reset(self, begin: Begin, pipes: CountingPool) -> None:
        """Nor does a reset client wait for a wake-up that nobody would bring."""
        pipes.exhausted = True
        scene = begin(buffers=SMALL_BUFFER * 16)
        scene.client.send_until_stopped()
        had = scene.client.acknowledged
        scene.client.reset()
        scene.turning.settle()
        while scene.server.read_some():
            # Room for more than a read brings, before the relay gets its turn.
            pass
        got = scene.server.read_to_reset()
        assert had <= len(got)
        assert scene.client.written[: len(got)] == got

    def test_splice_small_pipe(self, begin: Begin, pipes: CountingPool) -> None:
        """A pipe of the default size, all an unprivileged user may get, does as well."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        pipes.release(Pipe(reader, writer))
        scene = begin(buffers=SMALL_BUFFER * 16)
        scene.client.send_until_stopped()
        scene.client.half_close()
        assert scene.client.written == scene.server.read_to_end()


class TestReadiness:
    """Events that a batch brings in any order, and events meant for somebody else."""

    def relay(self, scene: Scene) -> SplicedRelay:
        relay = scene.relay
        assert relay is not None
        return relay  # type: ignore[return-value] # these scenes are spliced

    @pytest.mark.parametrize("events", [0, READ, WRITE, READ | WRITE])
    @pytest.mark.parametrize("held", [False, True])
    def test_nothing_is_ready(self, begin: Begin, events: int, held: bool) -> None:
        """An event that was meant for a descriptor's former owner does no harm."""
        scene = begin(buffers=SMALL_BUFFER)
        if held:
            scene.client.send_until_stopped()
        for half in (self.relay(scene).downstream, self.relay(scene).upstream):
            half.ready(events)
        scene.client.half_close()
        assert scene.client.written == scene.server.read_to_end()
        scene.server.close()
        assert FlowEnd.CLOSED is scene.end

    @pytest.mark.parametrize("order", ["downstream first", "upstream first"])
    def test_reset_and_room_in_one_batch(self, begin: Begin, order: str) -> None:
        """A reset client, and a server that reads again and says something, in one batch.

        What is written on makes the relay see the reset; it must not read a socket
        afterwards that it has given up.
        """
        scene = begin(buffers=SMALL_BUFFER)
        client, server = scene.client, scene.server
        client.send_until_stopped()
        had = client.acknowledged
        client.reset()
        while server.read_some():
            pass
        server.say(b"still here")
        relay = self.relay(scene)
        halves = [(relay.downstream, ERROR | READ), (relay.upstream, READ | WRITE)]
        if order == "upstream first":
            halves.reverse()
        for half, events in halves:
            half.ready(events)
        got = server.read_to_reset()
        assert had <= len(got)
        assert client.written[: len(got)] == got
        assert FlowEnd.CLIENT_RESET is scene.end

    @pytest.mark.parametrize("who", ["client", "server"])
    def test_said_to_its_end(self, begin: Begin, who: Literal["client", "server"]) -> None:
        """When the process ends, the kernel still sends what one side has said to its end."""
        scene = begin(buffers=SMALL_BUFFER)
        sender, receiver = scene.client, scene.server
        relay = self.relay(scene)
        near, far = relay.downstream, relay.upstream
        if who == "server":
            sender, receiver, near, far = receiver, sender, far, near
        # More than the receiver's kernel takes, and no more than the relay's does.
        sender.send(40 * KIBIBYTE)
        sender.half_close()
        scene.turning.until(lambda: near.eof)
        assert not far.blocked
        assert unacknowledged(far.fd) > 0
        relay.abort(FlowEnd.SHUTDOWN)
        assert FlowEnd.SHUTDOWN is scene.end
        assert sender.written == receiver.read_to_end()
        sender.read_to_reset()

    def test_not_said_to_its_end(self, begin: Begin) -> None:
        """What may be cut short is cut short: a reset says so."""
        scene = begin(buffers=SMALL_BUFFER)
        scene.client.send_until_stopped()
        scene.client.half_close()
        self.relay(scene).abort(FlowEnd.SHUTDOWN)
        scene.server.read_to_reset()

    def test_after_the_end(self, begin: Begin) -> None:
        """Events of a batch in which the relay has ended already do nothing."""
        scene = begin()
        relay = self.relay(scene)
        halves = (relay.downstream, relay.upstream)
        relay.abort(FlowEnd.SHUTDOWN)
        for half in halves:
            half.ready(READ | WRITE | ERROR | HANGUP)
            half.failed()
            half.shut_down()
        assert [FlowEnd.SHUTDOWN] == [totals.end for totals in scene.totals]


def bulk(scene: Scene) -> None:
    """Have more in the relay's kernel than one read takes, however segments were cut."""
    scene.client.send(98_304)
    scene.client.wait_until_acknowledged()


class TestBugs:
    def test_handler_that_raises(self, begin: Begin) -> None:
        """A bug in what is called ends this relay, and no other."""

        def buggy(_: Totals) -> None:
            raise ZeroDivisionError

        other = begin()
        scene = begin(done=buggy)
        scene.client.close()
        scene.server.close()
        scene.turning.until(lambda: scene.totals)
        scene.turning.settle()
        assert "bug in a connection's handler" in scene.turning.failures.pop()
        other.client.say(b"fine")
        assert b"fine" == other.server.read(4)

    def test_reading_that_raises(
        self, begin: Begin, pipes: CountingPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bug in the relay itself ends it with `protocol_error`; both sides are reset."""

        def buggy() -> None:
            raise ZeroDivisionError

        other = begin()
        monkeypatch.setattr(pipes, "acquire", buggy)
        scene = begin(buffers=WIDE_BUFFER, before=bulk)
        assert FlowEnd.PROTOCOL_ERROR is scene.end
        assert "bug in a connection's handler" in scene.turning.failures.pop()
        scene.server.read_to_reset()
        other.client.say(b"fine")
        assert b"fine" == other.server.read(4)

    def test_splice_refused(self, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
        """A splice(2) that fails ends the relay as a reset, with no pipe left."""

        def splice(*_: object, **__: object) -> int:
            raise OSError(errno.EIO, "no")

        monkeypatch.setattr("os.splice", splice)
        scene = begin(buffers=WIDE_BUFFER, before=bulk)
        assert FlowEnd.CLIENT_RESET is scene.end


@dataclass(frozen=True)
class Step:
    """One thing that one side does.

    Attributes:
        who: Which side.
        what: What it does.
        count: Bytes, for writes and reads; turns of the reactor otherwise.
    """

    who: Literal["client", "server"]
    what: Literal["write", "read", "half_close", "reset", "turn"]
    count: int


SIZES = st.one_of(
    st.integers(1, 100),
    st.sampled_from([65535, 65536, 65537, PIPE_SIZE]),
    st.integers(1, MEBIBYTE),
)
STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["client", "server"]),
        st.sampled_from(
            ["write", "write", "write", "read", "read", "turn", "turn", "half_close", "reset"]
        ),
        SIZES,
    ),
    max_size=40,
)


class Process:
    """One side of an arbitrary transcript, which may do what makes no sense."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.said_all = False
        self.gone = False
        self.heard_end = False
        self.heard_reset = False

    @property
    def over(self) -> bool:
        """Whether it has gone, or has heard the end."""
        return self.gone or self.heard_end or self.heard_reset

    def do(self, step: Step) -> None:
        """Do it, if it still can."""
        if self.gone:
            return
        if step.what == "reset":
            self.gone = True
            self.peer.reset()
        elif step.what == "half_close" and not self.said_all:
            self.said_all = True
            with suppress(OSError):
                self.peer.half_close()
        elif step.what == "write" and not self.said_all:
            with suppress(OSError):
                self.peer.write_some(step.count)
        elif step.what == "read":
            self.read(step.count)

    def read(self, count: int) -> bool:
        """Read; return whether there was something."""
        if self.over:
            return False
        try:
            data = self.peer.read_some(count)
        except OSError:
            self.heard_reset = True
            return False
        self.heard_end = data == b""
        return bool(data)


def play(steps: list[Step], kind: Kind, buffers: int | None) -> None:
    """Play a transcript to its end and look at what each side got."""
    with turning() as table:
        engine = make_engine(table)
        scene = open_scene(table, engine, kind, buffers=buffers)
        client, server = Process(scene.client), Process(scene.server)
        for step in steps:
            if step.what == "turn":
                for _ in range(1 + step.count % 4):
                    table.turn()
            else:
                (client if step.who == "client" else server).do(step)
        was_reset = client.gone or server.gone
        if not was_reset or kind is Kind.BUFFERED:
            # Both say goodbye and listen to the end. Twisted's transports don't notice
            # that a side which has said all is reset, until there is something for it.
            for process in (client, server):
                process.do(Step("client", "half_close", 0))
        open_ends = [process.peer.sock for process in (client, server) if not process.gone]
        table.until(lambda: over(scene, client, server), *open_ends)
        judge(scene, client, server)
        close_scene(scene)
        close_engine(engine)


def over(scene: Scene, *processes: Process) -> bool:
    """Read everything; whether the relay and both processes have heard the end."""
    for process in processes:
        while process.read(MEBIBYTE):
            pass
    return bool(scene.totals) and all(process.over for process in processes)


def judge(scene: Scene, client: Process, server: Process) -> None:
    """See that the relay's rules were kept."""
    (totals,) = scene.totals
    note(str(totals))
    was_reset = client.gone or server.gone
    for one, other, delivered in (
        (client, server, totals.sent),
        (server, client, totals.received),
    ):
        got = other.peer.got
        assert one.peer.written[: len(got)] == got
        assert len(got) <= delivered <= one.peer.sent
        assert was_reset or one.peer.sent == len(got)
    if was_reset:
        # CLOSED: one that had heard all and said all may reset unnoticed.
        assert totals.end in {FlowEnd.CLIENT_RESET, FlowEnd.SERVER_RESET, FlowEnd.CLOSED}
    else:
        assert FlowEnd.CLOSED is totals.end
        assert not client.heard_reset
        assert not server.heard_reset


class TestAnything:
    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(steps=STEPS, buffers=st.sampled_from([None, SMALL_BUFFER]))
    @example(
        # The reset shows while what waits is written on, in the same event that says
        # that the server has something to be read.
        steps=[
            Step("client", "write", MEBIBYTE),
            Step("client", "turn", 3),
            Step("client", "write", MEBIBYTE),
            Step("client", "turn", 3),
            Step("client", "reset", 1),
            Step("server", "read", MEBIBYTE),
            Step("server", "write", 10),
            Step("server", "turn", 3),
        ],
        buffers=SMALL_BUFFER,
    )
    @example(
        # The server's byte is in the batch in which the client's reset shows, so the
        # event is told to who waits for the last bytes to arrive.
        steps=[
            Step("client", "write", 65536),
            Step("client", "reset", 1),
            Step("server", "write", 1),
            Step("client", "turn", 1),
            Step("server", "reset", 1),
        ],
        buffers=None,
    )
    @example(
        # The server has ended while nothing could be read from it; in one batch this
        # shows, and that the client takes bytes again.
        steps=[
            Step("client", "write", 65535),
            Step("client", "half_close", 1),
            Step("server", "write", 65535),
            Step("client", "turn", 2),
            Step("server", "write", 65535),
            Step("client", "turn", 2),
        ],
        buffers=SMALL_BUFFER,
    )
    def test_spliced(self, steps: list[Step], buffers: int | None) -> None:
        """Whatever the two do: what is delivered is what was sent, up to a reset."""
        play(steps, Kind.SPLICED, buffers)

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(steps=STEPS, buffers=st.sampled_from([None, SMALL_BUFFER]))
    def test_buffered(self, steps: list[Step], buffers: int | None) -> None:
        """Likewise for the other engine."""
        play(steps, Kind.BUFFERED, buffers)

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(
        sizes=st.lists(
            st.one_of(st.integers(1, 200_000), st.sampled_from([1, 65536, 2 * MEBIBYTE])),
            max_size=12,
        ),
        reads=st.integers(1, MEBIBYTE),
    )
    def test_chunks(self, sizes: list[int], reads: int) -> None:
        """However it is cut, the stream is the same: to splicing and back, 1 B to 8 MiB."""
        with turning() as table:
            engine = make_engine(table)
            scene = open_scene(table, engine, Kind.SPLICED)
            for size in sizes[:8]:
                left = min(size, 8 * MEBIBYTE - scene.client.sent)
                while left:
                    left -= scene.client.write_some(left)
                    scene.server.read_some(reads)
                    table.turn()
                table.turn()
            scene.client.half_close()
            assert scene.client.written == scene.server.read_to_end()
            close_scene(scene)
            close_engine(engine)


class TestKernel:
    def test_reset_keeps_what_was_received(self) -> None:
        """What these rules rest on: after a RST, Linux still hands out what came before it."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
            with far:
                near.sendall(b"before")
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0] + [0] * 4))
                near.close()
                assert b"before" == far.recv(100)
                with pytest.raises(ConnectionResetError):
                    far.recv(100)
