from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from observe.stopping import stop_writing
from support import open_descriptors, wait_for
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
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
from sidecar.interfaces import IFlowObserver
from sidecar.lookups import Lookup
from sidecar.observe.access_log import (
    BATCH_LINES,
    FLUSH_DELAY,
    AccessLog,
    LookupRecord,
    Record,
    _timestamp,
)
from sidecar.observe.line_writer import REPORT_INTERVAL, open_log

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

CLIENT = SocketAddress("192.0.2.7", 40000)
SERVER = SocketAddress("2001:db8::1", 443)


@cache
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((REFERENCE / "access-log.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def ended(end: FlowEnd = FlowEnd.CLOSED, **facts: Any) -> Flow:
    """A flow that has ended."""
    flow = Flow(ListenerKind.OUTBOUND, CLIENT, SERVER, DestinationSource.TPROXY, **facts)
    flow.finish(end)
    return flow


class Log:
    """An access log in a file, with time under control."""

    def __init__(self, path: Path, backlog: int = 1000, paths: bool = False) -> None:
        self.path = path
        self.clock = Clock()
        self.log = AccessLog(open_log(str(path)), self.clock, backlog=backlog, paths=paths)

    def text(self) -> str:
        """What has been written when the writer is done."""
        wait_for(lambda: self.log._writer.pending == 0)
        return self.path.read_text()

    def stop(self) -> None:
        """Stop the log."""
        stop_writing(self.log._writer, self.log.stop, self.clock)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "log")
    yield log
    log.stop()


class TestLine:
    def test_whole(self) -> None:
        """A line has the documented keys, in order, each with its fact."""
        flow = ended(started=1_700_000_000.25, serial=0x1F, upstream=SERVER)
        flow.sent, flow.received, flow.seconds = 517, 4096, 0.25
        expected = (
            '{"v":1,"time":"2023-11-14T22:13:20.250Z","id":"@","listener":"outbound",'
            '"source":"192.0.2.7:40000","destination":"[2001:db8::1]:443",'
            '"destination_from":"tproxy","protocol":"tcp","host":null,"host_from":null,'
            '"alpn":[],"ja4":null,"verdict":"allow","reason":"default","rule":null,'
            '"upstream":"[2001:db8::1]:443","sent":517,"received":4096,"seconds":0.25,'
            '"end":"closed","process":null}'
        )
        assert flow.id.endswith("-1f")
        expected = expected.replace("@", flow.id)
        assert expected == msgspec.json.encode(Record.from_flow(flow)).decode()

    def test_names(self) -> None:
        """A flow that was peeked at shows what its client asked for, and which rule decided."""
        flow = ended(
            protocol=Protocol.TLS,
            host="api.example.org",
            host_from=HostSource.SNI,
            alpn=("h2", "http/1.1"),
            ja4="t13d1516h2_8daaf6152771_02713d6af862",
            reason="rule",
            rule="*.example.org:443 (policy.toml:3)",
        )
        line = msgspec.json.encode(Record.from_flow(flow)).decode()
        assert (
            '"protocol":"tls","host":"api.example.org","host_from":"sni",'
            '"alpn":["h2","http/1.1"],"ja4":"t13d1516h2_8daaf6152771_02713d6af862",'
            '"verdict":"allow","reason":"rule","rule":"*.example.org:443 (policy.toml:3)"'
        ) in line
        validator().validate(json.loads(line))

    def test_many_protocols(self) -> None:
        """Of a list of protocols that is no client's, the line has the beginning."""
        offered = tuple(f"p{number}" for number in range(4000))
        line = msgspec.json.encode(Record.from_flow(ended(alpn=offered)))
        validator().validate(json.loads(line))
        assert list(offered[:16]) == json.loads(line)["alpn"]

    def test_request(self) -> None:
        """An HTTP request's line ends with method, path (if that is wanted) and status."""
        flow = ended(method=b"GET", target=b"/a?b=c", status=200)
        line = msgspec.json.encode(Record.from_flow(flow, paths=True)).decode()
        assert line.endswith('"process":null,"method":"GET","path":"/a?b=c","status":200}')
        validator().validate(json.loads(line))
        line = msgspec.json.encode(Record.from_flow(flow)).decode()
        assert line.endswith('"process":null,"method":"GET","status":200}')
        validator().validate(json.loads(line))

    @given(method=st.binary(min_size=1), target=st.binary(min_size=1))
    def test_request_of_any_bytes(self, method: bytes, target: bytes) -> None:
        """Whatever a client sends, the line is valid and has nothing that a terminal obeys."""
        flow = ended(method=method, target=target)
        line = msgspec.json.encode(Record.from_flow(flow, paths=True)).decode()
        validator().validate(json.loads(line))
        assert line.isascii()
        assert line.isprintable()

    def test_long_request(self) -> None:
        """Of a long method or path a line has the beginning: no more than a pipe takes."""
        for byte in b"\\a\x00":
            flow = ended(method=bytes([byte]) * 9999, target=bytes([byte]) * 99_999, status=400)
            line = msgspec.json.encode(Record.from_flow(flow, paths=True))
            validator().validate(json.loads(line))
            assert len(line) < 4096

    @pytest.mark.parametrize(
        "lookup",
        [
            Lookup("a.example", "A", "NOERROR", addresses=("192.0.2.1",) * 99, seconds=0.02),
            Lookup("*.x\\032y.example", "TYPE999", "RCODE22", problem="nobody there", stream=True),
            Lookup(".", "ANY", "NXDOMAIN", Verdict.DENY, "default", server="::1", source=CLIENT),
            Lookup("\\255" * 250, "TXT", "NOERROR", Verdict.DENY, rule="x", withheld=("::1",) * 99),
        ],
        ids=lambda lookup: lookup.type,
    )
    def test_lookup(self, lookup: Lookup) -> None:
        """So is the line of a DNS question."""
        line = msgspec.json.encode(LookupRecord.from_lookup(lookup)).decode()
        validator().validate(json.loads(line))
        assert line.startswith('{"listener":"dns","v":1,"time":"')
        assert line.isascii()
        assert len(line) < 4096

    @given(name=st.text())
    def test_process(self, name: str) -> None:
        """Who connected is told by number and name, whatever that may be."""
        flow = ended(process=Process(4242, name))
        line = msgspec.json.encode(Record.from_flow(flow)).decode()
        validator().validate(json.loads(line))
        assert 4242 == json.loads(line)["process"]["pid"]
        assert line.isascii()
        assert line.isprintable()

    def test_usual_process(self) -> None:
        """What people call their programs is written as it is."""
        line = msgspec.json.encode(Record.from_flow(ended(process=Process(7, "npm ci")))).decode()
        assert line.endswith('"end":"closed","process":{"pid":7,"command":"npm ci"}}')

    def test_schema_has_every_key(self) -> None:
        """The schema in the documentation and the line have the same keys, in the same order."""
        schema = validator().schema
        assert isinstance(schema, dict)
        flow = schema["$defs"]["flow"]
        fields = list(Record.__struct_fields__)
        assert fields == list(flow["properties"])
        assert fields[:-3] == flow["required"]
        lookup = schema["$defs"]["lookup"]
        fields = ["listener", *LookupRecord.__struct_fields__]
        assert fields == list(lookup["properties"]) == lookup["required"]

    @pytest.mark.parametrize(
        ("key", "kind"),
        [
            ("listener", ListenerKind),
            ("destination_from", DestinationSource),
            ("protocol", Protocol),
            ("host_from", HostSource),
            ("verdict", Verdict),
            ("end", FlowEnd),
        ],
    )
    def test_schema_has_every_value(self, key: str, kind: Any) -> None:
        """The schema's closed sets are those of the code."""
        schema: Any = validator().schema
        flow = schema["$defs"]["flow"]
        assert {each.value for each in kind} == set(flow["properties"][key]["enum"]) - {None}

    def test_documented(self) -> None:
        """The reference explains each key and each way a flow can end."""
        text = (REFERENCE / "access-log.md").read_text()
        missing = [
            word
            for word in (*Record.__struct_fields__, *(end.value for end in FlowEnd))
            if f"`{word}`" not in text
        ]
        assert [] == missing

    def test_documented_line(self) -> None:
        """The example in the reference is a valid line."""
        text = (REFERENCE / "access-log.md").read_text()
        examples = [line for line in text.splitlines() if line.startswith('{"v":')]
        assert examples
        for line in examples:
            validator().validate(json.loads(line))

    addresses = st.builds(
        SocketAddress, st.ip_addresses().map(str), st.integers(min_value=0, max_value=65535)
    )

    # As the readers make them: sidecar.addresses, sidecar.wire.
    hosts = st.from_regex(r"[a-z0-9_-]{1,60}(\.[a-z0-9_-]{1,60}){0,3}", fullmatch=True)
    protocols = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1)

    @given(
        flow=st.builds(
            lambda **facts: Flow(**facts),  # noqa: PLW0108 - builds() would resolve its types
            listener=st.sampled_from(ListenerKind),
            source=addresses,
            destination=st.none() | addresses,
            destination_from=st.none() | st.sampled_from(DestinationSource),
            protocol=st.sampled_from(Protocol),
            host=st.none() | hosts,
            host_from=st.none() | st.sampled_from(HostSource),
            alpn=st.lists(protocols, max_size=20).map(tuple),
            ja4=st.none() | st.just("t13d1516h2_8daaf6152771_02713d6af862"),
            started=st.floats(min_value=0, max_value=2**33),
            verdict=st.sampled_from(Verdict),
            reason=st.sampled_from(["default", "not_intercepted", "hello_ssl2"]),
            rule=st.none() | st.text(max_size=20),
            upstream=st.none() | addresses,
            sent=st.integers(min_value=0, max_value=2**53),
            received=st.integers(min_value=0, max_value=2**53),
            end=st.sampled_from(FlowEnd),
            seconds=st.floats(min_value=0, max_value=1e9),
            method=st.none() | st.binary(min_size=1, max_size=40),
            target=st.none() | st.binary(min_size=1, max_size=40),
            status=st.none() | st.integers(min_value=100, max_value=999),
        )
    )
    def test_round_trip(self, flow: Flow) -> None:
        """Any flow is one line of valid JSON that decodes to what was recorded."""
        record = Record.from_flow(flow)
        line = msgspec.json.encode(record)
        assert b"\n" not in line
        validator().validate(json.loads(line))
        assert record == msgspec.json.decode(line, type=Record)
        assert str(flow.source) == record.source
        assert math.isclose(flow.seconds, record.seconds, abs_tol=1e-6)

    @given(seconds=st.floats(min_value=0, max_value=2**33))
    def test_timestamp(self, seconds: float) -> None:
        """The time is ISO 8601 in UTC, right to the millisecond."""
        text = _timestamp(seconds)
        parsed = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z")
        assert len("2023-11-14T22:13:20.250Z") == len(text)
        exact = datetime.fromtimestamp(0, timezone.utc).timestamp() + seconds
        assert abs(parsed.timestamp() - exact) <= 0.000_501

    def test_timestamp_rounds_over(self) -> None:
        """The last half millisecond of a second is the next second's first."""
        assert "1970-01-01T00:00:02.000Z" == _timestamp(1.9996)


