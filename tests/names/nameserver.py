"""Resolves names with the system's resolver and a DNS server of its own.

A program: started by test_resolving.py in network and mount namespaces of its own, prints
what was found as JSON.
"""

from __future__ import annotations

import json

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads
from twisted.internet.task import Clock
from twisted.names import dns
from twisted.names.error import DNSQueryRefusedError, DomainError
from twisted.names.server import DNSServerFactory

from sidecar.errors import DialError
from sidecar.linux.namespaces import set_up_loopback
from sidecar.names.resolving import SystemResolver

RECORDS: dict[str, list[dns.Record_A | dns.Record_AAAA | dns.Record_CNAME]] = {
    "both.example": [dns.Record_A("198.51.100.1"), dns.Record_AAAA("2001:db8::1")],
    "chain.example": [dns.Record_CNAME("denied.example")],
    "denied.example": [dns.Record_A("10.0.0.1")],
    "mapped.example": [dns.Record_AAAA("::ffff:10.0.0.2")],
    "none.example": [],
}
REBINDING = ["198.51.100.2", "10.0.0.3"]


class Records:
    """Answers from the tables above."""

    def query(
        self, query: dns.Query, timeout: object = None
    ) -> Deferred[tuple[list[dns.RRHeader], list[dns.RRHeader], list[dns.RRHeader]]]:
        name = query.name.name.decode().lower()
        records = RECORDS.get(name)
        if name == "rebinding.example":
            records = []
            if query.type == dns.A:
                records = [dns.Record_A(REBINDING.pop(0))]
        elif name == "refused.example":
            return fail(DNSQueryRefusedError())
        if records is None:
            return fail(DomainError())
        answers = [self._header(name, record) for record in records if self._fits(record, query)]
        for record in records:
            if isinstance(record, dns.Record_CNAME):
                assert record.name is not None
                target = record.name.name.decode()
                answers += [
                    self._header(target, each)
                    for each in RECORDS[target]
                    if self._fits(each, query)
                ]
        return succeed((answers, [], []))

    def _fits(self, record: dns.IEncodableRecord, query: dns.Query) -> bool:
        return record.TYPE in {query.type, dns.CNAME}

    def _header(self, name: str, record: dns.IEncodableRecord) -> dns.RRHeader:
        return dns.RRHeader(name, record.TYPE, ttl=0, payload=record)


async def ask(resolver: SystemResolver, name: str) -> list[str] | str:
    try:
        return sorted(map(str, await resolver.resolve(name)))
    except DialError as error:
        return type(error).__name__


async def ask_everything() -> None:
    clock = Clock()
    resolver = SystemResolver(IReactorFromThreads(reactor), clock)
    names = ["hosts.example", *RECORDS, "rebinding.example", "missing.example", "refused.example"]
    found = {name: await ask(resolver, name) for name in names if name != "denied.example"}
    clock.advance(5)
    found["rebinding.example, later"] = await ask(resolver, "rebinding.example")
    resolver.close()
    print(json.dumps(found))


if __name__ == "__main__":
    set_up_loopback([])
    factory = DNSServerFactory(clients=[Records()])
    reactor.listenUDP(53, dns.DNSDatagramProtocol(factory), "127.0.0.1")  # type: ignore[attr-defined]
    asking = ensureDeferred(ask_everything())
    asking.addErrback(lambda failure: failure.printTraceback())
    asking.addBoth(lambda _: IReactorCore(reactor).stop())
    IReactorCore(reactor).run()
