"""What is known of where a room's data came from: labels, which only grow, and what is asked of rooms that have them.

A room that has read what strangers wrote, and has what is nobody else's business, must not speak to whom it likes: each
two of the three are useful, all three together are how data is stolen by a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

UNTRUSTED, PRIVATE = "untrusted", "private"
LABELS = frozenset({UNTRUSTED, PRIVATE})
#: Nothing is looked at; what would be refused is told to the audit; it is refused.
OFF, AUDIT, BLOCK = "off", "audit", "block"
TAINT_MODES = (OFF, AUDIT, BLOCK)
#: Among trusted places: the package indexes, which take no rule.
PACKAGES = "packages"

Labels = frozenset[str]
NONE: Labels = frozenset()


@dataclass(frozen=True, kw_only=True)
class TaintRules:
    """One room's policy, as it was given. `trusted`: places whose replies leave a room as it is; `private`: places
    whose replies are private; `volumes`: those whose files are; `start`: labels that a room begins with."""

    mode: str = OFF  # of TAINT_MODES
    trusted: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    start: tuple[str, ...] = ()

    @property
    def on(self) -> bool:
        return self.mode != OFF


def parse_taint(values: Mapping[str, Any]) -> TaintRules:
    """From what is stored of one; fields that are not known are left out."""
    lists = {name: tuple(values.get(name, ())) for name in ("trusted", "private", "volumes", "start")}
    return TaintRules(mode=values.get("mode", OFF), **lists)


def stricter(one: str, other: str) -> str:
    """Of two modes."""
    return max(one, other, key=TAINT_MODES.index)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Something that keeps data, and so labels: a sandbox, an instance, a folder of a volume. Its name begins with its
    account's; one with a slash more lies within it. What a room can't write to gives it labels and gets none; what is
    not lasting ends with the room."""

    name: str
    writable: bool = True
    lasting: bool = True

    def touches(self, name: str) -> bool:
        """Whether data of the other may be this one's: they are the same, or one lies within the other."""
        mine = f"{self.name}/"
        return mine.startswith(f"{name}/") or f"{name}/".startswith(mine)


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What a room has of data from the start. `life` is that one of its holders that it is the room of; `start` are
    labels that it always has, `brought` those that came with the files it was made from, until they are cleared."""

    life: str = ""
    holders: tuple[Holder, ...] = ()
    start: Labels = NONE
    brought: Labels = NONE


def start_labels(rules: TaintRules, volumes: Iterable[str]) -> Labels:
    """What a room begins with that mounts these volumes."""
    private = {PRIVATE} if set(rules.volumes).intersection(volumes) else NONE
    return LABELS.intersection((*rules.start, *private))


def holder_name(account: str, kind: str, *path: str) -> str:
    """`<account>/<kind>/<path...>`; empty steps are left out."""
    steps = [step for part in path for step in part.split("/") if step not in ("", ".")]
    return "/".join((account, kind, *steps))
