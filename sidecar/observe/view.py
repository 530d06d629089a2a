"""All that is shown of one run: lines while it lasts, a summary at its end."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.defer import succeed
from zope.interface import implementer

from sidecar.errors import SummaryError
from sidecar.interfaces import IDNSObserver
from sidecar.observe.processes import ProcessNames
from sidecar.observe.requests import ByConnection
from sidecar.observe.several import Observers
from sidecar.observe.styles import Look
from sidecar.observe.summary import Format, write_summary
from sidecar.observe.tally import Tally
from sidecar.observe.terminal import TerminalView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from sidecar.addresses import SocketAddress
    from sidecar.flow import Process
    from sidecar.interfaces import IFlowObserver
    from sidecar.lookups import Lookup

__all__ = ["SummaryFile", "View"]


class SummaryFile(NamedTuple):
    """A file for the summary.

    Attributes:
        descriptor: To append to; closed once that is done.
        path: What the user calls it.
    """

    descriptor: int
    path: str


@implementer(IDNSObserver)
class View:
    """What is shown of one run.

    Args:
        descriptor: Where; stays the caller's.
        reactor: Times the lines.
        look: How lines look.
        form: How the summary is written.
        quiet: Whether to show no lines, but the summary.
        file: Where the summary goes; None for `descriptor`.
        find_process: Finds who opened a connection, by both its ends; None if nobody can.

    Attributes:
        observers: To be told of flows, in this order.
        tally: Counts them.
    """

    def __init__(
        self,
        descriptor: int,
        reactor: IReactorTime,
        look: Look,
        form: Format,
        *,
        quiet: bool = False,
        file: SummaryFile | None = None,
        find_process: Callable[[SocketAddress, SocketAddress], Process | None] | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._look = look
        self._form = form
        self._file = file
        self._terminal = None if quiet else TerminalView(descriptor, reactor, look)
        self.tally = Tally()
        observers: list[IFlowObserver] = []
        if find_process is not None:
            observers.append(ProcessNames(find_process))
        if self._terminal is None:
            observers.append(ByConnection(self.tally))
        else:
            both = Observers([self.tally, self._terminal])
            observers.append(ByConnection(both, self._terminal.forget))
        self.observers: Sequence[IFlowObserver] = tuple(observers)

    def lookup_ended(self, lookup: Lookup) -> None:
        """Take note of a DNS question that was answered or refused."""
        self.tally.lookup_ended(lookup)
        if self._terminal is not None:
            self._terminal.lookup_ended(lookup)

    def stop(self) -> Deferred[None]:
        """Show the last lines; call it when the command is over and its flows have ended.

        Returns:
            Fires with None within some seconds; never fails.
        """
        return succeed(None) if self._terminal is None else self._terminal.stop()

    def finish(self, command: Sequence[str], status: int | None) -> None:
        """Write the summary; call it last, without the reactor: it may have to wait.

        Args:
            command: What was run.
            status: Its exit status; None if there is none.

        Raises:
            SummaryError: The summary's file can't be written.
        """
        file = self._file
        look = self._look if file is None else Look(arrows=self._look.arrows)
        text = write_summary(self.tally.summary(command, status), self._form, look)
        if file is None:
            # A reader that has gone is no reason for another exit status.
            with suppress(OSError):
                _write_all(self._descriptor, text.encode("utf-8", "backslashreplace"))
        else:
            # What another step wrote may not have ended its line; JSON is a line after the other.
            apart = self._form is not Format.JSON and os.fstat(file.descriptor).st_size > 0
            _append(file, f"\n{text}" if apart else text)


def _append(file: SummaryFile, text: str) -> None:
    try:
        _write_all(file.descriptor, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise SummaryError(file.path, error.strerror or str(error)) from None
    finally:
        os.close(file.descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write it, also where the command has made our terminal non-blocking."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while data:
        poll.poll()
        with suppress(BlockingIOError):
            data = data[os.write(descriptor, data) :]
