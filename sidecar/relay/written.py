"""When has a Twisted transport written everything that it was given?"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import IPullProducer
from twisted.protocols.policies import ProtocolWrapper
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.abstract import FileDescriptor

__all__ = ["when_written"]


def when_written(transport: object, written: Callable[[], None]) -> None:
    """Be called once everything is handed to the kernel; never before this returns.

    Args:
        transport: Of a socket, or wrapped around one (TLS, what was written to it has
            been encrypted); without a producer, and given none until then.
        written: Called once, unless the transport is lost before.
    """
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    stream = cast("FileDescriptor", transport)
    stream.registerProducer(_WhenWritten(stream, written), False)
    stream.startWriting()


@implementer(IPullProducer)
class _WhenWritten:
    """Calls back when asked for more.

    A pull producer is asked when all before is written, and once before that, when
    it is registered.
    """

    def __init__(self, transport: FileDescriptor, written: Callable[[], None]) -> None:
        self._transport = transport
        self._written = written
        self._calls = 0

    def resumeProducing(self) -> None:
        """Everything before us is written, or we have just been registered."""
        self._calls += 1
        if self._calls == 2:  # noqa: PLR2004 - the second time
            self._transport.unregisterProducer()
            self._written()

    def stopProducing(self) -> None:
        """The transport is gone."""
