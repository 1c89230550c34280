"""Unpacks what a build copies into a template, inside its room and as the room's root.

python -m roost.guest.unpack ARCHIVE SOURCE TARGET OWNER MODE: the entry SOURCE of a tar archive (compressed or not) is
put at TARGET. Of a folder that is its content; a SOURCE with wildcards stands for the folder above the first of them,
as the archive holds only what matched. A file goes into TARGET if that is a folder or ends with a slash. OWNER is
`user:group`, the group may be empty; MODE is octal or empty, and goes for everything below a folder too.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_WILDCARDS = frozenset("*?[{")


def main(arguments: list[str]) -> int:
    archive, source, target, owner, mode = arguments
    try:
        uid, gid = _owner(owner)
        with tempfile.TemporaryDirectory(prefix=".roost-copy-", dir="/tmp") as work:
            _extract(Path(archive), Path(work))
            entry = Path(work, fixed_part(source))
            if not os.path.lexists(entry):
                raise FileNotFoundError(2, "the archive has no such entry", source)
            _prepare(entry, uid, gid, int(mode, 8) if mode else None)
            place(entry, target, uid, gid)
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        sys.stderr.write(f"COPY {source}: {error}\n")
        return 1
    return 0


def fixed_part(source: str) -> str:
    """The leading folders of a path without wildcards."""
    parts: list[str] = []
    for part in PurePosixPath(source).parts:
        if _WILDCARDS & set(part):
            break
        parts.append(part)
    return "/".join(parts) or "."


def place(entry: Path, target: str, uid: int, gid: int) -> None:
    """Move an entry, its modes and owner set, to where it belongs."""
    goal = Path(target)
    if entry.is_dir() and not entry.is_symlink():
        _make(goal, uid, gid)
        _merge(entry, goal)
        return
    if target.endswith("/") or goal.is_dir():
        _make(goal, uid, gid)
        goal /= entry.name
    else:
        _make(goal.parent, uid, gid)
    _replace(entry, goal)


def _owner(text: str) -> tuple[int, int]:
    user, _, group = text.partition(":")
    if user.isdecimal():
        uid, gid = int(user), int(user)
    else:
        known = pwd.getpwnam(user)
        uid, gid = known.pw_uid, known.pw_gid
    if group:
        gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    return uid, gid


def _extract(archive: Path, work: Path) -> None:
    """Names that lead out of `work` are refused; owners are set afterwards."""
    with tarfile.open(archive, "r:*") as packed:
        packed.extraction_filter = lambda member, _: member  # newer Pythons would change modes and refuse links
        for member in packed:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise PermissionError(1, "an entry leads out of the archive", member.name)
            if member.isdev():
                continue
            member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
            packed.extract(member, work, numeric_owner=True)


def _prepare(entry: Path, uid: int, gid: int, mode: int | None) -> None:
    for path in [entry, *_below(entry)]:
        os.lchown(path, uid, gid)
        if mode is not None and not path.is_symlink():
            path.chmod(mode)


def _below(entry: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(entry):
        for name in (*folders, *files):
            yield Path(folder, name)


def _make(folder: Path, uid: int, gid: int) -> None:
    """A folder, and those above it; what is new belongs to the owner."""
    missing: list[Path] = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir()
        os.chown(path, uid, gid)


def _merge(source: Path, target: Path) -> None:
    for child in sorted(source.iterdir()):
        goal = target / child.name
        if child.is_dir() and not child.is_symlink() and goal.is_dir():
            _merge(child, goal)
        else:
            _replace(child, goal)


def _replace(source: Path, goal: Path) -> None:
    """In place of a file or link that is there; a folder is not replaced by a file."""
    if os.path.lexists(goal) and not (goal.is_dir() and not goal.is_symlink()):
        goal.unlink()
    shutil.move(source, goal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
