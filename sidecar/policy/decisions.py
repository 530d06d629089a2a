"""What decide() answers."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from sidecar.flow import Verdict

if TYPE_CHECKING:
    from sidecar.policy.rules import Rule

__all__ = ["Decision", "Fact", "Outcome", "Reason"]


class Outcome(Enum):
    """Whether a connection may be made, or what it takes to say."""

    ALLOW = "allow"
    DENY = "deny"
    NEED_MORE = "need more"


class Fact(Enum):
    """What may still change the answer."""

    NAME = "name"  # Flow.host and Flow.ech, which are final once names_known is set
    ADDRESS = "address"


class Reason(str, Enum):
    """Why, as a stable code; docs/reference/reasons.md says what to do about each."""

    __str__ = str.__str__

    DEFAULT = "default"
    RULE = "rule"
    DENIED_BY_RULE = "denied_by_rule"
    NO_NAME = "no_name"
    ECH = "ech"
    PRIVATE_ADDRESS = "private_address"
    METADATA = "metadata"
    UNKNOWN_DESTINATION = "unknown_destination"


class Decision(msgspec.Struct, frozen=True):
    """An answer.

    Attributes:
        outcome: Allow, deny, or need more.
        reason: Why. With NEED_MORE: what to deny with if the fact never comes.
        rule: The rule that decided; None if none did.
        by_name: An allow that rests on the name the client gave: the address that
            is dialled must be verified to belong to it.
        missing: With NEED_MORE, the fact that could change the answer; else None.
        hint: The text of an allow rule that would have allowed what is denied; empty
            where a deny rule forbids it, which no allow rule outweighs.
    """

    outcome: Outcome
    reason: Reason
    rule: Rule | None = None
    by_name: bool = False
    missing: Fact | None = None
    hint: str = ""

    @property
    def rule_with_place(self) -> str | None:
        """The rule's text and where it stands, for the flow; None if none decided."""
        if self.rule is None:
            return None
        return f"{self.rule.text} ({self.rule.place})" if self.rule.place else self.rule.text

    @property
    def verdict(self) -> Verdict:
        """The verdict for the flow.

        Raises:
            ValueError: There is none yet.
        """
        if self.outcome is Outcome.NEED_MORE:
            raise ValueError("not decided yet")
        return Verdict.ALLOW if self.outcome is Outcome.ALLOW else Verdict.DENY
