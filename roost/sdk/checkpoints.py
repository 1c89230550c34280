"""Checkpoints of a sandbox as the API lists them: found by their labels, and drawn as a tree. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from roost.sdk.errors import Failed, UsageError
from roost.sdk.terminal import clean

_MB = 1 << 20


def named(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """The id of the checkpoint with this id, or with this label if one alone has it. Raises UsageError for no name,
    Failed when it is not one."""
    if not name:
        raise UsageError("The id or label of a checkpoint is empty; `roost sandbox tree` shows them.")
    found = [str(row.get("checkpointID", "")) for row in rows if row.get("label") == name]
    if any(row.get("checkpointID") == name for row in rows):
        return name
    if not found:
        raise Failed(f"No checkpoint has the id or label {name[:80]!r}; `roost sandbox tree` shows them.", status=404)
    if len(found) > 1:
        raise Failed(f"{len(found)} checkpoints have the label {name[:80]!r}: {', '.join(found)}.")
    return found[0]


def drawn(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each checkpoint, below that which it came from."""
    known = {row.get("checkpointID") for row in rows}
    below: dict[object, list[Mapping[str, Any]]] = {}
    for row in rows:
        parent = row.get("parentID")
        below.setdefault(parent if parent in known and parent != row.get("checkpointID") else None, []).append(row)
    seen: set[object] = set()
    stack = [("", "", row) for row in reversed(below.get(None, []))]
    while stack:  # not by recursion: the tree may be as deep as it is large
        own, inner, row = stack.pop()
        if row.get("checkpointID") in seen:
            continue
        seen.add(row.get("checkpointID"))
        yield own + _line(row)
        children = below.get(row.get("checkpointID"), [])
        for child in reversed(children):
            last = child is children[-1]
            stack.append((inner + ("└── " if last else "├── "), inner + ("    " if last else "│   "), child))


def _line(row: Mapping[str, Any]) -> str:
    memory = str(row.get("memory", ""))
    size = row.get("memoryBytes")
    if memory == "held" and isinstance(size, int):
        memory = f"memory held, {max(1, size // _MB)} MB"
    elif memory == "on disk":
        memory = "memory on disk"
    else:
        memory = f"files alone ({memory.removeprefix('dropped: ')})"
    label = f" {row['label']}" if row.get("label") else ""
    return clean(f"{'* ' if row.get('current') else ''}{row.get('checkpointID', '')}{label}: {memory}")
