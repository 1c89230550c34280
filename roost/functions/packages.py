"""Code packages: taken in as zip archives, unpacked once each, found by the digest of the archive.

    <root>/<sha256>/        the unpacked files, read-only, what rooms see at /code or /opt
    <root>/<sha256>.zip     the archive as it came, for download
    <root>/.new-*           being written; left over from a crash, removed at start

A digest's folder appears by one rename when it is complete, and never changes.
"""

from __future__ import annotations

import asyncio
import binascii
import errno
import hashlib
import io
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from roost.functions.checksum import crc64
from roost.functions.merge import merge_trees
from roost.functions.ziptree import Entry, Kind, Tree, count_entries, judge
from roost.model.errors import InvalidArgument, NotFound, PayloadTooLarge, StorageFull, Unavailable

_CHUNK = 1 << 18
#: What zipfile and zlib raise for bytes that are no proper archive.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, struct.error)
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, kw_only=True)
class PackageLimits:
    """What a package may be. Sizes in bytes; `unpacked` counts bytes that really come out, not what headers say."""

    compressed: int = 100 * 1024 * 1024
    unpacked: int = 500 * 1024 * 1024
    entries: int = 50_000


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that is stored. `size`: of the archive in bytes; `checksum`: its CRC-64 as a decimal number."""

    digest: str
    size: int
    checksum: str


class PackageStore:
    """The packages of one server. Unpacking runs in threads, at most `parallel` at once."""

    def __init__(self, root: Path, limits: PackageLimits | None = None, *, parallel: int = 2) -> None:
        self.root = root
        self.limits = limits or PackageLimits()
        self._slots = asyncio.Semaphore(parallel)
        self._pins: Counter[str] = Counter()

    def open(self) -> None:
        """Make the folder and remove what a crash left half-written. Blocking; call before use."""
        self.root.mkdir(parents=True, exist_ok=True)
        for stale in self.root.glob(".new-*"):
            _remove(stale)

    def path(self, digest: str) -> Path:
        """The unpacked files. Raises NotFound when there are none."""
        found = self.root / digest
        if not digest or not found.is_dir():
            raise NotFound(f"The package {digest or '(none)'} is not stored here.", code="CodeNotFound")
        return found

    def archive(self, digest: str) -> Path:
        """The zip archive as it came. Raises NotFound."""
        found = self.root / f"{digest}.zip"
        if not digest or not found.is_file():
            raise NotFound(f"The package {digest or '(none)'} is not stored here.", code="CodeNotFound")
        return found

    @asynccontextmanager
    async def adding_base64(self, text: str, checksum: str | None = None) -> AsyncIterator[Package]:
        """`adding` for an archive in base64."""
        if len(text) > self.limits.compressed * 4 // 3 + 4:
            raise _too_large(self.limits)
        try:
            data = await asyncio.to_thread(_decode, text)
        except ValueError as error:
            raise InvalidArgument(f"The package is not valid base64: {error}.") from error
        async with self.adding(data, checksum) as package:
            yield package

    @asynccontextmanager
    async def adding(self, source: bytes | Path, checksum: str | None = None) -> AsyncIterator[Package]:
        """Store the zip archive and hold it against garbage collection until the block ends.

        Inside the block the caller writes down who refers to it. The same archive is stored once.
        `checksum`: the CRC-64 the sender computed; InvalidArgument when it differs.

        Raises InvalidArgument, PayloadTooLarge, StorageFull, Unavailable; nothing is left behind then.
        """
        async with self._slots:
            package = await asyncio.to_thread(self._identify, source)
            if checksum is not None and checksum != package.checksum:
                raise InvalidArgument(f"checksum: the package's CRC-64 is {package.checksum}, not {checksum}.")
            self._pins[package.digest] += 1
            try:
                await asyncio.to_thread(self._store, source, package.digest)
            except BaseException:
                self._unpin(package.digest)
                raise
        try:
            yield package
        finally:
            self._unpin(package.digest)

    @asynccontextmanager
    async def merging(self, digests: Sequence[str]) -> AsyncIterator[str]:
        """One digest whose folder holds all of `digests`; what is in an earlier one hides the same in a later one.

        Held against garbage collection until the block ends. Empty for no digests; a single one is itself.
        """
        merged = merged_digest(digests)
        self._pins[merged] += 1
        try:
            if len(digests) > 1 and not (self.root / merged).is_dir():
                sources = [self.path(digest) for digest in digests]
                async with self._slots:
                    await asyncio.to_thread(self._merge, sources, merged)
            yield merged
        finally:
            self._unpin(merged)

    async def collect(self, keep: frozenset[str], *, limit: int = 100) -> int:
        """Remove up to `limit` packages whose digest is neither in `keep` nor being added; how many were removed."""
        removed = 0
        for digest in await asyncio.to_thread(self._digests):
            if removed >= limit:
                break
            if digest not in keep and not self._pins[digest]:
                await asyncio.to_thread(self._discard, digest)
                removed += 1
        return removed

    def _unpin(self, digest: str) -> None:
        self._pins[digest] -= 1
        if not self._pins[digest]:
            del self._pins[digest]

    def _digests(self) -> list[str]:
        names = {entry.name.removesuffix(".zip") for entry in self.root.iterdir()}
        return sorted(name for name in names if not name.startswith("."))

    def _discard(self, digest: str) -> None:
        (self.root / f"{digest}.zip").unlink(missing_ok=True)
        folder = self.root / digest
        if folder.is_dir():
            # Renamed first: half a package must never stand under a digest.
            doomed = self.root / f".new-gone-{digest}"
            folder.rename(doomed)
            _remove(doomed)

    def _identify(self, source: bytes | Path) -> Package:
        digest = hashlib.sha256()
        size = 0

        def chunks() -> Iterator[bytes]:
            nonlocal size
            with _reading(source) as stream:
                while block := stream.read(_CHUNK):
                    size += len(block)
                    if size > self.limits.compressed:
                        raise _too_large(self.limits)
                    digest.update(block)
                    yield block

        checksum = crc64(chunks())
        return Package(digest=digest.hexdigest(), size=size, checksum=str(checksum))

    def _store(self, source: bytes | Path, digest: str) -> None:
        target = self.root / digest
        archive = self.root / f"{digest}.zip"
        if target.is_dir() and archive.is_file():
            return
        with _storage_errors(), tempfile.TemporaryDirectory(prefix=".new-", dir=self.root) as work:
            kept = Path(work) / "archive.zip"
            with _reading(source) as stream, kept.open("xb") as out:
                shutil.copyfileobj(stream, out, _CHUNK)
                out.flush()
                os.fsync(out.fileno())
            if not target.is_dir():
                folder = Path(work) / "files"
                with kept.open("rb") as stream:
                    unpack(stream, folder, self.limits)
                folder.rename(target)
            kept.rename(archive)

    def _merge(self, sources: Sequence[Path], digest: str) -> None:
        target = self.root / digest
        if target.is_dir():
            return
        with _storage_errors(), tempfile.TemporaryDirectory(prefix=".new-", dir=self.root) as work:
            folder = Path(work) / "files"
            merge_trees(sources, folder)
            folder.rename(target)


def merged_digest(digests: Sequence[str]) -> str:
    """The digest under which these packages, merged in this order, are found."""
    if len(digests) <= 1:
        return "".join(digests)
    return hashlib.sha256(("merged\n" + "\n".join(digests)).encode()).hexdigest()


def unpack(stream: BinaryIO, folder: Path, limits: PackageLimits) -> None:
    """Write a zip archive's files into the new `folder`. Blocking.

    Raises InvalidArgument for an archive that is damaged or has no place here, PayloadTooLarge beyond the limits.
    """
    count_entries(stream, limits.entries)
    try:
        with zipfile.ZipFile(stream) as archive:
            tree = _plan(archive, limits)
            _write(archive, tree, folder, limits)
    except _DAMAGED as error:
        raise InvalidArgument(f"The package is not a valid zip archive: {error}.") from error


def _plan(archive: zipfile.ZipFile, limits: PackageLimits) -> Tree:
    tree = Tree(limit=limits.entries)
    for info in archive.infolist():
        if not 0 <= info.header_offset < archive.start_dir:
            raise InvalidArgument("The package is not a valid zip archive: it is cut short.")
        tree.add(judge(info))
    for entry in list(tree.entries.values()):
        if entry.kind is Kind.LINK:
            with archive.open(entry.info) as source:
                tree.aim(entry, source.read(4097).decode())
    tree.check_links()
    return tree


def _write(archive: zipfile.ZipFile, tree: Tree, folder: Path, limits: PackageLimits) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    left = limits.unpacked
    for entry in tree.entries.values():
        target = folder.joinpath(*entry.path)
        _make_folders(folder, entry.path[: None if entry.kind is Kind.FOLDER else -1])
        if entry.kind is Kind.LINK:
            target.symlink_to(entry.target)
        elif entry.kind is Kind.FILE:
            left -= _inflate(archive, entry, target, left, limits)


def _make_folders(root: Path, parts: Sequence[str]) -> None:
    here = root
    for part in parts:
        here = here / part
        if not here.is_dir():
            here.mkdir()
            here.chmod(0o755)


def _inflate(archive: zipfile.ZipFile, entry: Entry, target: Path, left: int, limits: PackageLimits) -> int:
    written = 0
    with archive.open(entry.info) as source, target.open("xb") as out:
        while block := source.read(_CHUNK):
            written += len(block)
            if written > left:
                raise PayloadTooLarge(f"The package unpacks to more than {limits.unpacked >> 20} MB.")
            out.write(block)
        os.fchmod(out.fileno(), 0o555 if entry.executable else 0o444)
    return written


def _decode(text: str) -> bytes:
    """Strict base64, in steps: one call for all of it would hold up every other thread for as long."""
    if len(text) % 4:
        raise ValueError("its length is not a multiple of 4")
    parts = []
    for at in range(0, len(text), _CHUNK):
        part = text[at : at + _CHUNK]
        if "=" in part and at + _CHUNK < len(text):
            raise ValueError("padding before the end")
        parts.append(binascii.a2b_base64(part, strict_mode=True))
    return b"".join(parts)


def _reading(source: bytes | Path) -> BinaryIO:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageFull("No room left on the disk to unpack the package.") from error
        raise Unavailable(f"The package could not be written: {error.strerror}.") from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _too_large(limits: PackageLimits) -> PayloadTooLarge:
    return PayloadTooLarge(f"The package is larger than {limits.compressed >> 20} MB.")
