"""The guest bundle: an interpreter with all it needs, to be mounted read-only at `/.roost` in any root file system.

It is made from the interpreter that runs Roost: a copy of the program, its standard library, the shared libraries
these load, the C library's loader, Roost's own sources and pip. The copied program names `/.roost/ld.so` as its loader
and `/.roost/lib` as its search path (see `elf`), so it starts by a plain exec in a root file system that has nothing,
and no environment variable of it reaches the programs that user code starts. `sys.executable` is `/.roost/bin/python3`.

    bin/python3, python, python3.11     the interpreter
    bin/pip, pip3, sudo                 scripts that name it in their first line, so they need no shell
    ld.so                               the loader
    lib/*.so*                           shared libraries
    lib/python3.11/                     standard library, extension modules, site-packages with roost and pip, and a
                                        line that adds a template's packages at `/.roost-data`
    include/                            headers, where the host has them
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import roost
from roost.isolation import bundle_parts as parts
from roost.isolation.shelf import locked, remove_unused
from roost.model.errors import StorageFull, Unavailable

PREFIX = "/.roost"
#: Packages that a template brings for this interpreter; a template without them has no such directory.
DATA = "/.roost-data"
_UNUSED_AFTER_S = 3600.0


@dataclass(frozen=True)
class Bundle:
    """A built bundle. `root` is on the host; in a room it is mounted at `/.roost`."""

    root: Path

    @property
    def python(self) -> str:
        """The interpreter's path inside a room."""
        return f"{PREFIX}/bin/python3"

    def command(self, module: str, *args: str) -> list[str]:
        """The argument list that runs a module where the bundle is at `/.roost`.

        The working directory is not searched for modules.
        """
        return [self.python, "-P", "-m", module, *args]


def build_bundle(data_dir: Path) -> Bundle:
    """The bundle of this interpreter and this version of Roost, built if `data_dir` has none yet.

    Safe to call from several processes at once; takes a few seconds the first time, about a millisecond per source file
    later. Bundles of other versions that no room has mounted are removed.
    Raises Unavailable with the reason if this interpreter cannot be bundled, StorageFull if the disk is full.
    """
    base = parts.inspect_interpreter(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    sources = Path(roost.__file__).parent
    guest = data_dir / "guest"
    root = guest / _digest(base, sources)
    try:
        guest.mkdir(parents=True, exist_ok=True)
        with locked(guest):
            if not root.is_dir():
                _build(base, sources, root)
            os.utime(root)
            remove_unused(guest, keep=root, after_s=_UNUSED_AFTER_S)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"The disk is full: the guest bundle does not fit in {guest}.") from error
        raise Unavailable(
            f"The guest bundle could not be built: {error.filename or guest}: {error.strerror or error}."
        ) from error
    return Bundle(root)


def _digest(base: parts.Interpreter, sources: Path) -> str:
    program = base.executable.stat()
    digest = hashlib.sha256()
    identity = [base.version, str(base.executable), program.st_mtime_ns, program.st_size, base.pip_version]
    digest.update(json.dumps(identity).encode())
    for path in parts.python_sources(sources):
        digest.update(f"\0{path.relative_to(sources)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _build(base: parts.Interpreter, sources: Path, root: Path) -> None:
    """Build under a temporary name and rename: `root` exists complete or not at all. The caller holds the lock."""
    for left_over in root.parent.glob(".building-*"):
        shutil.rmtree(left_over)
    building = root.parent / f".building-{os.getpid()}"
    building.mkdir(mode=0o755)
    try:
        parts.copy_standard_library(base, building, PREFIX)
        parts.copy_program(base, building, PREFIX)
        parts.copy_libraries(base, building)
        site = parts.site_directory(base, building)
        parts.copy_sources(sources, site / sources.name)
        parts.copy_pip(base, site, building / "bin", f"{PREFIX}/bin/python3")
        parts.write_sudo(building / "bin", f"{PREFIX}/bin/python3")
        (site / "roost-data.pth").write_text(f"{DATA}\n")
        parts.compile_sources(base, building, PREFIX)
        parts.open_to_all(building)
        _check(base, building)
        building.rename(root)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _check(base: parts.Interpreter, building: Path) -> None:
    """Run the copied interpreter once, as it will be run except for its place, so that a broken copy is never used."""
    code = "import ssl, ctypes, sqlite3, zlib, json, asyncio, hashlib, pip, roost, sys; print(sys.prefix)"
    program = building / "bin" / base.executable.name
    ran = subprocess.run(
        [building / "ld.so", "--library-path", building / "lib", program, "-I", "-B", "-c", code],
        env={},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ran.returncode != 0 or Path(ran.stdout.strip()) != building:
        reason = (ran.stderr.strip().splitlines() or [f"its prefix is {ran.stdout.strip()}"])[-1]
        raise Unavailable(f"The copy of {base.executable} does not work: {reason}.")
