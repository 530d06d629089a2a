"""What the options come to: everything that can be wrong with them is found here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar import policy
from sidecar.config import COMMAND_LINE, Verify, load
from sidecar.errors import ConfigError
from sidecar.policy import AddressClass, Default

if TYPE_CHECKING:
    import argparse

    from sidecar.cli.exec.learning import Learning
    from sidecar.config import Config
    from sidecar.sandbox.bridges import Bridges

__all__ = ["DEFAULT", "NOT_BY_NAME", "Plan"]

DEFAULT = Default.PUBLIC
"""What no rule decides, where the options say nothing."""
NOT_BY_NAME = policy.NOT_BY_NAME | {AddressClass.LOOPBACK}
"""The host's loopback is another than that inside, and no name's to open."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done while the command runs.

    Attributes:
        config: The policy, its limits, observers and steps.
        log: A descriptor for the access log; None for none.
        fail_on_deny: Whether a denial decides the exit status.
        command: What is run.
        learning: What `--learn` needs; None without it.
        bridges: Ports that lead out of the sandbox or into it, listened on where that is
            on the host; None for none.
        view: The options of `sidecar.cli.viewing`, among others.
    """

    config: Config
    log: int | None
    fail_on_deny: bool
    command: list[str]
    learning: Learning | None
    bridges: Bridges | None
    view: argparse.Namespace

    @property
    def needs_tls(self) -> bool:
        """Whether we speak TLS ourselves."""
        return self.config.policy.verify is Verify.CERTIFICATE

    @classmethod
    def of(
        cls, arguments: argparse.Namespace, log: int | None, bridges: Bridges | None = None
    ) -> Plan:
        """Read the options.

        Args:
            arguments: What the command line says.
            log: A descriptor for the access log; None for none.
            bridges: What the options for them say; None without.

        Raises:
            ConfigError: Something can't be used.
            ListenError: A port of the host's can't be had.
        """
        config = load(
            arguments.policy,
            allow=arguments.allow,
            deny=arguments.deny,
            default=arguments.default,
        )
        if bridges is not None:
            bridges.open()
        return cls(
            config=config,
            log=log,
            fail_on_deny=arguments.fail_on_deny,
            command=arguments.cmd[1:] if arguments.cmd[:1] == ["--"] else arguments.cmd,
            learning=_learning(arguments),
            bridges=bridges,
            view=arguments,
        )


def _learning(arguments: argparse.Namespace) -> Learning | None:
    if arguments.learn is None:
        if arguments.learn_wildcards:
            problem = "says how to learn, and --learn FILE is not given"
            raise ConfigError(COMMAND_LINE, "--learn-wildcards", None, problem)
        return None
    from sidecar.cli.exec.learning import Learning

    return Learning.of(arguments)
