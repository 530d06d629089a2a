from __future__ import annotations

from typing import Any

import pytest
from observe.flows import denied_flow, ended_flow
from zope.interface.verify import verifyObject

from sidecar.flow import FlowEnd, HostSource, Process, Protocol, Verdict
from sidecar.interfaces import IDNSObserver, IFlowObserver
from sidecar.lookups import Lookup
from sidecar.policy import Default, Policy, gathering, parse_rule
from sidecar.policy.gathering import ADDRESSES_MAX, PROCESSES_MAX, Gatherer, Seen

NAME, ADDRESS = "www.example.org", "9.9.9.1"


def gatherer(*owned: tuple[str, str], policy: Policy | None = None) -> Gatherer:
    """One that is told so much about names."""
    return Gatherer(lambda host, address: (host, address) in owned, lambda: policy)


def lookup(name: str = NAME, kind: str = "A", rcode: str = "NOERROR", **facts: Any) -> Lookup:
    return Lookup(name, kind, rcode, **facts)


class TestConnections:
    def test_interfaces(self) -> None:
        """It observes connections and lookups."""
        assert verifyObject(IFlowObserver, gatherer())
        assert verifyObject(IDNSObserver, gatherer())

    def test_facts(self) -> None:
        """Connections to one name and port are one; who made them and when is remembered."""
        found = gatherer((NAME, ADDRESS), (NAME, "9.9.9.2"))
        found.flow_ended(ended_flow("9.9.9.1:443", NAME, started=200.0, process=Process(7, "curl")))
        found.flow_ended(
            ended_flow(
                "9.9.9.2:443",
                NAME,
                started=100.0,
                process=Process(8, "git"),
                ech=True,
                end=FlowEnd.CONNECTION_REFUSED,
            )
        )
        (seen,) = found.seen
        expected = Seen(
            host=NAME,
            owned=True,
            port=443,
            addresses={"9.9.9.1": None, "9.9.9.2": None},
            raw=False,
            ech=True,
            times=2,
            failed=1,
            first=100.0,
            processes={"curl": None, "git": None},
        )
        assert expected == seen

    def test_name_of_nobodys(self) -> None:
        """A name that the address isn't known to have counts for nothing."""
        found = gatherer()
        found.flow_ended(ended_flow("9.9.9.1:443", NAME))
        (seen,) = found.seen
        assert (NAME, False) == (seen.host, seen.owned)

    @pytest.mark.parametrize("source", HostSource)
    def test_owned(self, source: HostSource) -> None:
        """It counts if it was looked up, or was taken from a lookup in the first place."""
        found = gatherer()
        found.lookup_ended(lookup(addresses=(ADDRESS,)))
        flow = ended_flow("9.9.9.1:22", NAME, protocol=Protocol.TCP)
        flow.host_from = source
        found.flow_ended(flow)
        assert [True] == [each.owned for each in found.seen if each.port]

    def test_verified(self) -> None:
        """It counts if the policy in force has had it verified."""
        policy = Policy(default=Default.DENY, allow=[parse_rule(f"{NAME}:443")])
        found = gatherer(policy=policy)
        found.flow_ended(ended_flow("9.9.9.1:443", NAME, names_known=True))
        assert [True] == [each.owned for each in found.seen]

    def test_muddled(self) -> None:
        """A client whose first bytes can't be trusted to name a host has named none."""
        found = gatherer((NAME, ADDRESS))
        found.flow_ended(ended_flow("9.9.9.1:443", NAME, problem="invalid_host"))
        assert [(False, True, {"invalid_host"})] == [
            (each.owned, each.muddled, each.problems) for each in found.seen
        ]

    def test_denied(self) -> None:
        """What was denied is counted, and not gathered; who left in time was not denied."""
        found = gatherer()
        found.flow_ended(denied_flow())
        found.flow_ended(denied_flow(reason="not_judged"))
        found.lookup_ended(lookup(verdict=Verdict.DENY))
        assert (2, []) == (found.denied, found.seen)


class TestLookups:
    @pytest.mark.parametrize(
        "asked",
        [
            lookup(addresses=(ADDRESS,)),
            lookup("WWW.Example.ORG", addresses=(ADDRESS,)),
            lookup(kind="TXT"),
            lookup("1.9.9.9.in-addr.arpa", kind="PTR"),
            lookup("gone.example", rcode="NXDOMAIN"),
            lookup("gone.example", rcode="SERVFAIL"),
            lookup(kind="AAAA"),
        ],
    )
    def test_gathered(self, asked: Lookup) -> None:
        """What was asked for is remembered, whatever came of it."""
        found = gatherer()
        found.lookup_ended(asked)
        (seen,) = found.seen
        assert (asked.name.lower(), None, list(asked.addresses)) == (
            seen.host,
            seen.port,
            list(seen.addresses),
        )

    @pytest.mark.parametrize(
        "asked",
        [
            lookup(r"my\032printer._ipp._tcp.local", kind="TXT"),
            lookup("127.0.0.1", kind="TXT"),
            lookup("localhost", kind="TXT", forwarded=False),
        ],
        ids=lambda asked: f"{asked.name} {asked.type} {asked.rcode}",
    )
    def test_left_out(self, asked: Lookup) -> None:
        """What no rule can be for has none, nor has what is answered in any case."""
        found = gatherer()
        found.lookup_ended(asked)
        assert [] == found.seen

    def test_found(self) -> None:
        """Once something was found for a name, it is there; what it was made of is kept."""
        found = gatherer()
        found.lookup_ended(lookup(kind="AAAA", made_of=("www.example",)))
        (seen,) = found.seen
        assert (False, ("www.example",)) == (seen.found, seen.made_of)
        found.lookup_ended(lookup(addresses=(ADDRESS,)))
        found.lookup_ended(lookup(rcode="NXDOMAIN"))
        assert (True, 3) == (seen.found, seen.times)


class TestBounds:
    def test_hosts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of more hosts than there is room for, the rest is counted."""
        monkeypatch.setattr(gathering, "SEEN_MAX", 2)
        found = gatherer()
        for number in range(5):
            found.flow_ended(ended_flow(f"9.9.9.{number}:443"))
            found.lookup_ended(lookup(f"n{number}.example", addresses=(ADDRESS,)))
        assert (4, 6) == (len(found.seen), found.missed)

    def test_each(self) -> None:
        """So with addresses and processes of one host."""
        found = gatherer()
        for number in range(100):
            flow = ended_flow(f"9.9.9.{number}:443", NAME, process=Process(7, f"p{number}"))
            flow.host_from = HostSource.DNS
            found.flow_ended(flow)
        (seen,) = found.seen
        assert (ADDRESSES_MAX, PROCESSES_MAX) == (len(seen.addresses), len(seen.processes))
