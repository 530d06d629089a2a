"""What one flow, or one DNS question, looks like as a line of the access log.

docs/reference/access-log.md says what each key means, access-log.schema.json
beside it which values there are.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
from zope.interface import implementer

from sidecar.flow import (
    DestinationSource,
    Flow,
    FlowEnd,
    HostSource,
    ListenerKind,
    Protocol,
    Verdict,
)
from sidecar.interfaces import IDNSObserver, IFlowObserver
from sidecar.observe.line_writer import LineWriter
from sidecar.observe.styles import printable

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from sidecar.lookups import Lookup

__all__ = ["BATCH_LINES", "FLUSH_DELAY", "AccessLog", "Client", "LookupRecord", "Record"]

# Seconds that a line may wait for company: long enough to write once for many
# flows, too short for a reader to notice.
FLUSH_DELAY = 0.05
# Lines written at once, some 50 KiB. The writer's thread wakes up once for all.
BATCH_LINES = 128

_MICROSECONDS = 1_000_000
# A hello may list thousands of protocols; clients offer two or three.
_ALPN_MAX = 16
# Characters; a registered one has at most 16 (IANA's ALPN registry), escaped ones more.
_ALPN_NAME_MAX = 64
# Characters. Longer than any registered method (IANA: 17) and most paths; a line stays
# below the 4096 bytes that enter a pipe in one piece (PIPE_BUF).
_METHOD_MAX = 32
_PATH_MAX = 1024
# Of a name; an answer may have thousands.
_ADDRESSES_MAX = 16
# Characters, of 15 bytes that the kernel keeps of it.
_COMMAND_MAX = 64


class Client(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The process that connected."""

    pid: int
    command: str


