"""Which directories are mounted in some process's view, so that nothing in use by a room is removed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")


def mounted(directories: Iterable[Path]) -> frozenset[Path]:
    """Those of the directories that any process of this machine has mounted somewhere (bind mounts).

    A mount that is detached, or a lower layer of an overlay, is not seen.
    """
    wanted = {_origin(directory.resolve()): directory for directory in directories}
    found: set[tuple[str, str]] = set()
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        # A process may end while its table is read.
        with contextlib.suppress(OSError):
            found.update(origin for origin, _ in _entries(table) if origin in wanted)
    return frozenset(wanted[origin] for origin in found)


def _origin(directory: Path) -> tuple[str, str]:
    """Device and path on it, as a mount table names what a bind mount of the directory shows."""
    best: tuple[tuple[str, str], Path] | None = None
    for origin, point in _entries(Path("/proc/self/mountinfo")):
        # Of mounts at one point the last hides the others.
        if directory.is_relative_to(point) and (best is None or len(point.parts) >= len(best[1].parts)):
            best = (origin, point)
    if best is None:
        return "", str(directory)
    (device, root), point = best
    return device, str(Path(root) / directory.relative_to(point))


def _entries(table: Path) -> Iterator[tuple[tuple[str, str], Path]]:
    for line in table.read_text(errors="surrogateescape").splitlines():
        _, _, device, root, point, *_ = line.split(" ")
        yield (device, _unescape(root)), Path(_unescape(point))


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
