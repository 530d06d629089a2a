from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from turning import Turning, turning

from sidecar.config import Config, PolicyConfig, Verify
from sidecar.errors import ConfigError
from sidecar.names.verifying import Certificate, Off, Redial
from sidecar.policy import Default, parse_rule
from sidecar.service import SidecarService

if TYPE_CHECKING:
    from collections.abc import Iterator

DENY = Config(policy=PolicyConfig(default=Default.DENY))
ALLOW = Config(policy=PolicyConfig(default=Default.DENY, allow=(parse_rule("example.org"),)))
BROKEN = ConfigError("sidecar.toml", "policy.allow[0]", "a..b", "empty label")


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    before = signal.getsignal(signal.SIGHUP)
    with turning(threads=True) as made:
        yield made
    signal.signal(signal.SIGHUP, before)


class Loader:
    """A configuration file that changes."""

    def __init__(self) -> None:
        self.next: Config | Exception = DENY

    def __call__(self) -> Config:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next


class TestReload:
    @pytest.fixture
    def loader(self) -> Loader:
        return Loader()

    @pytest.fixture
    def service(self, turning: Turning, loader: Loader) -> Iterator[SidecarService]:
        made = SidecarService(turning.reactor, DENY, loader)
        made.privilegedStartService()
        made.startService()
        yield made
        turning.result(made.stopService())
        turning.settle()

    def test_signal(self, turning: Turning, service: SidecarService, loader: Loader) -> None:
        """SIGHUP puts what the file says now into force, and says so."""
        judge = service._judge
        assert judge is not None
        loader.next = ALLOW
        os.kill(os.getpid(), signal.SIGHUP)
        turning.until(lambda: judge.policy.allow)
        assert ALLOW.policy.allow == judge.policy.allow
        assert "policy reloaded: 1 allow and 0 deny rules" in turning.logged

    def test_broken(self, turning: Turning, service: SidecarService, loader: Loader) -> None:
        """What can't be used leaves the policy in force, with one line that says why."""
        judge = service._judge
        assert judge is not None
        before = judge.policy
        loader.next = BROKEN
        service.reload()
        assert before is judge.policy
        assert [f"the policy in force stays: {BROKEN}"] == turning.logged[-1:]
        assert 1 == len(turning.failures)
        turning.failures.clear()

    def test_verify(self, turning: Turning, service: SidecarService, loader: Loader) -> None:
        """How names are verified is part of the policy, and changes with it."""
        judge = service._judge
        assert judge is not None
        before = judge.verifier
        service.reload()
        assert before is judge.verifier
        for verify, kind in ((Verify.OFF, Off), (Verify.CERTIFICATE, Certificate)):
            loader.next = Config(policy=PolicyConfig(verify=verify))
            service.reload()
            assert kind is type(judge.verifier)

    def test_stopped(self, turning: Turning, loader: Loader) -> None:
        """A signal to a service that has stopped changes nothing."""
        service = SidecarService(turning.reactor, DENY, loader)
        service.privilegedStartService()
        turning.result(service.stopService())
        service.reload()
        assert service._judge is None
        turning.settle()


@pytest.mark.parametrize(
    ("verify", "kind"),
    [(Verify.REDIAL, Redial), (Verify.CERTIFICATE, Certificate), (Verify.OFF, Off)],
)
def test_verifier(turning: Turning, verify: Verify, kind: type) -> None:
    """Names are verified in the way that the configuration says."""
    config = Config(policy=PolicyConfig(verify=verify))
    service = SidecarService(turning.reactor, config, lambda: config)
    service.privilegedStartService()
    assert service._judge is not None
    assert kind is type(service._judge.verifier)
    turning.result(service.stopService())
    turning.settle()
