"""Whether what happened is what is claimed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.cli.demo.scenes import Meets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sidecar.cli.demo.origins import Visit
    from sidecar.cli.demo.proxy import LogLine
    from sidecar.cli.demo.scenes import Scene

__all__ = ["Happened", "claim", "faults"]

_RESET = "ConnectionResetError"
# What a client meets without a proxy: the kernel refuses (NAT to a port that nobody
# listens on), or the rules drop (TPROXY).
_NO_PROXY = {"redirect": "ConnectionRefusedError", "tproxy": "TimeoutError"}


@dataclass(frozen=True)
class Happened:
    """What became of a client.

    Attributes:
        status: The client's exit status.
        output: What it printed.
        complaint: The last line of what it complained about; empty if about nothing.
        line: The access log's line; None if there was none.
        visits: The connections that any of the servers saw.
    """

    status: int
    output: str
    complaint: str
    line: LogLine | None
    visits: tuple[Visit, ...]


def claim(scene: Scene, happened: Happened) -> str:
    """What `faults` finds nothing wrong with, in words."""
    if scene.meets is Meets.ORIGIN:
        (visit,) = happened.visits
        return (
            "the log has the destination that was dialled and the octets that the server"
            f" counted; the server's peer {visit.peer} is a socket of the proxy's"
        )
    if scene.meets is Meets.NOBODY:
        return "the client got nowhere, and no server saw anybody"
    return "the client was reset, no server saw anybody, and the log says why"


def faults(scene: Scene, happened: Happened, mode: str) -> list[str]:
    """Everything that is not as claimed, a sentence each.

    Args:
        scene: What was played.
        happened: What became of it.
        mode: "tproxy" or "redirect".
    """
    if scene.meets is Meets.ORIGIN:
        return [*_client_faults(happened), *_log_faults(scene, happened, _relayed(scene, mode))]
    found = [f"{visit.peer} reached a server" for visit in happened.visits]
    expected = _NO_PROXY[mode] if scene.meets is Meets.NOBODY else _RESET
    if happened.status == 0 or expected not in happened.complaint:
        found.append(f"the client should have failed with {expected}")
    if scene.meets is Meets.NOBODY:
        return found + (["there is a log line"] if happened.line else [])
    return [*found, *_log_faults(scene, happened, _refused(scene, mode))]


def _client_faults(happened: Happened) -> Iterator[str]:
    if happened.status != 0:
        yield f"the client failed with status {happened.status}"
    if len(happened.visits) != 1:
        yield f"the server saw {len(happened.visits)} connections, not one"
        return
    (visit,) = happened.visits
    if happened.output != visit.text:
        yield f"the client got something else than the server's {visit.text!r}"
    if not visit.by_proxy:
        yield f"the server's peer {visit.peer} is no socket of the proxy's"


def _log_faults(scene: Scene, happened: Happened, expected: dict[str, Any]) -> Iterator[str]:
    if happened.line is None:
        yield "the log has no line of it"
        return
    fields = happened.line.fields
    if scene.meets is Meets.ORIGIN and len(happened.visits) == 1:
        (visit,) = happened.visits
        expected = {**expected, "sent": visit.received, "received": visit.sent}
        if fields.get("source") == str(visit.peer):
            yield "the server saw the client itself"
    for key, value in expected.items():
        if fields.get(key) != value:
            yield f"the log's {key} is {fields.get(key)!r}, not {value!r}"


def _relayed(scene: Scene, mode: str) -> dict[str, Any]:
    dialled = str(scene.dialled)
    return {
        "listener": "outbound",
        "destination": dialled,
        "destination_from": mode,
        "upstream": dialled,
        "verdict": "allow",
        "end": "closed",
    }


def _refused(scene: Scene, mode: str) -> dict[str, Any]:
    nothing = {"destination": str(scene.dialled), "sent": 0, "received": 0}
    if scene.meets is Meets.DENIAL:
        return {**nothing, "verdict": "deny", "reason": "not_intercepted", "end": "denied"}
    return {**nothing, "destination_from": mode, "end": "connection_refused"}
