"""A process that outlives the server, to end the rooms of one that was killed and does not come back.

Rooms live on when their server dies, so that the next one can adopt them. One that runs ends by itself before long; a
frozen one can't. So this process holds a pipe to the server. When that breaks without a word, it waits: if a new server
takes the lock of the data directory, the rooms are that one's. If none does in the time of grace, it takes the lock,
kills the rooms and removes their cgroups and run directories. Sessions' layers and volumes stay.

Runs as root: python -m roost.isolation.namespaces.undertaker PIPE_FD GRACE_S LOCK RUN_DIR CGROUP...
Imports nothing that it does not need: it does nothing, all its life, but wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

INSIDE = "in"  # as `cgroups` names it, which would take long to import
HELD = "held"
_POLL_S = 0.2
_END_S = 10.0


def rooms(groups: Sequence[Path]) -> list[Path]:
    """The rooms' cgroups, in every tree."""
    found: list[Path] = []
    for group in groups:
        with contextlib.suppress(OSError):
            found.extend(entry for entry in group.iterdir() if entry.is_dir() and entry.name != HELD)
    return found


def is_locked(lock: Path) -> bool:
    """Whether anybody is seen to hold the lock. Only looks, so that a server that starts now is not turned away.

    Some file systems show another device here than to `stat`: then the holder is only met when the lock is taken.
    """
    try:
        status = lock.stat()
        locks = Path("/proc/locks").read_text()
    except OSError:
        return False
    place = f" {os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} "
    return any(place in line and " FLOCK " in line for line in locks.splitlines())


def end(groups: Sequence[Path], run_dir: Path) -> None:
    """Kill the rooms and remove what they held."""
    deadline = time.monotonic() + _END_S
    while (left := rooms(groups)) and time.monotonic() < deadline:
        for room in left:
            with contextlib.suppress(OSError):
                (room / "cgroup.kill").write_text("1")  # of the v2 tree; frozen processes end too
            for directory in (room / INSIDE, room):
                with contextlib.suppress(OSError):
                    directory.rmdir()
        time.sleep(0.01)
    for group in groups:
        for directory in (group / HELD, group):  # what was held ended with the server
            with contextlib.suppress(OSError):
                directory.rmdir()
    shutil.rmtree(run_dir, ignore_errors=True)


def watch(pipe: int, grace_s: float, lock: Path, run_dir: Path, groups: Sequence[Path]) -> None:
    """Returns when there is nothing to do any more."""
    if os.read(pipe, 1):
        return  # the server says goodbye
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        if is_locked(lock) or not rooms(groups):
            return
        time.sleep(_POLL_S)
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass  # the whole data directory is gone
    except OSError:
        return  # a server has come back
    end(groups, run_dir)


def main() -> None:
    pipe, grace_s, lock, run_dir, *groups = sys.argv[1:]
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("roost-undertake")
    watch(int(pipe), float(grace_s), Path(lock), Path(run_dir), [Path(group) for group in groups])


if __name__ == "__main__":
    main()
