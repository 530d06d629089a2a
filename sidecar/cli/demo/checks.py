"""Whether what happened is what is claimed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from sidecar.cli.demo.origins import Event, Server
    from sidecar.cli.demo.playing import Played
    from sidecar.cli.demo.scenes import Scene, Step

__all__ = ["Happened", "faults", "faults_without"]


@dataclass(frozen=True)
class Happened:
    """What became of a scene.

    Attributes:
        played: The script, and what was seen of it.
        events: What reached servers.
        lines: The access log's.
    """

    played: Played
    events: Sequence[Event]
    lines: Sequence[dict[str, Any]]


def faults(scene: Scene, happened: Happened) -> list[str]:
    """Everything that is not as claimed, a sentence each.

    Args:
        scene: What was played.
        happened: What became of it.
    """
    played, events = happened.played, happened.events
    found = []
    if played.status != scene.status:
        found.append(f"the exit status is {played.status}, not {scene.status}")
    allowed = [step.allowed for step in scene.steps if step.allowed is not None]
    found += _arrival_faults(allowed, events)
    found += [
        f"{_where(event.server)} was reached by another than sidecar"
        for event in events
        if event.server is not None and not event.by_sidecar
    ]
    found += _name_faults(scene, events)
    lines = sum(bool(step.line) for step in scene.steps)
    if lines != len(happened.lines):
        found.append(f"the log has {len(happened.lines)} lines, not {lines}")
    statuses = (*played.statuses, *[None] * len(scene.steps))
    seen = " ".join(played.text.split())
    for step, status in zip(scene.steps, statuses, strict=False):
        found += _step_faults(step, status, seen)
        found += _line_faults(step, happened.lines)
    return found


def faults_without(scene: Scene, happened: Happened) -> list[str]:
    """Everything that doesn't get out even without sidecar, so that its absence shows nothing."""
    reached = [step.reaches for step in scene.steps if step.reaches is not None]
    found = list(_arrival_faults(reached, happened.events))
    heard = {event.name for event in happened.events}
    found += [
        f"the name server did not hear of {step.asks}"
        for step in scene.steps
        if step.asks and step.asks not in heard
    ]
    return [f"without sidecar, {each}" for each in found]


def _arrival_faults(expected: Sequence[Server], events: Sequence[Event]) -> Iterator[str]:
    arrived = [event.server for event in events if event.server is not None]
    for server in dict.fromkeys([*expected, *arrived]):
        there, wanted = arrived.count(server), expected.count(server)
        if there != wanted:
            yield f"{_where(server)} was reached {there} times, not {wanted}"


def _name_faults(scene: Scene, events: Sequence[Event]) -> Iterator[str]:
    known = {step.line["host"] for step in scene.steps if step.allowed is not None}
    for name in dict.fromkeys(event.name for event in events if event.server is None):
        if name not in known:
            yield f"the name server heard of {name!r}"


def _where(server: Server) -> str:
    return f"{server.kind.value} on {server.address}"


def _step_faults(step: Step, status: int | None, seen: str) -> Iterator[str]:
    client = " ".join(step.words)
    if status is None:
        yield f"there is nothing of {client!r}"
    elif (status != 0) != step.fails:
        yield f"{client!r} ended with status {status}"
    if step.allowed is not None and step.allowed.text not in seen:
        yield f"{client!r} did not show {step.allowed.text!r}"
    if step.shown not in seen:
        yield f"sidecar did not show {step.shown!r}"


def _line_faults(step: Step, lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not step.line:
        return
    where = step.line["destination"]
    of_it = [line for line in lines if (line["destination"], line["host"]) == _key(step)]
    if len(of_it) != 1:
        yield f"the log has {len(of_it)} lines for {where}, {step.line['host']}, not one"
        return
    for key, value in step.line.items():
        if of_it[0].get(key) != value:
            yield f"the log's {key} for {where} is {of_it[0].get(key)!r}, not {value!r}"


def _key(step: Step) -> tuple[str | None, str | None]:
    return step.line["destination"], step.line["host"]
