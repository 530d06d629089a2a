"""What `--learn FILE` does around a run: checks the file before, and adds to it afterwards.

Twisted is not imported before the command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.config import COMMAND_LINE
from sidecar.config.learning import PolicyFile, alone, policy_text
from sidecar.errors import ConfigError
from sidecar.policy import Default, Policy
from sidecar.policy.learning import SIBLINGS_MIN, learn

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from sidecar.policy.gathering import Gatherer

__all__ = ["Learning"]

# Refusals that are told; the rest is counted.
_TOLD = 5


class Learning:
    """One run that is learned from.

    Args:
        path: The file that the rules are added to.
        siblings: As `learn` takes it.

    Raises:
        ConfigError: Rules can't be added to the file.
    """

    def __init__(self, path: str, *, siblings: int | None = None) -> None:
        PolicyFile.open(path)
        self._path = path
        self._siblings = siblings
        self._gatherer: Gatherer | None = None
        self._policy: Callable[[], Policy | None] = lambda: None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Learning | None:
        """Read the options; None if nothing is to be learned.

        Raises:
            ConfigError: They can't be used.
        """
        if arguments.learn is None:
            return None
        if arguments.learn == "-":
            problem = "rules are added to a file; one of that name is ./-"
            raise ConfigError(COMMAND_LINE, "--learn", arguments.learn, problem)
        return cls(arguments.learn, siblings=SIBLINGS_MIN if arguments.learn_wildcards else None)

    def gatherer(
        self, owns: Callable[[str, str], bool], policy: Callable[[], Policy | None]
    ) -> Gatherer:
        """Make the observer that this learns from; once.

        Args:
            owns, policy: As `Gatherer` takes them.
        """
        from sidecar.policy.gathering import Gatherer

        self._gatherer = Gatherer(owns, policy)
        self._policy = policy
        return self._gatherer

    def finish(self, status: int) -> list[str]:
        """Add what was learned to the file.

        Args:
            status: The command's exit status: of a command that failed before it connected
                to anything, nothing is learned.

        Returns:
            What is to be said of it, line by line.

        Raises:
            ConfigError: The file can't be added to any more; the error says what would have
                been.
        """
        gatherer = self._gatherer
        if gatherer is None:
            return []
        if status and not gatherer.seen:
            return [f"nothing was learned into {self._path}", *_left_out(gatherer)]
        try:
            with alone(self._path):
                return [*self._add(gatherer), *_left_out(gatherer)]
        except ConfigError as error:
            problem = f"{error.problem}; what was learned:\n{self._lost(gatherer)}"
            raise ConfigError(error.source, error.key, error.value, problem) from None
        except Exception as error:
            problem = f"a bug: {error!r}; what was learned:\n{self._lost(gatherer)}"
            raise ConfigError(self._path, None, None, problem) from error

    def _lost(self, gatherer: Gatherer) -> str:
        nothing = Policy(default=Default.DENY)
        return policy_text(learn(gatherer.seen, nothing, siblings=self._siblings))

    def _add(self, gatherer: Gatherer) -> list[str]:
        file = PolicyFile.open(self._path)
        judged_by = self._policy()
        policy = file.policy if judged_by is None else file.policy.at_home_of(judged_by)
        lesson = learn(gatherer.seen, policy, siblings=self._siblings)
        added = len(lesson.allow) + len(lesson.private_names)
        rules = "1 rule" if added == 1 else f"{added} rules"
        if file.add(lesson):
            lines = [f"learned {rules} into {self._path}"]
        else:
            lines = [f"{self._path} has every rule that this run needs"]
        if file.default is not Default.DENY:
            lines.append(
                f'{self._path} has default = "{file.default.value}": what that allows got no rules'
            )
        refused = list(map(str, lesson.refused))
        if len(refused) > _TOLD:
            refused[_TOLD:] = [f"{len(refused) - _TOLD} more stay denied"]
        return lines + [f"{self._path}: {each}" for each in refused]


def _left_out(gatherer: Gatherer) -> list[str]:
    from sidecar.policy.gathering import SEEN_MAX

    lines = []
    if gatherer.denied:
        times = "once" if gatherer.denied == 1 else f"{gatherer.denied} times"
        lines.append(f"something was denied {times}; what is denied is not learned")
    if gatherer.missed:
        lines.append(
            f"more than {SEEN_MAX} hosts: {gatherer.missed} connections or lookups were not"
            " learned from"
        )
    return lines
