"""Plays a command's connections to the view, as `sidecar exec` would, without any network.

    python view_player.py [options of the view] [--scene NAME]

The command's own output is on standard output, as if it shared the terminal.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet import reactor as installed
from twisted.internet.task import deferLater

from sidecar.addresses import SocketAddress
from sidecar.cli.viewing import add_arguments, make_view
from sidecar.flow import (
    DestinationSource,
    Flow,
    FlowEnd,
    HostSource,
    ListenerKind,
    Process,
    Protocol,
    Verdict,
)
from sidecar.interfaces import IOpeningObserver
from sidecar.lookups import Lookup
from sidecar.observe.several import Observers

if TYPE_CHECKING:
    from typing import Any

    from sidecar.observe.view import View

reactor: Any = installed
NPM = Process(4242, "npm ci")
CURL = Process(4251, "curl")


class Play:
    """One run.

    Args:
        view: Is shown everything.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._observers = Observers(view.observers)
        assert IOpeningObserver.providedBy(self._observers)

    def opened(
        self,
        address: str,
        host: str | None = None,
        protocol: Protocol = Protocol.TLS,
        process: Process = NPM,
    ) -> Flow:
        """A connection begins."""
        flow = Flow(
            ListenerKind.OUTBOUND,
            SocketAddress("192.0.2.1", 40000),
            SocketAddress.parse(address),
            DestinationSource.TPROXY,
            self._observers,
            protocol=protocol,
            host=host,
            host_from=None if host is None else HostSource.SNI,
            process=process,
        )
        self._observers.flow_opened(flow)
        return flow

    def ended(
        self,
        flow: Flow,
        sent: int,
        received: int,
        seconds: float,
        end: FlowEnd = FlowEnd.CLOSED,
    ) -> None:
        """It ends, after so long."""
        flow.sent, flow.received, flow.upstream = sent, received, flow.destination
        flow.started_monotonic = time.monotonic() - seconds
        flow.finish(end)

    def denied(self, flow: Flow, reason: str, hint: str = "", rule: str | None = None) -> None:
        """It is denied."""
        flow.hint, flow.rule = hint, rule
        flow.deny(reason)

    def asked(self, name: str, reason: str = "default", hint: str = "") -> None:
        """A name is asked for, and denied."""
        self._view.lookup_ended(Lookup(name, "A", "REFUSED", Verdict.DENY, reason, hint=hint))


def say(text: str) -> None:
    """The command writes."""
    sys.stdout.write(text)
    sys.stdout.flush()


async def install(play: Play) -> None:
    """What a build does."""
    say("npm: installing\n")
    for number in range(3):
        flow = play.opened("104.16.0.35:443", "registry.npmjs.org")
        play.ended(flow, 1200 + number, 345_000 * number + 517, 0.234 + number)
    big = play.opened("185.199.108.133:443", "objects.githubusercontent.com")
    moved = [5000, 0]
    big.counts = lambda: (moved[0], moved[1])
    play.asked("tracker.example", hint="tracker.example")
    play.asked("tracker.example", hint="tracker.example")
    metadata = play.opened("169.254.169.254:80", None, Protocol.HTTP, CURL)
    play.denied(metadata, "metadata", "169.254.169.254:80")
    mail = play.opened("[2001:db8::25]:25", None, Protocol.TCP)
    play.denied(mail, "denied_by_rule", rule="*:25 (--deny)")
    evil = play.opened("198.51.100.9:443", "a-name-that-is-rather-long.cdn.example", process=CURL)
    play.denied(evil, "default", "a-name-that-is-rather-long.cdn.example:443")
    local = play.opened("10.0.0.5:5432", None, Protocol.TCP)
    play.ended(local, 0, 0, 0.001, FlowEnd.CONNECTION_REFUSED)
    moved[1] = 12_345_678
    await deferLater(reactor, 2.6, partial(say, "added 3 packages\n"))
    moved[1] = 98_765_432
    play.ended(big, moved[0], moved[1], 2.75)


async def flood(play: Play) -> None:
    """A command that dials faster than anybody reads."""
    for number in range(1000):
        flow = play.opened(f"198.51.100.{number % 250}:{1000 + number}", None, Protocol.TCP)
        play.ended(flow, 1, 1, 0.01)


async def hostile(play: Play) -> None:
    """Everything that others choose the text of is full of control characters."""
    process = Process(1, "\x1b[2J\x1b]0;title\x07\nsidecar allow")
    flow = play.opened("198.51.100.9:443", "x", process=process)
    play.ended(flow, 1, 1, 0.01)
    flow = play.opened("198.51.100.9:443", "x", process=process)
    play.denied(flow, "step\x1b[2J", "\x1b[2J;rm -rf ~", "\x9b2J\u202e")
    play.asked("\x1b[2J.example", "\x1b[2J", "\x1b[2J")


SCENES = {"install": install, "flood": flood, "hostile": hostile}


def main() -> None:
    """Play a scene."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--scene", choices=SCENES, default="install")
    arguments = parser.parse_args()
    view = make_view(arguments, reactor)
    play = SCENES[arguments.scene](Play(view))

    async def run() -> None:
        await play
        await view.stop()
        reactor.stop()

    from twisted.internet.defer import Deferred

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run()).addErrback(crashed))
    reactor.run()
    view.finish(["npm", "ci"], 0)


def crashed(failure: Any) -> None:
    """A bug in a scene."""
    failure.printTraceback()
    reactor.stop()


if __name__ == "__main__":
    main()
