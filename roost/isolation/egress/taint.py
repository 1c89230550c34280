"""What a room with labels may still reach, and what it becomes by what it reaches. Pure.

A reply from a place that is not trusted makes a room untrusted; one from a private place, or a request with a secret in
it, makes it private. A room that is both reaches places alone that are trusted or private.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from roost.isolation.egress.rules import Rule, Target, parse_rules
from roost.model.errors import InvalidArgument
from roost.model.taint import (
    BLOCK,
    LABELS,
    NONE,
    PACKAGES,
    PRIVATE,
    TAINT_MODES,
    UNTRUSTED,
    Labels,
    TaintRules,
)

_MOST_VOLUMES = 100


@dataclass(frozen=True, kw_only=True)
class TaintPolicy:
    """Rules about places are those of egress, without methods and paths."""

    trusted: tuple[Rule, ...] = ()
    private: tuple[Rule, ...] = ()
    packages: bool = False  # the indexes are trusted
    block: bool = False

    def heard(self, target: Target) -> Labels:
        """What a reply from there makes of a room."""
        found = set()
        if not _any_fits(self.trusted, target):
            found.add(UNTRUSTED)
        if _any_fits(self.private, target):
            found.add(PRIVATE)
        return frozenset(found)

    def heard_packages(self) -> Labels:
        return NONE if self.packages else frozenset({UNTRUSTED})

    def may_send(self, labels: Labels, target: Target) -> bool:
        """Whether a room with these labels may send anything there."""
        return labels != LABELS or _any_fits((*self.trusted, *self.private), target)

    def may_tunnel(self, labels: Labels, target: Target) -> bool:
        """The same for a connection that is not looked into: it goes on after it was answered."""
        return self.may_send(labels | self.heard(target), target)

    def may_resolve(self, labels: Labels, name: str, port: int) -> bool:
        """Whether the name may be asked for: whoever owns it hears of that. Rules about addresses open no name here, as
        nobody knows before whether it leads there."""
        named = (rule for rule in (*self.trusted, *self.private) if rule.network is None)
        return labels != LABELS or any(rule.may_fit(name, port) for rule in named)

    def may_fetch_packages(self, labels: Labels) -> bool:
        """As by a tunnel: a package takes several requests."""
        return labels | self.heard_packages() != LABELS or self.packages


def taint_policy(rules: TaintRules) -> TaintPolicy:
    """Raises InvalidArgument that names the field."""
    if rules.mode not in TAINT_MODES:
        raise InvalidArgument(f"taint.mode: one of {', '.join(TAINT_MODES)} is expected, not {rules.mode[:40]!r}.")
    if strange := sorted(set(rules.start) - LABELS):
        raise InvalidArgument(f"taint.start: {strange[0][:40]!r} is no label; there are {', '.join(sorted(LABELS))}.")
    if len(rules.volumes) > _MOST_VOLUMES or not all(0 < len(name) <= 128 for name in rules.volumes):
        raise InvalidArgument(f"taint.volumes: at most {_MOST_VOLUMES} names of volumes are expected.")
    return TaintPolicy(
        trusted=_places("taint.trusted", (text for text in rules.trusted if text != PACKAGES)),
        private=_places("taint.private", rules.private),
        packages=PACKAGES in rules.trusted,
        block=rules.mode == BLOCK,
    )


def _places(field: str, texts: Iterable[str]) -> tuple[Rule, ...]:
    try:
        rules = parse_rules(texts)
    except InvalidArgument as error:
        raise InvalidArgument(f"{field}: {error.message}") from None
    if any(rule.of_http for rule in rules):
        raise InvalidArgument(f"{field}: places are expected, without methods and paths.")
    return rules


def _any_fits(rules: Iterable[Rule], target: Target) -> bool:
    return any(rule.fits(target) for rule in rules)
