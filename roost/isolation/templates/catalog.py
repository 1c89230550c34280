"""The templates of a data directory.

templates/<name>/root/           the root file system, never written after it was built
templates/<name>/template.json   what it was made from
templates/.host/                 skeletons of the built-in template `host`
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from roost.isolation.driver import Template
from roost.isolation.mounted import mounted
from roost.isolation.templates import debian, host, oci
from roost.isolation.templates.rootfs import BuildLimits, Progress, RootWriter
from roost.isolation.templates.tree import copy_directory
from roost.model.errors import Conflict, InvalidArgument, NotFound, StorageFull, Unavailable

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class TemplateInfo:
    """What is known of a template. `environment`, `command` and `working_dir` are what its image asks for."""

    name: str
    source: str
    kind: str  # "host", "directory", "oci" or "debian"
    digest: str = ""
    bytes: int = 0
    entries: int = 0
    created: float = 0.0  # Unix seconds
    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    working_dir: str = ""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a template is built. `variant` and `packages` concern Debian suites."""

    replace: bool = False
    variant: str = "minbase"
    packages: tuple[str, ...] = ()
    limits: BuildLimits = field(default_factory=BuildLimits)


class Templates:
    """The templates below `data_dir`; several processes may use one directory.

    The host's skeleton is looked at once in the life of this object, as every start of a room asks for its template.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "templates"
        self._host = functools.cache(self._prepare_host)

    def get(self, name: str) -> Template:
        """The template to make rooms from. Raises NotFound with the names that exist."""
        if name == host.NAME:
            return self._host()
        place = self._folder / name
        try:
            info = _read_info(place / "template.json") if _NAME.fullmatch(name) else None
        except FileNotFoundError:
            info = None
        if info is None:
            names = ", ".join(info.name for info in self.list())
            raise NotFound(f"There is no template {name[:64]!r}; there are: {names}.", code="TemplateNotFound")
        environment = tuple(sorted(info.environment.items()))
        return Template(
            name=name, root=(place / "root").resolve(), environment=environment, command=tuple(info.command)
        )

    def _prepare_host(self) -> Template:
        try:
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
            return host.prepare(self._folder / ".host", boot_id=boot_id)
        except OSError as error:
            raise _foreign(error, "The host template can't be made") from error

    def list(self) -> tuple[TemplateInfo, ...]:
        """All templates, the built-in one first."""
        found = [TemplateInfo(name=host.NAME, source="/usr", kind="host")]
        for file in sorted(self._folder.glob("*/template.json")):
            # One may be removed while it is looked at.
            with contextlib.suppress(FileNotFoundError):
                found.append(_read_info(file))
        return tuple(found)

    def remove(self, name: str) -> None:
        """Remove a template. Raises NotFound, or Conflict for the built-in one and for one that a server uses."""
        if name == host.NAME:
            raise Conflict("The template host is built in.")
        self.get(name)
        with self._locked():
            self._check_unused(name)
            doomed = self._folder / f".removed-{os.getpid()}-{time.time_ns()}"
            try:
                (self._folder / name).rename(doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                raise _foreign(error, f"The template {name} can't be removed") from error

    def build(
        self,
        source: str,
        name: str,
        options: BuildOptions | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> TemplateInfo:
        """Build a template from a directory, an OCI image layout (a directory or a tar file) or a Debian suite's name.

        It exists complete or not at all; what a killed build left is removed by the next one. One is built at a time.
        Raises Conflict if the name exists (unless `replace`) or is in use, InvalidArgument naming the member that can't
        be accepted, StorageFull, and Unavailable with the command that installs a missing tool.
        """
        options = options or BuildOptions()
        if name == host.NAME or not _NAME.fullmatch(name):
            raise InvalidArgument("A template's name has 1 to 63 of a-z, 0-9, '.', '_' and '-', and is not 'host'.")
        place = self._folder / name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._remove_left_overs()
                if place.exists() and not options.replace:
                    raise Conflict(f"The template {name} exists; remove it first or replace it.")
                building = self._folder / f".building-{name}"
                (building / "root").mkdir(parents=True)
                try:
                    info = self._fill(source, name, building / "root", options, Progress(report=report))
                    (building / "template.json").write_text(json.dumps(asdict(info), indent=1))
                    # After a power failure too, a name that exists is complete.
                    subprocess.run(["sync", "-f", building], check=True)
                    if place.exists():
                        self._check_unused(name)
                        place.rename(self._folder / f".removed-{name}")
                    building.rename(place)
                finally:
                    self._remove_left_overs()
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"The template {name} can't be built: the disk can't be synchronised.") from error
        except OSError as error:
            raise _foreign(error, f"The template {name} can't be built") from error
        return info

    def _fill(self, source: str, name: str, root: Path, options: BuildOptions, progress: Progress) -> TemplateInfo:
        root.chmod(0o755)
        limit = 2 * options.limits.bytes
        path = Path(source)
        details: dict[str, Any] = {}
        with RootWriter(root, options.limits, progress) as writer:
            if path.is_dir() and not oci.is_layout(path):
                if self._folder.resolve().is_relative_to(path.resolve()):
                    raise InvalidArgument(f"{source} contains Roost's own data directory.")
                kind = "directory"
                copy_directory(path, writer)
            elif path.exists():
                kind = "oci"
                details = _unpack_image(path, writer, limit, progress.report)
            elif debian.is_suite(source):
                kind = "debian"
                debian.bootstrap(
                    source,
                    writer,
                    limit=limit,
                    variant=options.variant,
                    packages=options.packages,
                    report=progress.report,
                )
            else:
                raise InvalidArgument(f"{source[:200]!r} is neither a directory, an image layout nor a suite's name.")
            writer.complete()
        return TemplateInfo(
            name=name,
            source=source if kind == "debian" else str(path.resolve()),
            kind=kind,
            bytes=progress.bytes,
            entries=progress.entries,
            created=time.time(),
            **details,
        )

    def _check_unused(self, name: str) -> None:
        if mounted([self._folder / name / "root"]):
            raise Conflict(f"The template {name} is in use by a running server; stop that first, or use another name.")

    def _remove_left_overs(self) -> None:
        for pattern in (".building-*", ".removed-*"):
            for left_over in self._folder.glob(pattern):
                shutil.rmtree(left_over)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict("Another process is building or removing a template.") from None
            yield


def _unpack_image(source: Path, writer: RootWriter, limit: int, report: Callable[[str], None]) -> dict[str, Any]:
    with oci.open_layout(source) as layout:
        image = oci.choose_image(layout)
        for number, digest in enumerate(image.layers, 1):
            report(f"layer {number} of {len(image.layers)}")
            oci.unpack_layer(layout, digest, writer, limit=limit)
    return {
        "digest": image.digest,
        "environment": _environment(image.config.get("Env")),
        "command": (*_words(image.config.get("Entrypoint")), *_words(image.config.get("Cmd"))),
        "working_dir": str(image.config.get("WorkingDir") or ""),
    }


def _environment(listed: object) -> dict[str, str]:
    pairs = (word.partition("=") for word in _words(listed))
    return {name: value for name, equals, value in pairs if name and equals}


def _words(listed: object) -> tuple[str, ...]:
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
        raise InvalidArgument("The image's configuration has a list that is not one of strings.")
    return tuple(listed)


def _read_info(file: Path) -> TemplateInfo:
    stored = json.loads(file.read_text())
    return TemplateInfo(**{**stored, "command": tuple(stored["command"])})


def _foreign(error: OSError, what: str) -> StorageFull | Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{what}: the disk is full.")
    return Unavailable(f"{what}: {error}.")
