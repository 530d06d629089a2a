"""What the options come to: everything that can be wrong with them is found here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.config import COMMAND_LINE, Verify, load
from sidecar.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from sidecar.cli.exec.learning import Learning
    from sidecar.config import Config

__all__ = ["Plan"]

_DESCRIPTOR = re.compile(r"fd:(\d{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done while the command runs.

    Attributes:
        config: The policy, its limits, observers and steps.
        log: A descriptor for the access log; None for none.
        fail_on_deny: Whether a denial decides the exit status.
        verbosity: -1 for quiet, 0, or 1 for verbose.
        command: What is run.
        learning: What `--learn` needs; None without it.
        view: The options of `sidecar.cli.viewing`, among others.
    """

    config: Config
    log: int | None
    fail_on_deny: bool
    verbosity: int
    command: list[str]
    learning: Learning | None
    view: argparse.Namespace

    @property
    def needs_tls(self) -> bool:
        """Whether we speak TLS ourselves."""
        return self.config.policy.verify is Verify.CERTIFICATE

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Plan:
        """Read the options and open what they name.

        Raises:
            ConfigError: Something can't be used.
        """
        config = load(
            arguments.policy,
            allow=arguments.allow,
            deny=arguments.deny,
            default=arguments.default,
        )
        return cls(
            config=config,
            log=None if arguments.log is None else _open_log(arguments.log),
            fail_on_deny=arguments.fail_on_deny,
            verbosity=int(arguments.verbose) - int(arguments.quiet),
            command=arguments.cmd[1:] if arguments.cmd[:1] == ["--"] else arguments.cmd,
            learning=_learning(arguments),
            view=arguments,
        )


def _open_log(where: str) -> int:
    given = _DESCRIPTOR.fullmatch(where)
    try:
        if given is None:
            # O_APPEND: several commands may share one file.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
            return os.open(where, flags, 0o640)
        # A descriptor of ours: the log's end closes it.
        return os.dup(int(given[1]))
    except OSError as error:
        problem = f"can't be opened: {error.strerror}"
        raise ConfigError(COMMAND_LINE, "--log", where, problem) from None


def _learning(arguments: argparse.Namespace) -> Learning | None:
    if arguments.learn is None:
        return None
    from sidecar.cli.exec.learning import Learning

    return Learning.of(arguments)
