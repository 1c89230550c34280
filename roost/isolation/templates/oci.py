"""OCI image layouts: a directory or a plain tar file with `index.json` and `blobs/sha256/...`.

Every blob that is used is compared with its digest. Nothing is fetched: the image was brought here by another tool.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import platform
import re
import stat
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from roost.isolation.templates.rootfs import Readable, RootWriter
from roost.isolation.templates.tree import extract_tar
from roost.model.errors import InvalidArgument, Unavailable

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_DOCUMENT = 4 << 20
_MAX_LAYERS = 512
_MAX_NESTING = 4
_MAX_MEMBERS = 20_000
_CHUNK = 1 << 20
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64", "ppc64le": "ppc64le"}
_NAME = "org.opencontainers.image.ref.name"
_ANOTHER_FORMAT = (
    "It is not an OCI image layout (no index.json). `docker save` of Docker 25 or later, "
    "`podman save --format oci-archive` and `skopeo copy docker://IMAGE oci:DIR` write one."
)


class Layout(Protocol):
    """Files of an image layout by name."""

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]: ...


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of a layout: its layers, lowest first, and its configuration's `config` object."""

    digest: str
    layers: tuple[str, ...]
    config: Mapping[str, Any]


class DirectoryLayout:
    """A layout as a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        try:
            fd = os.open(self._root / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidArgument(f"The image has no readable {name}.") from error
        file = os.fdopen(fd, "rb")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            file.close()
            raise InvalidArgument(f"{name} is not a file.")
        return file


class ArchiveLayout:
    """A layout in a tar file that is not compressed, so that its members can be read in any order."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(archive):
            if number > _MAX_MEMBERS:
                raise InvalidArgument(f"The archive has more than {_MAX_MEMBERS} members; an image layout has few.")
            if member.isreg():
                self._members[member.name.removeprefix("./")] = member

    def has(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        member = self._members.get(name)
        content = self._archive.extractfile(member) if member is not None else None
        if content is None:
            raise InvalidArgument(f"The image has no {name}.")
        return content


@contextlib.contextmanager
def open_layout(source: Path) -> Iterator[Layout]:
    """The layout at `source`. Raises InvalidArgument if it is none."""
    if source.is_dir():
        if not (source / "index.json").exists():
            raise InvalidArgument(f"{source}: {_ANOTHER_FORMAT}")
        yield DirectoryLayout(source)
        return
    with contextlib.ExitStack() as stack:
        try:
            layout = ArchiveLayout(stack.enter_context(tarfile.open(source, "r:")))
        except (tarfile.TarError, EOFError) as error:
            raise InvalidArgument(f"{source} is no tar file, or is compressed or damaged: {error}.") from error
        if not layout.has("index.json"):
            raise InvalidArgument(f"{source}: {_ANOTHER_FORMAT}")
        yield layout


def is_layout(source: Path) -> bool:
    """Whether `source` looks like an image layout rather than a root file system."""
    return (source / "oci-layout").is_file() and (source / "index.json").is_file()


def choose_image(layout: Layout, *, machine: str = "") -> Image:
    """The layout's one image for this machine's architecture (or `machine`, as `uname -m` names it).

    Raises InvalidArgument if there is none or more than one, naming what there is.
    """
    architecture = _ARCHITECTURES.get(machine or platform.machine(), machine or platform.machine())
    candidates = {d["digest"]: d for d in _manifests(layout, _document(layout, "index.json"), 0)}
    fitting = {
        digest: descriptor
        for digest, descriptor in candidates.items()
        if _platform(layout, descriptor) in (("linux", architecture), None)
    }
    if not fitting:
        there = ", ".join(sorted({"/".join(_platform(layout, d) or ("?",)) for d in candidates.values()})) or "none"
        raise InvalidArgument(f"The layout has no image for linux/{architecture}; it has: {there}.")
    if len(fitting) > 1:
        names = ", ".join(sorted(str(_mapping(d, "annotations").get(_NAME, d["digest"])) for d in fitting.values()))
        raise InvalidArgument(f"The layout has several images for linux/{architecture}: {names}. Export just one.")
    digest = next(iter(fitting))
    manifest = _blob_document(layout, digest)
    layers = [_digest_of(layer) for layer in _list(manifest, "layers")]
    if len(layers) > _MAX_LAYERS:
        raise InvalidArgument(f"The image has {len(layers)} layers; {_MAX_LAYERS} are accepted.")
    config = _blob_document(layout, _digest_of(_mapping(manifest, "config")))
    return Image(digest=digest, layers=tuple(layers), config=_mapping(config, "config"))


def unpack_layer(layout: Layout, digest: str, root: RootWriter, *, limit: int) -> None:
    """Write one layer over those before it. Raises InvalidArgument if its content is not what its digest says."""
    with layout.open(_blob_name(digest)) as blob:
        _verify(blob, digest)
        blob.seek(0)
        start = blob.read(4)
        blob.seek(0)
        root.begin_layer()
        if start[:2] == b"\x1f\x8b":
            extract_tar(_Gunzip(blob), root, limit=limit, whiteouts=True)
        elif start == b"\x28\xb5\x2f\xfd":
            with _zstd(blob) as stream:
                extract_tar(stream, root, limit=limit, whiteouts=True)
        else:
            extract_tar(blob, root, limit=limit, whiteouts=True)


class _Gunzip:
    """A gzip stream whose damage is the image's fault, not this machine's."""

    def __init__(self, blob: IO[bytes]) -> None:
        self._file = gzip.GzipFile(fileobj=blob)

    def read(self, size: int, /) -> bytes:
        try:
            return self._file.read(size)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InvalidArgument(f"A layer is damaged: {error}.") from error


@contextlib.contextmanager
def _zstd(blob: IO[bytes]) -> Iterator[Readable]:
    """Decompress with the zstd program, which gets the blob as a file of its own and no name of this machine."""
    with (
        _as_file(blob) as file,
        _start_zstd(file) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout
            if process.wait() != 0:
                raise InvalidArgument("A layer is damaged: zstd can't decompress it.")
        finally:
            process.kill()


def _start_zstd(file: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            ["zstd", "-dcq", "--memory=512MB"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise Unavailable(
            "The image's layers are compressed with zstd, which is not installed: apt-get install -y zstd"
        ) from error


@contextlib.contextmanager
def _as_file(blob: IO[bytes]) -> Iterator[IO[bytes]]:
    """The blob as something with a descriptor of its own; a member of an archive is copied to an unnamed file."""
    try:
        blob.fileno()
    except (OSError, AttributeError):
        with tempfile.TemporaryFile() as copy:
            while chunk := blob.read(_CHUNK):
                copy.write(chunk)
            copy.seek(0)
            yield copy
    else:
        os.lseek(blob.fileno(), 0, os.SEEK_SET)
        yield blob


def _manifests(layout: Layout, index: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    """Descriptors of the images of an index and of the indexes in it; attestations, of no platform, are left out."""
    if depth > _MAX_NESTING:
        raise InvalidArgument("The layout's indexes are nested too deeply.")
    for descriptor in _list(index, "manifests"):
        digest = _digest_of(descriptor)
        document = _blob_document(layout, digest)
        if "manifests" in document:
            yield from _manifests(layout, document, depth + 1)
        elif _mapping(descriptor, "platform").get("os") != "unknown":
            yield descriptor


def _platform(layout: Layout, descriptor: Mapping[str, Any]) -> tuple[str, str] | None:
    """System and architecture by the descriptor, else by the image's configuration; None if neither tells."""
    told: Mapping[str, Any] = _mapping(descriptor, "platform")
    if not told:
        manifest = _blob_document(layout, _digest_of(descriptor))
        told = _blob_document(layout, _digest_of(_mapping(manifest, "config")))
    system, architecture = told.get("os"), told.get("architecture")
    if isinstance(system, str) and isinstance(architecture, str):
        return system, architecture
    return None


def _verify(blob: IO[bytes], digest: str) -> None:
    actual = hashlib.sha256()
    while chunk := blob.read(_CHUNK):
        actual.update(chunk)
    if f"sha256:{actual.hexdigest()}" != digest:
        raise InvalidArgument(f"The blob {digest} has another content than its digest says.")


def _blob_document(layout: Layout, digest: str) -> Mapping[str, Any]:
    return _document(layout, _blob_name(digest), digest)


def _document(layout: Layout, name: str, digest: str | None = None) -> Mapping[str, Any]:
    with layout.open(name) as file:
        content = file.read(_MAX_DOCUMENT + 1)
    if len(content) > _MAX_DOCUMENT:
        raise InvalidArgument(f"{name} is larger than {_MAX_DOCUMENT >> 20} MiB.")
    if digest is not None and f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise InvalidArgument(f"The blob {digest} has another content than its digest says.")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name} is not JSON.") from error
    if not isinstance(document, dict):
        raise InvalidArgument(f"{name} is not a JSON object.")
    return document


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _digest_of(descriptor: object) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"The image names a blob by {str(digest)[:100]!r}, which is no sha256 digest.")
    return digest


def _mapping(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    if value is not None and not isinstance(value, dict):
        raise InvalidArgument(f"The image's {key!r} is not an object.")
    return value or {}


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise InvalidArgument(f"The image has no list of {key}.")
    return value
