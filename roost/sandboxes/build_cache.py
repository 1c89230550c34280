"""What builds keep on the host's disk: archives that clients uploaded, and layers as they were after a stage.

files/<scope>/<hash>/archive   an upload, complete or not there
layers/<key>.img               a layer after a stage; its age is that of its last use
work/                          what is being made; emptied when a server starts

A layer is taken by copying or linking it, so any of them may be removed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from roost.isolation.images import storage
from roost.model.errors import InvalidArgument, PayloadTooLarge
from roost.sandboxes.builds import ARCHIVE
from roost.sandboxes.recipes import FILES_HASH


class BuildCache:
    """`most_bytes`: what layers, and what uploads, may take of the disk before those unused for longest go."""

    def __init__(self, directory: Path, *, most_bytes: int) -> None:
        self._files = directory / "files"
        self._layers = directory / "layers"
        self._work = directory / "work"
        self._most_bytes = most_bytes

    def prepare(self) -> None:
        """Once, before anything is built: remove what a killed server left. Raises StorageFull, Unavailable."""
        with storage(self._work):
            shutil.rmtree(self._work, ignore_errors=True)
            for folder in (self._files, self._layers, self._work):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    # -- uploads

    def has_files(self, scope: str, files_hash: str) -> bool:
        """They count as used now. Raises InvalidArgument for what is no hash."""
        return _touch(self.files(scope, files_hash) / ARCHIVE)

    def files(self, scope: str, files_hash: str) -> Path:
        """The folder with an archive, whether or not it is there. Raises InvalidArgument for what is no hash."""
        if not FILES_HASH.fullmatch(files_hash):
            raise InvalidArgument("The hash of files is a SHA-256 in hex.")
        return self._files / hashlib.sha256(scope.encode()).hexdigest()[:16] / files_hash

    @contextlib.contextmanager
    def upload(self, scope: str, files_hash: str, *, most_bytes: int) -> Iterator[BoundedFile]:
        """A file to write the archive to; it takes its place, or an older one's, if the block ends well."""
        folder = self.files(scope, files_hash)
        with self.work_file() as making:
            with storage(making):
                file = making.open("wb", buffering=0)
            with file:
                yield BoundedFile(file, making, most_bytes)
                with storage(making):
                    os.fsync(file.fileno())
            with storage(folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                making.replace(folder / ARCHIVE)
            self._prune(self._files.glob(f"*/*/{ARCHIVE}"))

    # -- layers

    @contextlib.contextmanager
    def work_file(self) -> Iterator[Path]:
        """A name for something in the making, which is gone afterwards unless it was moved away."""
        path = self._work / secrets.token_hex(8)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def layer(self, key: str) -> Path | None:
        """The layer after this stage, if it is there; it counts as used now."""
        path = self._layers / f"{key}.img"
        return path if _touch(path) else None

    def keep(self, key: str, made: Path) -> None:
        """`made` is the layer after this stage, complete; it takes the place of an older one."""
        with storage(made):
            made.replace(self._layers / f"{key}.img")
        self._prune(self._layers.glob("*.img"))

    def _prune(self, paths: Iterable[Path]) -> None:
        found = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                about = path.stat()
                found.append((about.st_mtime, about.st_blocks * 512, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found)[:-1]:  # the last one used is about to be used again
            if total <= self._most_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def _touch(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


class BoundedFile:
    """Raises PayloadTooLarge when more is written than allowed, StorageFull when the disk is full."""

    def __init__(self, file: FileIO, path: Path, most_bytes: int) -> None:
        self._file = file
        self._path = path
        self._left = most_bytes

    def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise PayloadTooLarge("The archive is larger than this server takes.")
        left = memoryview(data)
        with storage(self._path):
            while left:
                left = left[self._file.write(left) :]
