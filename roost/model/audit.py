"""What an audit tells: who did what to what, and whether it was allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class AuditEvent:
    """One thing that somebody did or was refused. It holds no secret and no content, only names and counts.

    `actor` is a key's id, "anonymous" where no keys are configured, or "system". `target` names what it was done to, as
    in `sandbox/<id>` or `function/<name>`. `outcome` is one of "allowed", "denied", "failed".
    """

    action: str  # <noun>.<verb>: process.start, file.read, file.write, egress.connect, secret.use, policy.change, login
    account: str
    actor: str
    target: str
    outcome: str
    detail: Mapping[str, str | int | bool] = field(default_factory=dict)


#: Takes an event without waiting; whoever keeps it bounds what waits.
Audit = Callable[[AuditEvent], None]
