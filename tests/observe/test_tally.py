from __future__ import annotations

from observe.flows import denied_flow, ended_flow
from zope.interface.verify import verifyObject

from sidecar.flow import Flow, FlowEnd, ListenerKind, Process, Protocol, Verdict
from sidecar.interfaces import IDNSObserver, IFlowObserver
from sidecar.lookups import Lookup
from sidecar.observe.tally import PROCESSES_MAX, Connections, Tally


def test_interfaces() -> None:
    """It is told of ends and of questions."""
    assert verifyObject(IFlowObserver, Tally())
    assert verifyObject(IDNSObserver, Tally())


def test_by_host() -> None:
    """Connections are counted by name and port, or address and port; what moves most is first."""
    tally = Tally()
    for flow in (
        ended_flow("192.0.2.1:80", sent=1, received=2, protocol=Protocol.HTTP),
        ended_flow("192.0.2.1:443", "a.example", sent=10, received=20),
        ended_flow("192.0.2.2:443", "a.example", end=FlowEnd.CONNECTION_REFUSED),
        ended_flow("192.0.2.2:444", "a.example", sent=3),
    ):
        tally.flow_ended(flow)
    summary = tally.summary(["make"], 0)
    assert [
        ("a.example", 443, 2, 1, 10, 20),
        ("192.0.2.1", 80, 1, 0, 1, 2),
        ("a.example", 444, 1, 0, 3, 0),
    ] == [
        (each.host, each.port, each.connections, each.failed, each.sent, each.received)
        for each in summary.hosts
    ]
    assert Connections(connections=4, allowed=4, failed=1, sent=14, received=22) == summary.total
    assert (["make"], 0, [], 0) == (
        summary.command,
        summary.status,
        summary.denied,
        summary.lookups,
    )
    assert not tally.anything_denied


def test_denied() -> None:
    """Denials are counted by what would allow them; the most frequent first."""
    tally = Tally()
    tally.flow_ended(denied_flow(reason="denied_by_rule", hint="", rule="*:25 (--deny)"))
    for _ in range(2):
        tally.flow_ended(denied_flow(host="a.example", hint="a.example:443"))
    summary = tally.summary([], 1)
    assert [
        ("a.example", 443, "default", None, "a.example:443", 2),
        ("198.51.100.1", 443, "denied_by_rule", "*:25 (--deny)", None, 1),
    ] == [
        (each.host, each.port, each.reason, each.rule, each.allow, each.connections)
        for each in summary.denied
    ]
    assert (3, 0) == (summary.total.denied, summary.total.allowed)
    assert tally.anything_denied


def test_lookups() -> None:
    """Denied questions are counted by name, in whichever case; others only in sum."""
    tally = Tally()
    tally.lookup_ended(Lookup("a.example", "A", "NOERROR"))
    assert not tally.anything_denied
    for name in ("Evil.example", "evil.example"):
        tally.lookup_ended(Lookup(name, "A", "REFUSED", Verdict.DENY, hint="evil.example"))
    tally.lookup_ended(Lookup("b.example", "A", "SERVFAIL", problem="x"))
    summary = tally.summary([], 0)
    counts = summary.lookups, summary.lookups_denied, summary.lookups_failed
    assert (4, 2, 1) == counts
    assert [("evil.example", None, "evil.example", 2)] == [
        (each.host, each.port, each.allow, each.lookups) for each in summary.denied
    ]
    assert tally.anything_denied


def test_processes() -> None:
    """The names of those that connected, each once, and not all of very many."""
    tally = Tally()
    for number in range(100):
        for pid in (1, 2):
            tally.flow_ended(denied_flow(process=Process(pid, f"p{number}\x1b")))
    (host,) = tally.summary([], 0).hosts
    assert [f"p{number}\\x1b" for number in range(PROCESSES_MAX)] == host.processes
    assert host.processes == tally.summary([], 0).denied[0].processes


def test_bounded() -> None:
    """Beyond the limit hosts are summed up, and kinds of denials counted."""
    tally = Tally(hosts_max=3)
    for number in range(10):
        for flow in (
            ended_flow(f"192.0.2.{number}:80", sent=1),
            denied_flow(f"192.0.2.{number}:80"),
        ):
            tally.flow_ended(flow)
    summary = tally.summary([], 0)
    assert (3, 3, 7) == (len(summary.hosts), len(summary.denied), summary.denied_others)
    assert Connections(connections=14, allowed=7, denied=7, sent=7) == summary.others
    assert 20 == summary.total.connections


def test_unknown() -> None:
    """A flow without a destination counts, too."""
    tally = Tally()
    flow = Flow(ListenerKind.OUTBOUND, None, None, None)
    flow.deny("unknown_destination")
    tally.flow_ended(flow)
    summary = tally.summary(["\udcff"], None)
    assert [(None, None)] == [(each.host, each.port) for each in summary.hosts]
    assert ["\\udcff"] == summary.command
