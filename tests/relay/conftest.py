"""What the relay's tests share: a reactor, an engine, scenes that clean up after themselves."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import pytest
from certificates import Identity, make_identity
from relay.transcripts import Kind, Scene, close_engine, close_scene, make_engine, open_scene
from turning import Turning, turning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sidecar.relay.spliced import SplicedEngine
    from sidecar.relay.totals import Totals

__all__ = ["Begin"]


class Begin(Protocol):
    """Makes a scene; it is cleared away after the test."""

    def __call__(
        self,
        *,
        buffers: int | None = None,
        before: Callable[[Scene], None] | None = None,
        done: Callable[[Totals], None] | None = None,
        idle_timeout: float | None = None,
        half_close_timeout: float | None = None,
    ) -> Scene: ...


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def engine(turning: Turning) -> Iterator[SplicedEngine]:
    made = make_engine(turning)
    yield made
    close_engine(made)


@pytest.fixture(params=[Kind.SPLICED, Kind.BUFFERED], ids=lambda kind: kind.name.lower())
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each engine over plain TCP."""
    kind: Kind = request.param
    return kind


@pytest.fixture(params=list(Kind), ids=lambda kind: kind.name.lower())
def any_kind(request: pytest.FixtureRequest) -> Kind:
    """Each engine, and TLS."""
    kind: Kind = request.param
    return kind


def _beginner(
    stack: ExitStack, turning: Turning, engine: SplicedEngine, kind: Kind, identity: Identity
) -> Begin:
    def begin(
        *,
        buffers: int | None = None,
        before: Callable[[Scene], None] | None = None,
        done: Callable[[Totals], None] | None = None,
        idle_timeout: float | None = None,
        half_close_timeout: float | None = None,
    ) -> Scene:
        engine.idle_timeout = idle_timeout
        engine.half_close_timeout = half_close_timeout
        scene = open_scene(
            turning,
            engine,
            kind,
            buffers=buffers,
            identity=identity if kind is Kind.TLS else None,
            before=before,
            done=done,
        )
        stack.callback(close_scene, scene)
        return scene

    return begin


@pytest.fixture
def begin(
    turning: Turning, engine: SplicedEngine, kind: Kind, identity: Identity
) -> Iterator[Begin]:
    """Scenes on each engine."""
    with ExitStack() as stack:
        yield _beginner(stack, turning, engine, kind, identity)


@pytest.fixture
def begin_any(
    turning: Turning, engine: SplicedEngine, any_kind: Kind, identity: Identity
) -> Iterator[Begin]:
    """Scenes on each engine and over TLS."""
    with ExitStack() as stack:
        yield _beginner(stack, turning, engine, any_kind, identity)
