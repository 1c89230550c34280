"""What the audit is told of one room's way out."""

from __future__ import annotations

from collections.abc import Mapping

from roost.model.audit import Audit, AuditEvent
from roost.model.function import FunctionSpec
from roost.model.taint import Labels


class Told:
    """Of one room. `keyed`: its model's endpoint is shown a key."""

    def __init__(self, audit: Audit, spec: FunctionSpec, instance: str, *, keyed: bool = False) -> None:
        self._audit = audit
        self._spec = spec
        self._instance = instance
        self._keyed = keyed

    def index(self, path: str, allowed: bool) -> None:
        self._tell("egress.connect", f"index{path}", allowed)

    def model(self, path: str, allowed: bool) -> None:
        self._tell("egress.connect", f"model{path}", allowed)
        if allowed and self._keyed:
            self._tell("secret.use", "OPENAI_API_KEY", allowed)

    def world(self, target: str, allowed: bool) -> None:
        self._tell("egress.connect", target, allowed)

    def secret(self, name: str, place: str) -> None:
        self._tell("secret.use", f"{name} for {place}", True)

    def labelled(self, labels: Labels, why: str) -> None:
        for label in sorted(labels):
            self._tell("taint.add", label, True, {"why": why})

    def tainted(self, place: str, refused: bool) -> None:
        """What its labels forbid was asked for: in vain, or the policy only looks on."""
        self._tell("taint.refuse", place, not refused)

    def _tell(self, action: str, target: str, allowed: bool, more: Mapping[str, str] | None = None) -> None:
        self._audit(
            AuditEvent(
                action=action,
                account=self._spec.account,
                actor=f"instance/{self._instance}",
                target=target,
                outcome="allowed" if allowed else "denied",
                detail={"function": self._spec.name, **(more or {})},
            )
        )