class Record(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    """One line, keys in this order; the last three only where there is something to say."""

    v: int
    time: str
    id: str
    listener: ListenerKind
    source: str | None
    destination: str | None
    destination_from: DestinationSource | None
    protocol: Protocol
    host: str | None
    host_from: HostSource | None
    alpn: tuple[str, ...]
    ja4: str | None
    verdict: Verdict
    reason: str
    rule: str | None
    upstream: str | None
    sent: int
    received: int
    seconds: float
    end: FlowEnd | None
    process: Client | None
    method: str | None = None
    path: str | None = None
    status: int | None = None

    @classmethod
    def from_flow(cls, flow: Flow, *, paths: bool = False) -> Record:
        """Take down a flow that has ended.

        Args:
            flow: Its facts.
            paths: Whether HTTP requests are taken down with their path and query.
        """
        source, destination, upstream = flow.source, flow.destination, flow.upstream
        method, target, process = flow.method, flow.target if paths else None, flow.process
        # By position: twenty keywords would cost as much as all the rest.
        return cls(
            1,
            _timestamp(flow.started),
            flow.id,
            flow.listener,
            None if source is None else str(source),
            None if destination is None else str(destination),
            flow.destination_from,
            flow.protocol,
            flow.host,
            flow.host_from,
            _protocols(flow.alpn) if flow.alpn else (),
            flow.ja4,
            flow.verdict,
            flow.reason,
            flow.rule,
            None if upstream is None else str(upstream),
            flow.sent,
            flow.received,
            int(flow.seconds * _MICROSECONDS) / _MICROSECONDS,
            flow.end,
            None if process is None else Client(process.pid, printable(process.name, _COMMAND_MAX)),
            None if method is None else _method(method),
            None if target is None else _escape(target, _PATH_MAX),
            flow.status,
        )


class LookupRecord(
    msgspec.Struct,
    frozen=True,
    gc=False,
    forbid_unknown_fields=True,
    tag_field="listener",
    tag="dns",
):
    """The line of a DNS question, which is told from a flow's by its listener."""

    v: int
    time: str
    source: str | None
    server: str | None
    name: str
    type: str
    rcode: str
    verdict: Verdict
    reason: str
    rule: str | None
    addresses: tuple[str, ...]
    withheld: tuple[str, ...]
    problem: str | None
    seconds: float

    @classmethod
    def from_lookup(cls, lookup: Lookup) -> LookupRecord:
        """Take down a question that was answered a moment ago."""
        return cls(
            1,
            _timestamp(time.time() - lookup.seconds),
            None if lookup.source is None else str(lookup.source),
            lookup.server,
            lookup.name,
            lookup.type,
            lookup.rcode,
            lookup.verdict,
            lookup.reason,
            lookup.rule,
            lookup.addresses[:_ADDRESSES_MAX],
            lookup.withheld[:_ADDRESSES_MAX],
            lookup.problem or None,
            int(lookup.seconds * _MICROSECONDS) / _MICROSECONDS,
        )


@implementer(IFlowObserver, IDNSObserver)
class AccessLog:
    """Write a line for each flow that ends, and each DNS question that the policy is asked about.

    Args:
        descriptor: Where to; `sidecar.observe.line_writer.open_log` opens one.
            Closed by `stop`.
        clock: Times the batches.
        backlog: Lines kept while they can't be written; beyond it they are dropped
            and counted.
        paths: Whether HTTP requests are logged with their path and query, which may
            hold what is nobody's business.
    """

    def __init__(
        self, descriptor: int, clock: IReactorTime, *, backlog: int, paths: bool = False
    ) -> None:
        self._clock = clock
        self._paths = paths
        self._writer = LineWriter(descriptor, clock, name="access log", backlog=backlog)
        self._batch_lines = min(BATCH_LINES, backlog)
        self._batch: list[Record | LookupRecord] = []
        self._flush_call: IDelayedCall | None = None
        self._encode_lines = msgspec.json.Encoder().encode_lines

    @property
    def dropped(self) -> int:
        """How many lines will never be written."""
        return self._writer.dropped

    def flow_ended(self, flow: Flow) -> None:
        """Log a flow's end; costs microseconds, and never waits."""
        self._add(Record.from_flow(flow, paths=self._paths))

    def lookup_ended(self, lookup: Lookup) -> None:
        """Log a DNS question, likewise; not what is answered without anybody being asked."""
        if lookup.forwarded or lookup.verdict is Verdict.DENY:
            self._add(LookupRecord.from_lookup(lookup))

    def _add(self, record: Record | LookupRecord) -> None:
        batch = self._batch
        batch.append(record)
        if len(batch) >= self._batch_lines:
            self.flush()
        elif self._flush_call is None:
            self._flush_call = self._clock.callLater(FLUSH_DELAY, self._flush_later)

    def flush(self) -> None:
        """Hand the lines gathered so far to the writer."""
        batch = self._batch
        if batch:
            self._batch = []
            self._writer.write(self._encode_lines(batch), len(batch))

    def stop(self) -> Deferred[None]:
        """Write what there is, within a bounded time, and close the log.

        Returns:
            Fires with None at the latest after STOP_TIMEOUT seconds; never fails.
        """
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush_call = None
        self.flush()
        # What ends later is counted as dropped at once and sets no timer.
        self._batch_lines = 1
        return self._writer.stop()

    def _flush_later(self) -> None:
        self._flush_call = None
        self.flush()


# The registered methods are few; those that clients invent would otherwise be kept.
@lru_cache(maxsize=64)
def _method(method: bytes) -> str:
    return _escape(method, _METHOD_MAX)


def _escape(text: bytes, length: int) -> str:
    r"""Write a peer's bytes in printable ASCII, others as ``\xNN``, cut to a length."""
    shown = text[:length].decode("latin-1")
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(each if " " <= each <= "~" else f"\\x{ord(each):02x}" for each in shown)
    return shown[:length]


def _protocols(alpn: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(protocol[:_ALPN_NAME_MAX] for protocol in alpn[:_ALPN_MAX])


# Flows end in another order than they started: a day's long connections may end in
# one second. Hence some hundreds of seconds and not one.
@lru_cache(maxsize=512)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))


_milliseconds = tuple(f"{number:03}Z" for number in range(1000))


def _timestamp(seconds: float) -> str:
    """Write seconds since the epoch as ISO 8601 in UTC with milliseconds."""
    second, millisecond = divmod(round(seconds * 1000), 1000)
    return _second(second) + _milliseconds[millisecond]
