"""What a file system's errors mean to whoever wanted something stored."""

from __future__ import annotations

import errno
from pathlib import Path

from roost.model.errors import RoostError, StorageFull, Unavailable


def no_room(path: Path) -> StorageFull:
    return StorageFull(f"No room left on the disk of {path.parent}.")


def of_file(error: OSError, path: Path) -> RoostError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return no_room(path)
    return Unavailable(f"Can't use {path}: {error.strerror}.")
