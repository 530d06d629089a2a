"""Flows that say no name have that of the DNS answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from askers import policy
from twisted.internet.task import Clock

from sidecar.addresses import SocketAddress
from sidecar.flow import DestinationSource, Flow, HostSource, ListenerKind
from sidecar.names.served import Served
from sidecar.names.verifying import Off
from sidecar.peeking import Peek
from sidecar.protocols.judge import Judge

if TYPE_CHECKING:
    from sidecar.policy import Policy

ADDRESS = "93.184.216.34"


def judge(rules: Policy, *names: str) -> Judge:
    served = Served(Clock())
    for name in names:
        served.record(name, ADDRESS, 60)
    return Judge(rules, Off(), silence=1, patience=1, served=served)


def flow(address: str = ADDRESS) -> Flow:
    return Flow(ListenerKind.OUTBOUND, None, SocketAddress(address, 22), DestinationSource.TPROXY)


def test_named() -> None:
    """The name that the address was answered for."""
    made = flow()
    judge(policy(), "ssh.example").name(made)
    assert ("ssh.example", HostSource.DNS, False) == (made.host, made.host_from, made.names_known)


@pytest.mark.parametrize(("names", "address"), [((), ADDRESS), (("ssh.example",), "9.9.9.9")])
def test_unnamed(names: tuple[str, ...], address: str) -> None:
    """None if there was no such answer."""
    made = flow(address)
    judge(policy(), *names).name(made)
    assert (None, None) == (made.host, made.host_from)


def test_without_dns() -> None:
    """None where no DNS passes through us."""
    made = flow()
    Judge(policy(), Off(), silence=1, patience=1).name(made)
    assert None is made.host


def test_said_is_better() -> None:
    """What the client says replaces it; what says nothing leaves it."""
    made = flow()
    judge(policy(), "dns.example").name(made)
    peek = Peek(made)
    assert peek.feed(b"SSH-2.0-x\r\n")
    assert ("dns.example", HostSource.DNS) == (made.host, made.host_from)
    peek = Peek(made)
    assert peek.feed(b"GET / HTTP/1.1\r\nHost: said.example\r\n\r\n")
    assert ("said.example", HostSource.HOST) == (made.host, made.host_from)
