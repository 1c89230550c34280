"""Users without root for tests, which run as root: processes of theirs, and directories that they can work in."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

#: Above the ids of people, below those that rooms of root's drivers have: nobody has an account with it.
SOMEBODY = 70123
_SOURCES = Path(__file__).parents[2]
#: What his processes have to read.
_NEEDED = (_SOURCES, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve())


@contextlib.contextmanager
def place_of(user: int = SOMEBODY) -> Iterator[Path]:
    """A directory of the user's, removed at the end; pytest's own are closed to all but root."""
    with tempfile.TemporaryDirectory(prefix="roost-user-") as name:
        place = Path(name)
        place.chmod(0o711)
        own = place / "own"
        own.mkdir(mode=0o700)
        os.chown(own, user, user)
        yield own
    with contextlib.suppress(OSError):  # another test's server may have its sockets there
        Path(f"/tmp/roost-{user}").rmdir()


def give(directory: Path, user: int = SOMEBODY) -> None:
    """All of it is the user's."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)


def command(module: str, arguments: Sequence[str], place: Path, user: int = SOMEBODY) -> list[str]:
    """That runs a module by this interpreter. What only root gets to, as all below /root, is shown to it alone, by
    mounts of its own."""
    here = [sys.executable, "-m", module, *arguments]
    needed = [path for path in _NEEDED if not any(other in path.parents for other in _NEEDED)]
    closed = {path: folder for path in dict.fromkeys(needed) if (folder := _closed(path)) is not None}
    if not closed:
        return here
    aside = place.parent / "shown"
    script = ["set -e"]
    for number, path in enumerate(closed):
        (aside / str(number)).mkdir(parents=True, exist_ok=True)
        script.append(f"mount --bind {quote(str(path))} {quote(str(aside / str(number)))}")
    script += [
        f"mount -t tmpfs -o mode=755 roost-test {quote(str(folder))}" for folder in dict.fromkeys(closed.values())
    ]
    for number, path in enumerate(closed):
        script.append(f"mkdir -p {quote(str(path))}")
        script.append(f"mount --move {quote(str(aside / str(number)))} {quote(str(path))}")
    privately = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join([*script, 'exec "$@"']), "sh"]
    return [*privately, "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *here]


def _closed(path: Path) -> Path | None:
    """The outermost folder on the way to it, or itself, that others than its owner can't enter."""
    ways = (*reversed(path.parents), path)
    return next((way for way in ways if not way.stat().st_mode & 0o001), None)


def start(
    module: str, arguments: Sequence[str], place: Path, *, user: int = SOMEBODY, **options: Any
) -> subprocess.Popen[str]:
    """A process of the user's, without a home; `place` is his."""
    line = command(module, arguments, place, user)
    who: dict[str, Any] = {} if line[0] == "unshare" else {"user": user, "group": user, "extra_groups": []}
    given = {key: value for key, value in options.pop("env", {}).items() if key not in {"HOME", "XDG_RUNTIME_DIR"}}
    environment = {"PATH": os.environ["PATH"], **given, "PYTHONPATH": str(_SOURCES)}
    return subprocess.Popen(line, text=True, env=environment, cwd="/", **who, **options)


def processes(user: int = SOMEBODY, *, containing: str = "") -> list[int]:
    """Of the user's, with this in their command line; those that have ended and wait for init are none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                about = fields(entry / "status")
                lives = about["Uid"].split()[0] == str(user) and about["State"][0] != "Z"
                if lives and containing in (entry / "cmdline").read_text(errors="replace"):
                    found.append(int(entry.name))
    return found


def fields(status: Path) -> Mapping[str, str]:
    """Of /proc/<pid>/status."""
    pairs = (line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
    return {pair[0]: pair[1] for pair in pairs}
