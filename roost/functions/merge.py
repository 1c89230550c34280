"""Several unpacked packages as one tree: hard links, no copies. What stands in an earlier source wins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def merge_trees(sources: Sequence[Path], folder: Path) -> None:
    """Make the new `folder` out of `sources`. Blocking; on one file system.

    Folders of the same name are merged; anything else hides what later sources have in its place.
    """
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    for source in sources:
        _add(source, folder)


def _add(source: Path, target: Path) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            place = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                if not os.path.lexists(place):
                    place.mkdir()
                    place.chmod(0o755)
                elif place.is_symlink() or not place.is_dir():
                    continue
                _add(Path(entry.path), place)
            elif not os.path.lexists(place):
                if entry.is_symlink():
                    place.symlink_to(Path(entry.path).readlink())
                else:
                    os.link(entry.path, place)
