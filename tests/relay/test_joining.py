"""The relay's rules (DESIGN §4) as transcripts, on both engines; and which one is chosen."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest
from relay.transcripts import (
    SMALL_BUFFER,
    Kind,
    Peer,
    Scene,
    TlsPeer,
    adopt_tls,
    noise,
    tcp_pair,
)
from support import arrived
from twisted.internet.defer import CancelledError

from sidecar.flow import FlowEnd
from sidecar.relay import Joined, RelayProtocol, Totals, join, start
from sidecar.relay.buffered import BufferedRelay
from sidecar.relay.protocol import adopt
from sidecar.relay.spliced import SplicedRelay

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from certificates import Identity
    from relay.conftest import Begin
    from turning import Turning

    from sidecar.relay import Side
    from sidecar.relay.spliced import SplicedEngine

MEBIBYTE = 1 << 20


class TestData:
    @pytest.mark.parametrize("count", [1, 65535, 65536, 65537, 8 * MEBIBYTE])
    def test_both_ways(self, begin_any: Begin, count: int) -> None:
        """What one side sends arrives at the other, whole and in order; both are counted."""
        scene = begin_any()
        for writer, reader in ((scene.client, scene.server), (scene.server, scene.client)):
            while writer.sent < count:
                writer.write_some(count - writer.sent)
                reader.read_some()
                scene.turning.turn()
            reader.read(count - len(reader.got))
            assert writer.written == reader.got
        scene.client.half_close()
        scene.server.read_to_end()
        scene.server.close()
        assert (count, count, FlowEnd.CLOSED) == scene.total

    def test_question_and_answer(self, begin_any: Begin) -> None:
        """Turns are taken for as long as the two like."""
        scene = begin_any()
        for number in range(20):
            scene.client.say(b"question %d" % number)
            assert b"question %d" % number == scene.server.read(len(b"question %d" % number))
            scene.server.say(b"answer %d" % number)
            assert b"answer %d" % number == scene.client.read(len(b"answer %d" % number))

    def test_server_speaks_first(self, begin_any: Begin) -> None:
        """Nobody waits for the client."""
        scene = begin_any()
        scene.server.say(b"220 ready")
        assert b"220 ready" == scene.client.read(9)

    def test_before_joined(self, begin: Begin) -> None:
        """What came before the two were joined is delivered first, exactly once."""

        def early(scene: Scene) -> None:
            scene.client.send(100_000)
            scene.server.say(b"220 ready")
            scene.turning.settle()

        scene = begin(before=early)
        assert b"220 ready" == scene.client.read(9)
        scene.client.send(50_000)
        scene.client.half_close()
        assert scene.client.written == scene.server.read_to_end()

    def test_end_before_joined(self, begin: Begin) -> None:
        """A client that said all before there was a server gets its answer."""

        def early(scene: Scene) -> None:
            scene.client.send(100_000)
            scene.client.half_close()
            scene.turning.settle()

        scene = begin(before=early)
        assert scene.client.written == scene.server.read_to_end()
        scene.server.say(b"answer")
        scene.server.close()
        assert b"answer" == scene.client.read_to_end()
        assert (100_000, 6, FlowEnd.CLOSED) == scene.total

    def test_both_at_once(self, begin_any: Begin) -> None:
        """The directions don't wait for one another."""
        scene = begin_any()
        count = 4 * MEBIBYTE
        client, server = scene.client, scene.server
        while len(client.got) < count or len(server.got) < count:
            for peer in (client, server):
                peer.write_some(count - peer.sent)
                peer.read_some()
            scene.turning.turn()
        assert client.written == server.got
        assert server.written == client.got


