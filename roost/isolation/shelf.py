"""Directories made once for everybody: under a lock, complete or not at all, and removed when nobody uses them."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from roost.isolation.mounted import mounted
from roost.model.errors import Unavailable

_LOCK_TIMEOUT_S = 300.0


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the directory's lock; the kernel releases it if the holder dies. Raises Unavailable after a long wait."""
    with (folder / ".lock").open("w") as lock:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(f"Another process has held {folder}/.lock for too long.") from None
                time.sleep(0.05)
        yield


def remove_unused(folder: Path, *, keep: Path, after_s: float) -> None:
    """Remove the other directories in `folder`, except those that a room may still run from.

    A room that outlived its server has its directory mounted. One that is just being made may not have it yet: hence
    the grace period since the directory was last asked for.
    """
    now = time.time()
    old = [path for path in folder.iterdir() if path.is_dir() and path != keep and now - path.stat().st_mtime > after_s]
    if not old:
        return
    for path in set(old) - mounted(old):
        shutil.rmtree(path)
