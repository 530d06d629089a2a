from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest
from relay.transcripts import Peer, tcp_pair
from support import arrived
from turning import Turning, turning

from sidecar.flow import Protocol
from sidecar.protocols import lingering
from sidecar.protocols.denials import refuse
from sidecar.protocols.lingering import Lingerers
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def runtime(turning: Turning) -> Iterator[Runtime]:
    made = Runtime.make(turning.reactor, mark=None)
    yield made
    made.close()


class Scene:
    """A client that is denied while it uploads.

    Attributes:
        client: The client.
        connection: Its connection.
        others: Those that are heard out.
    """

    def __init__(self, turning: Turning, runtime: Runtime, others: Lingerers) -> None:
        near, self.connection = tcp_pair()
        self.client = Peer(turning, near, 1)
        self.others = others
        self._runtime = runtime

    def refuse(self) -> None:
        """Deny it."""
        refuse(self.connection, Protocol.HTTP, "denied", self._linger)

    def _linger(self, connection: socket.socket) -> None:
        self.others.linger(self._runtime, connection)

    @property
    def open(self) -> bool:
        """Whether it is heard out yet."""
        return self.connection.fileno() != -1


@pytest.fixture
def scene(turning: Turning, runtime: Runtime) -> Iterator[Scene]:
    made = Scene(turning, runtime, Lingerers())
    yield made
    made.client.close()


class TestHeardOut:
    def test_upload(self, turning: Turning, scene: Scene) -> None:
        """A client that first uploads and then reads gets its answer, no reset."""
        scene.client.send(1 << 16)
        scene.refuse()
        scene.client.send(8 << 20)
        scene.client.half_close()
        assert scene.client.read_to_end().endswith(b"denied\n")
        turning.until(lambda: not scene.open)
        assert 0 == scene.others.count

    def test_half_closed(self, scene: Scene) -> None:
        """It hears at once that nothing more comes, however long it goes on."""
        scene.refuse()
        assert scene.client.read_to_end().endswith(b"denied\n")
        assert (True, 1) == (scene.open, scene.others.count)

    def test_ended_before(self, scene: Scene) -> None:
        """A client that has said its last byte needs no waiting."""
        scene.client.half_close()
        arrived(scene.connection, select.POLLIN)
        scene.refuse()
        assert not scene.open
        assert scene.client.read_to_end().endswith(b"denied\n")

    def test_reset(self, turning: Turning, scene: Scene) -> None:
        """One that resets is gone."""
        scene.refuse()
        scene.client.reset()
        turning.until(lambda: not scene.open)
        assert 0 == scene.others.count


class TestBounded:
    def test_time(self, turning: Turning, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not for ever."""
        monkeypatch.setattr(lingering, "LINGER_SECONDS", 0.01)
        scene.refuse()
        turning.until(lambda: not scene.open)
        assert 0 == scene.others.count

    def test_bytes(self, turning: Turning, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not whatever it sends."""
        monkeypatch.setattr(lingering, "LINGER_BYTES", 1 << 16)
        scene.refuse()
        scene.client.send(1 << 16)
        turning.until(lambda: not scene.open)
        assert 0 == scene.others.count

    def test_number(self, turning: Turning, runtime: Runtime) -> None:
        """Not all at once: one too many is closed, its answer sent."""
        others = Lingerers(1)
        scenes = [Scene(turning, runtime, others) for _ in range(2)]
        for scene in scenes:
            scene.refuse()
            assert scene.client.read_to_end().endswith(b"denied\n")
        assert [True, False] == [scene.open for scene in scenes]
        for scene in scenes:
            scene.client.close()

    def test_shut_down(self, runtime: Runtime, scene: Scene) -> None:
        """Not beyond the process's end."""
        scene.refuse()
        runtime.close()
        assert (False, 0) == (scene.open, scene.others.count)