class TestHalfClose:
    def test_client_ends_first(self, begin: Begin) -> None:
        """The client's end reaches the server; the answer still reaches the client."""
        scene = begin()
        scene.client.say(b"request")
        scene.client.half_close()
        assert b"request" == scene.server.read_to_end()
        scene.server.send(4 * MEBIBYTE // 8)
        scene.server.half_close()
        assert scene.server.written == scene.client.read_to_end()
        assert (7, MEBIBYTE // 2, FlowEnd.CLOSED) == scene.total

    def test_server_ends_first(self, begin: Begin) -> None:
        """Likewise the other way round."""
        scene = begin()
        scene.server.say(b"banner")
        scene.server.half_close()
        assert b"banner" == scene.client.read_to_end()
        scene.client.send(MEBIBYTE // 2)
        scene.client.half_close()
        assert scene.client.written == scene.server.read_to_end()
        assert (MEBIBYTE // 2, 6, FlowEnd.CLOSED) == scene.total

    def test_goes_on(self, begin: Begin) -> None:
        """A half-closed relay stays while the other direction has something to say."""
        scene = begin()
        scene.client.half_close()
        scene.server.read_to_end()
        for number in range(10):
            scene.server.say(b"%d" % number)
            assert b"%d" % number == scene.client.read(1)
        assert [] == scene.totals

    def test_after_everything(self, begin: Begin) -> None:
        """The end comes after all that was sent before, however slow the reader."""
        scene = begin(buffers=SMALL_BUFFER)
        client, server = scene.client, scene.server
        count = 3 * MEBIBYTE
        while client.sent < count:
            client.write_some(count - client.sent)
            server.read_some(3000)
            scene.turning.turn()
        client.half_close()
        assert client.written == server.read_to_end()

    def test_both_in_one_batch(self, begin: Begin) -> None:
        """Two ends that are seen at once are one orderly end."""
        scene = begin()
        scene.turning.settle()
        scene.client.half_close()
        scene.server.half_close()
        assert (0, 0, FlowEnd.CLOSED) == scene.total
        assert (b"", b"") == (scene.client.read_to_end(), scene.server.read_to_end())

    def test_both_with_data(self, begin: Begin) -> None:
        """Ends that cross lose nothing."""
        scene = begin()
        for peer in (scene.client, scene.server):
            peer.send(50_000)
            peer.half_close()
        assert scene.client.written == scene.server.read_to_end()
        assert scene.server.written == scene.client.read_to_end()
        assert (50_000, 50_000, FlowEnd.CLOSED) == scene.total


def sides(scene: Scene, which: str) -> tuple[Peer, Peer]:
    """Name one side and the other."""
    if which == "client":
        return scene.client, scene.server
    return scene.server, scene.client


RESETS = pytest.mark.parametrize(
    ("which", "end"), [("client", FlowEnd.CLIENT_RESET), ("server", FlowEnd.SERVER_RESET)]
)


class TestReset:
    @RESETS
    def test_silent(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """A reset of one side is a reset of the other."""
        scene = begin()
        scene.turning.settle()
        one, other = sides(scene, which)
        one.reset()
        assert b"" == other.read_to_reset()
        assert end is scene.end

    @RESETS
    def test_after_data(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """What was received before the reset is delivered before it."""
        scene = begin()
        one, other = sides(scene, which)
        one.send(MEBIBYTE // 4)
        one.wait_until_acknowledged()
        one.reset()
        assert one.written == other.read_to_reset()
        assert end is scene.end

    @RESETS
    def test_slow_reader(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """Nothing that the relay's kernel had is lost, though no buffer can hold it all."""
        scene = begin(buffers=SMALL_BUFFER)
        one, other = sides(scene, which)
        one.send_until_stopped()
        had = one.acknowledged
        one.reset()
        while len(other.got) < had // 2:
            other.read_some(2000)
            scene.turning.turn()
        got = other.read_to_reset()
        assert had <= len(got)
        assert one.written[: len(got)] == got
        assert end is scene.end

    @RESETS
    def test_big_buffers(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """Likewise where the kernel's buffers and the pipe hold megabytes."""
        scene = begin()
        one, other = sides(scene, which)
        one.send_until_stopped()
        had = one.acknowledged
        one.reset()
        scene.turning.settle()
        got = other.read_to_reset()
        assert had <= len(got)
        assert one.written[: len(got)] == got
        assert end is scene.end

    @RESETS
    def test_of_a_slow_reader(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """A reader that resets while the writer is held back: the writer is reset."""
        scene = begin(buffers=SMALL_BUFFER)
        one, other = sides(scene, which)
        other.send_until_stopped()
        one.reset()
        assert b"" == other.read_to_reset()
        assert end is scene.end

    @RESETS
    def test_both_held_back(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """A reset while neither side reads: the other gets it once it has read what came."""
        scene = begin(buffers=SMALL_BUFFER)
        one, other = sides(scene, which)
        one.send_until_stopped()
        other.send_until_stopped()
        had = one.acknowledged
        one.reset()
        got = other.read_to_reset()
        assert had <= len(got)
        assert one.written[: len(got)] == got
        assert end is scene.end

    @RESETS
    def test_half_closed_by_itself(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """A side that said all and then resets: the other is reset."""
        scene = begin()
        one, other = sides(scene, which)
        one.say(b"all")
        one.half_close()
        assert b"all" == other.read_to_end()
        one.reset()
        scene.turning.settle()
        if not scene.totals:
            other.write_some(1)
        assert end is scene.end

    @RESETS
    def test_half_closed_by_the_other(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """A side that resets instead of answering: the other is reset."""
        scene = begin()
        one, other = sides(scene, which)
        other.say(b"all")
        other.half_close()
        assert b"all" == one.read_to_end()
        one.send(100_000)
        one.wait_until_acknowledged()
        one.reset()
        assert one.written == other.read_to_reset()
        assert end is scene.end

    @RESETS
    def test_half_closed_and_held_back(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """Likewise while the answer waits for a slow reader."""
        scene = begin(buffers=SMALL_BUFFER)
        one, other = sides(scene, which)
        other.half_close()
        one.read_to_end()
        one.send_until_stopped()
        had = one.acknowledged
        one.reset()
        got = other.read_to_reset()
        assert had <= len(got)
        assert one.written[: len(got)] == got
        assert end is scene.end

    def test_both_in_one_batch(self, begin: Begin) -> None:
        """Two resets that are seen at once are one end."""
        scene = begin()
        scene.turning.settle()
        scene.client.reset()
        scene.server.reset()
        assert scene.end in {FlowEnd.CLIENT_RESET, FlowEnd.SERVER_RESET}

    def test_both_held_back_in_one_batch(self, begin: Begin) -> None:
        """Likewise while bytes of both wait."""
        scene = begin(buffers=SMALL_BUFFER)
        scene.client.send_until_stopped()
        scene.server.send_until_stopped()
        scene.client.reset()
        scene.server.reset()
        assert scene.end in {FlowEnd.CLIENT_RESET, FlowEnd.SERVER_RESET}

    @RESETS
    def test_with_an_end_in_one_batch(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """One side ends, the other resets, both seen at once: a reset."""
        scene = begin()
        scene.turning.settle()
        one, other = sides(scene, which)
        other.say(b"bye")
        other.half_close()
        one.reset()
        assert b"" == other.read_to_reset()
        assert end is scene.end

    @RESETS
    def test_reset_as_the_other_reads_on(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """Seen at once: a reset of one, and that the other takes and sends bytes again."""
        scene = begin(buffers=SMALL_BUFFER)
        one, other = sides(scene, which)
        one.send_until_stopped()
        had = one.acknowledged
        one.reset()
        while scene.totals == [] and len(other.got) < had:
            other.read_some()
            try:
                other.write_some(100)
            except ConnectionError:
                break
            scene.turning.turn()
        assert one.written[: len(other.got)] == other.got
        assert end is scene.end


class TestBackPressure:
    @pytest.mark.parametrize("which", ["client", "server"])
    def test_writer_is_stopped(self, begin: Begin, which: str) -> None:
        """A reader that never reads stops the writer; what waits is bounded."""
        # By the kernel's own measure (tcp_rmem) the sockets may hold 64 MiB.
        scene = begin(buffers=SMALL_BUFFER)
        one, other = sides(scene, which)
        sent = one.send_until_stopped()
        assert sent < 4 * MEBIBYTE
        one.half_close()
        assert one.written == other.read_to_end()

    def test_other_way_flows(self, begin: Begin) -> None:
        """A stopped direction does not stop the other."""
        scene = begin(buffers=SMALL_BUFFER)
        scene.client.send_until_stopped()
        for _ in range(10):
            scene.server.send(10_000)
            scene.client.read(10_000)
        assert scene.server.written == scene.client.got

    def test_reader_closes(self, begin: Begin) -> None:
        """A reader that never read and goes away ends the flow."""
        scene = begin(buffers=SMALL_BUFFER)
        scene.client.send_until_stopped()
        # With something unread, its close is a reset.
        arrived(scene.server.sock, select.POLLIN)
        scene.server.close()
        assert b"" == scene.client.read_to_reset()
        assert FlowEnd.SERVER_RESET is scene.end

    def test_tls_reader(self, begin_any: Begin) -> None:
        """What a TLS client doesn't read stops the server, too."""
        scene = begin_any()
        scene.server.send_until_stopped()
        count = scene.server.sent
        assert scene.server.written == scene.client.read(count)


class TestCounts:
    @RESETS
    def test_reset(self, begin: Begin, which: str, end: FlowEnd) -> None:
        """The counts of a reset relay are what was handed on."""
        scene = begin()
        one, other = sides(scene, which)
        one.send(300_000)
        one.wait_until_acknowledged()
        other.say(b"nothing much")
        one.read(12)
        one.reset()
        other.read_to_reset()
        sent, received, _ = scene.total
        assert (300_000, 12) == ((sent, received) if which == "client" else (received, sent))

    def test_while_it_runs(self, begin: Begin) -> None:
        """A relay can be asked for its totals at any time."""
        scene = begin()
        scene.client.say(b"12345")
        scene.server.read(5)
        assert Totals(5, 0, None) == scene.running.totals


class TestAbort:
    def test_resets_both(self, begin_any: Begin) -> None:
        """An abort resets both sides at once, with the reason that was given."""
        scene = begin_any()
        scene.running.abort(FlowEnd.PROXY_LOOP_DETECTED)
        assert FlowEnd.PROXY_LOOP_DETECTED is scene.end
        if not isinstance(scene.client, TlsPeer):
            assert b"" == scene.client.read_to_reset()
        assert b"" == scene.server.read_to_reset()

    def test_twice(self, begin: Begin) -> None:
        """The first end is the cause; a second one changes nothing."""
        scene = begin()
        scene.running.abort(FlowEnd.SHUTDOWN)
        scene.running.abort(FlowEnd.PROTOCOL_ERROR)
        assert FlowEnd.SHUTDOWN is scene.end

    def test_held_back(self, begin: Begin) -> None:
        """Bytes that wait are dropped."""
        scene = begin(buffers=SMALL_BUFFER)
        scene.client.send_until_stopped()
        scene.server.send_until_stopped()
        scene.running.abort(FlowEnd.SHUTDOWN)
        assert FlowEnd.SHUTDOWN is scene.end
        scene.server.read_to_reset()
        assert len(scene.server.got) < scene.client.sent

    def test_after_the_end(self, begin: Begin) -> None:
        """Nor does an abort after the end."""
        scene = begin()
        scene.client.close()
        scene.server.close()
        end = scene.end
        scene.running.abort(FlowEnd.SHUTDOWN)
        scene.turning.settle()
        assert [end] == [totals.end for totals in scene.totals]

    def test_on_its_way_to_a_reset(self, begin: Begin) -> None:
        """An abort while the last bytes before a reset are read is not a second end."""
        scene = begin(buffers=SMALL_BUFFER)
        scene.client.send_until_stopped()
        scene.client.reset()
        scene.turning.settle()
        scene.running.abort(FlowEnd.SHUTDOWN)
        assert scene.end in {FlowEnd.SHUTDOWN, FlowEnd.CLIENT_RESET}


class TestLimits:
    def test_idle(self, begin: Begin) -> None:
        """A relay without a byte for the limit's time is ended."""
        scene = begin(idle_timeout=0.02)
        assert FlowEnd.IDLE_TIMEOUT is scene.end
        assert (b"", b"") == (scene.client.read_to_reset(), scene.server.read_to_reset())

    def test_not_idle(self, begin: Begin) -> None:
        """A relay is not idle while bytes move."""
        scene = begin(idle_timeout=3600)
        scene.client.say(b"12345")
        scene.server.read(5)
        scene.client.half_close()
        scene.server.read_to_end()
        scene.server.close()
        assert FlowEnd.CLOSED is scene.end

    def test_half_close(self, begin: Begin) -> None:
        """A side whose peer has ended may go on for so long and no longer."""
        scene = begin(half_close_timeout=0.02)
        scene.client.half_close()
        assert b"" == scene.server.read_to_end()
        assert FlowEnd.IDLE_TIMEOUT is scene.end

    def test_half_close_in_time(self, begin: Begin) -> None:
        """A side that ends before that is no cause for concern; no timer is left."""
        scene = begin(half_close_timeout=3600, idle_timeout=3600)
        scene.client.half_close()
        scene.server.read_to_end()
        scene.server.half_close()
        assert FlowEnd.CLOSED is scene.end

    def test_reset_leaves_no_timer(self, begin: Begin) -> None:
        """Nor does a reset leave one."""
        scene = begin(half_close_timeout=3600, idle_timeout=3600)
        scene.client.half_close()
        scene.server.read_to_end()
        scene.server.reset()
        assert FlowEnd.SERVER_RESET is scene.end


def tell(totals: list[Totals]) -> Callable[[Totals], None]:
    """Take note of totals."""
    return totals.append


class TestJoin:
    """Which engine is chosen, and what is done to the sides before."""

    def protocol(self, turning: Turning, sock: socket.socket) -> RelayProtocol:
        made = RelayProtocol(lambda _: None)
        adopt(turning.reactor, sock, made)
        return made

    def tls(self, turning: Turning, sock: socket.socket, identity: Identity) -> RelayProtocol:
        made = RelayProtocol(lambda _: None)
        adopt_tls(turning, sock, made, identity)
        return made

    @pytest.mark.parametrize("adopted", ["", "downstream", "upstream", "downstream upstream"])
    def test_plain_is_spliced(self, turning: Turning, engine: SplicedEngine, adopted: str) -> None:
        """Sockets, and Twisted transports of plain sockets, are joined by the kernel."""
        near, downstream = tcp_pair()
        far, upstream = tcp_pair()
        near.send(b"early ")
        down: Side = downstream
        up: Side = upstream
        if "downstream" in adopted:
            down = self.protocol(turning, downstream)
        if "upstream" in adopted:
            up = self.protocol(turning, upstream)
        turning.settle()
        joined = Joined()
        totals: list[Totals] = []
        start(engine, down, up, tell(totals), joined, to_upstream=b"earlier ")
        near.send(b"late")
        client, server = Peer(turning, near, 1), Peer(turning, far, 2)
        assert b"earlier early late" == server.read(18)
        assert isinstance(joined._relay, SplicedRelay)
        server.say(b"answer")
        assert b"answer" == client.read(6)
        near.close()
        assert b"earlier early late" == server.read_to_end()
        far.close()
        turning.until(lambda: totals)
        assert [(18, 6, FlowEnd.CLOSED)] == totals

    def test_tls_is_buffered(
        self, turning: Turning, engine: SplicedEngine, identity: Identity
    ) -> None:
        """A TLS side and a socket are joined by Twisted's transports."""
        near, downstream = tcp_pair()
        far, upstream = tcp_pair()
        joined = Joined()
        totals: list[Totals] = []
        down = self.tls(turning, downstream, identity)
        start(engine, down, upstream, tell(totals), joined, to_upstream=b"early ")
        client, server = TlsPeer(turning, near, 1, identity.cafile), Peer(turning, far, 2)
        client.shake_hands()
        client.say(b"late")
        assert b"early late" == server.read(10)
        assert isinstance(joined._relay, BufferedRelay)
        server.say(b"answer")
        far.close()
        assert b"answer" == client.read_to_end()
        client.close()
        turning.until(lambda: totals)
        assert [(10, 6, FlowEnd.CLOSED)] == totals

    def test_deferred(self, turning: Turning, engine: SplicedEngine) -> None:
        """`join` fires with the totals."""
        near, downstream = tcp_pair()
        far, upstream = tcp_pair()
        joined = join(engine, downstream, upstream, to_upstream=b"early")
        near.close()
        far.close()
        totals = turning.result(joined)
        assert isinstance(totals, Totals)

    def test_cancel_spliced(self, turning: Turning, engine: SplicedEngine) -> None:
        """Cancelling resets both sides."""
        near, downstream = tcp_pair()
        far, upstream = tcp_pair()
        joined = join(engine, downstream, upstream)
        joined.cancel()
        assert (0, 0, FlowEnd.SHUTDOWN) == turning.result(joined)
        assert b"" == Peer(turning, near, 1).read_to_reset()
        assert b"" == Peer(turning, far, 1).read_to_reset()
        near.close()
        far.close()

    def test_cancel_buffered(
        self, turning: Turning, engine: SplicedEngine, identity: Identity
    ) -> None:
        """Cancelling resets both sides; where that takes a moment, the Deferred doesn't wait."""
        near, downstream = tcp_pair()
        far, upstream = tcp_pair()
        joined = join(engine, self.tls(turning, downstream, identity), upstream)
        joined.cancel()
        with pytest.raises(CancelledError):
            turning.result(joined)
        assert b"" == Peer(turning, far, 1).read_to_reset()
        near.close()
        far.close()
        turning.settle()

    def test_cancel_before_it_started(self, turning: Turning, engine: SplicedEngine) -> None:
        """Taking sockets from their transports takes a moment; cancelling then works, too."""
        near, downstream = tcp_pair()
        far, upstream = tcp_pair()
        joined = join(engine, self.protocol(turning, downstream), upstream)
        joined.cancel()
        with pytest.raises(CancelledError):
            turning.result(joined)
        assert b"" == Peer(turning, near, 1).read_to_reset()
        assert b"" == Peer(turning, far, 1).read_to_reset()
        near.close()
        far.close()
        turning.settle()

    @pytest.mark.parametrize("which", ["downstream", "upstream"])
    def test_reset_before_joined(
        self, turning: Turning, engine: SplicedEngine, identity: Identity, which: str
    ) -> None:
        """A socket whose peer has gone already, joined with a TLS side, is a reset."""
        near, gone = tcp_pair()
        far, other = tcp_pair()
        near.send(b"last words")
        Peer(turning, near, 1).reset()
        arrived(gone)
        totals: list[Totals] = []
        tls = self.tls(turning, other, identity)
        down, up = (gone, tls) if which == "downstream" else (tls, gone)
        start(engine, down, up, tell(totals), Joined())
        turning.until(lambda: totals)
        ends = {"downstream": FlowEnd.CLIENT_RESET, "upstream": FlowEnd.SERVER_RESET}
        assert ends[which] is totals[0].end
        far.close()

    def test_reset_before_detached(self, turning: Turning, engine: SplicedEngine) -> None:
        """A transport whose peer has gone gives its socket away as well."""
        near, downstream = tcp_pair()
        far, upstream = tcp_pair()
        down = self.protocol(turning, downstream)
        near.send(b"last words")
        Peer(turning, near, 1).reset()
        totals: list[Totals] = []
        start(engine, down, upstream, tell(totals), Joined())
        assert b"last words" == Peer(turning, far, 2).read_to_reset()
        far.close()
        assert [(10, 0, FlowEnd.CLIENT_RESET)] == totals

    @pytest.mark.parametrize("kind", [Kind.SPLICED])
    def test_nothing_of_another(self, begin: Begin) -> None:
        """What waited in an aborted relay never shows in the next, whose pipe may be the same."""
        for _ in range(3):
            first = begin()
            first.client.send_until_stopped()
            first.running.abort(FlowEnd.SHUTDOWN)
            second = begin()
            second.server.send(4 * MEBIBYTE // 8)
            second.server.half_close()
            assert noise(2)[: MEBIBYTE // 2] == second.client.read_to_end()