class TestAccessLog:
    @pytest.mark.parametrize("paths", [False, True])
    def test_paths(self, tmp_path: Path, paths: bool) -> None:
        """Paths are written by a log that was told to."""
        log = Log(tmp_path / "log", paths=paths)
        log.log.flow_ended(ended(method=b"GET", target=b"/secret"))
        log.stop()
        assert paths == ("/secret" in log.text())

    def test_interface(self, log: Log) -> None:
        """It is an observer of flows."""
        assert verifyObject(IFlowObserver, log.log)

    def test_from_flow_to_file(self, log: Log) -> None:
        """A flow that ends with the log as its observer is one valid line soon after."""
        flow = Flow(ListenerKind.INBOUND, CLIENT, None, None, observer=log.log)
        flow.deny("no_destination")
        assert "" == log.text()
        log.clock.advance(FLUSH_DELAY)
        (line,) = log.text().splitlines()
        entry = json.loads(line)
        validator().validate(entry)
        assert (flow.id, "inbound", None, "deny", "no_destination", "denied") == (
            entry["id"],
            entry["listener"],
            entry["destination"],
            entry["verdict"],
            entry["reason"],
            entry["end"],
        )

    def test_batches(self, log: Log) -> None:
        """Many lines do not wait for the timer."""
        for _ in range(BATCH_LINES * 2 + 3):
            log.log.flow_ended(ended())
        assert BATCH_LINES * 2 == len(log.text().splitlines())
        log.clock.advance(FLUSH_DELAY)
        assert BATCH_LINES * 2 + 3 == len(log.text().splitlines())

    def test_quiet_when_idle(self, log: Log) -> None:
        """When all is written no timer is left."""
        log.log.flow_ended(ended())
        log.clock.advance(FLUSH_DELAY)
        log.text()
        log.clock.advance(REPORT_INTERVAL)
        assert [] == log.clock.getDelayedCalls()

    def test_stop_writes_the_rest(self, tmp_path: Path) -> None:
        """Stopping writes what waited, and leaves neither timer nor descriptor."""
        before = open_descriptors()
        log = Log(tmp_path / "log")
        log.log.flow_ended(ended(FlowEnd.SHUTDOWN))
        log.stop()
        (line,) = log.text().splitlines()
        assert "shutdown" == json.loads(line)["end"]
        log.clock.advance(REPORT_INTERVAL)
        assert [] == log.clock.getDelayedCalls()
        assert before == open_descriptors()

    def test_after_stop(self, tmp_path: Path) -> None:
        """Flows that end after the log are counted as dropped, and nothing is left behind."""
        log = Log(tmp_path / "log")
        log.stop()
        log.log.flow_ended(ended())
        assert (1, []) == (log.log.dropped, log.clock.getDelayedCalls())

    def test_small_backlog(self, tmp_path: Path) -> None:
        """A backlog smaller than a batch still lets lines through."""
        log = Log(tmp_path / "log", backlog=1)
        log.log.flow_ended(ended())
        assert 1 == len(log.text().splitlines())
        log.stop()

    def test_lines_fit_a_pipe(self) -> None:
        """The longest line that a client of good faith can cause enters a pipe in one piece."""
        longest = SocketAddress("abcd:" * 7 + "abcd", 65535)
        flow = Flow(
            ListenerKind.OUTBOUND,
            longest,
            longest,
            DestinationSource.REDIRECT,
            upstream=longest,
            sent=2**63,
            received=2**63,
            protocol=Protocol.TLS,
            host="a" * 63 + ".b" * 95,
            host_from=HostSource.SNI,
            alpn=("h2", "http/1.1"),
            ja4="t13d1516h2_8daaf6152771_02713d6af862",
            rule="*.example.org:443 (/etc/sidecar/policy.toml:100000)",
        )
        flow.finish(FlowEnd.DESTINATION_UNROUTABLE)
        assert len(msgspec.json.encode(Record.from_flow(flow))) < 4096

    def test_long_protocols(self) -> None:
        """Nor does a client's list of long protocols make a line longer than that."""
        # The longest text that sidecar.wire makes of 255 bytes.
        flow = ended(alpn=("\\x00" * 255,) * 16)
        assert len(msgspec.json.encode(Record.from_flow(flow))) < 4096
