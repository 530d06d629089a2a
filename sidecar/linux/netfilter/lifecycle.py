"""When rules come and go: applied whole, removed without cutting what is alive."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sidecar.errors import RulesError
from sidecar.linux import routing
from sidecar.linux.netfilter import alive, readback, table
from sidecar.linux.netfilter.model import Mode

if TYPE_CHECKING:
    from sidecar.linux.netfilter.model import RuleSet
    from sidecar.linux.netfilter.readback import AppliedTable

__all__ = ["Removal", "RemovalState", "apply", "count_alive", "remove"]


class RemovalState(Enum):
    """How far a removal got."""

    ABSENT = "absent"
    """There was nothing of ours."""
    DRAINING = "draining"
    """New connections go direct; what was intercepted still needs the rest."""
    REMOVED = "removed"
    """Nothing of ours is left."""


@dataclass(frozen=True, slots=True)
class Removal:
    """The outcome of remove().

    Attributes:
        state: How far it got.
        alive: How many intercepted connections are alive.
    """

    state: RemovalState
    alive: int


def apply(rules: RuleSet) -> int:
    """Put a rule set into force in the calling thread's network namespace.

    The table changes in one transaction: a packet meets the old rules or the new.
    Applying again, over another mode or over a draining table, leaves exactly what
    the first time would have. Connections that another *mode* had intercepted break.

    Returns:
        How many such connections there were.

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over this network namespace.
        RulesError: The kernel lacks something, or lo is down; nothing has changed.
    """
    before = readback.read()
    other_mode = before is not None and before.mode is not rules.mode
    breaking = count_alive(before) if before is not None and other_mode else 0
    if not rules.needs_routing:
        table.install(rules)
        routing.remove_tproxy_routing()
        return breaking
    routing.add_tproxy_routing()
    try:
        table.install(rules)
    except RulesError:
        if before is None:
            routing.remove_tproxy_routing()
        raise
    return breaking


def remove(*, now: bool = False) -> Removal:
    """Stop intercepting; take everything away as soon as nothing needs it.

    New connections go direct at once. While intercepted ones are alive, the rest of
    the table stays, for without it their packets would go astray; call again later.

    Args:
        now: Take everything away at once and cut what is alive.

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over this network namespace.
        RulesError: The kernel refused.
    """
    applied = readback.read()
    if applied is None:
        left_over = routing.remove_tproxy_routing()
        return Removal(RemovalState.REMOVED if left_over else RemovalState.ABSENT, 0)
    # First drain, then count: what begins in between is direct already.
    table.drain()
    still = count_alive(applied)
    if still and not now:
        return Removal(RemovalState.DRAINING, still)
    table.delete()
    routing.remove_tproxy_routing()
    return Removal(RemovalState.REMOVED, still)


def count_alive(applied: AppliedTable) -> int:
    """How many intercepted connections would break without the table."""
    if applied.mode is Mode.REDIRECT:
        return alive.count_redirected(applied.ports)
    if applied.mode is Mode.TPROXY and applied.outbound_port is None:
        # Inbound TPROXY sockets have this host's addresses: they need no rules.
        return 0
    return alive.count_transparent()
