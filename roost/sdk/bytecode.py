"""Bytecode beside the sources of a package, so that no cold start compiles what a deploy could.

A room mounts its package read-only and could not keep what it compiles. Bytecode is good for one minor version of
Python; any other passes over it and reads the sources, so it is made only when this interpreter's version is that of
the rooms.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from roost.sdk.errors import Failed

OWN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_CODE = "/code"  # where a room has its package; tracebacks name it
_WORKER = Path(__file__).with_name("bytecode_worker.py")
_TIMEOUT = 1800.0


def place(name: str) -> str:
    """Where the import system looks for the bytecode of the source `name`."""
    path = PurePosixPath(name)
    return str(path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc")


def compile_members(members: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The bytecode of every source among `members` (name in the package -> file), written below `folder`.

    Returns it as members. Equal sources give equal bytes: one fresh process compiles all, in order of the names and
    with fixed hashes, since what the compiler writes depends on the strings that the process has seen.
    Raises Failed when the folder can't be written.
    """
    sources = sorted(name for name in members if name.endswith(".py"))
    if not sources:
        return {}
    wanted = {name: folder / place(name) for name in sources}
    lines = [json.dumps([str(members[name].absolute()), str(wanted[name]), f"{_CODE}/{name}"]) for name in sources]
    try:
        ran = subprocess.run(
            [sys.executable, "-S", "-s", "-P", "-B", str(_WORKER)],
            input="\n".join(lines),
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"Compiling {len(sources)} Python files took more than {_TIMEOUT:.0f} s.") from error
    if ran.returncode:
        said = ran.stderr.strip().splitlines() or ["it said nothing"]
        raise Failed(f"The Python files could not be compiled: {said[-1]}")
    return {place(name): made for name, made in wanted.items() if made.is_file()}


def of_package(members: Mapping[str, Path], vendored: Path | None, folder: Path) -> dict[str, Path]:
    """The bytecode of a whole package: what `vendored` has beside its own files, and the rest made below `folder`.

    A vendored file that one of the user's own replaces has no part in it: its bytecode would run instead of the source.
    """
    theirs = {name for name, path in members.items() if vendored is not None and path == vendored / name}
    compiled = compile_members({name: path for name, path in members.items() if name not in theirs}, folder)
    if vendored is not None:
        kept = {place(name): vendored / place(name) for name in theirs if name.endswith(".py")}
        compiled |= {name: path for name, path in kept.items() if path.is_file()}
    return compiled
