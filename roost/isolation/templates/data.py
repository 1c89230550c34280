"""The template `code-interpreter-v1`: the host's programs, and packages that Python contexts of sandboxes have at hand.

packages/<digest>/    what `pip install --target` made of data-requirements.txt, for the interpreter that runs Roost

In rooms they are at `bundle.DATA`, where the guest's interpreter looks for packages. The template's zygote imports them
ahead, so that contexts share them.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from roost.isolation.bundle import DATA
from roost.isolation.bundle_parts import open_to_all
from roost.isolation.driver import Template
from roost.isolation.shelf import locked, remove_unused
from roost.model.errors import StorageFull, Unavailable

NAME = "code-interpreter-v1"
#: The guest's module that has in memory what contexts share.
_WARM = "roost.guest.sandbox.interpreter.python.context"
_REQUIREMENTS = Path(__file__).with_name("data-requirements.txt")
_NODE_PACKAGES = ("amaro@1.2.1",)
_INSTALL_S = 1800.0
#: Rooms of a killed server may run from packages that no mount table shows: old ones are kept for long.
_UNUSED_AFTER_S = 30 * 86400.0
_CHECK = "import IPython, numpy, pandas, matplotlib.pyplot, e2b_charts, orjson, PIL.Image"
_LEFT_OUT = ("bin", "share")  # commands that name this machine's interpreter, and their manuals


def code_interpreter(host: Template, packages: Path) -> Template:
    """The template over the host's, with the packages that `build_data` made."""
    return dataclasses.replace(host, name=NAME, binds=(*host.binds, (packages, DATA)), preload=(_WARM,))


def build_data(data_dir: Path) -> Path:
    """The directory with the packages, installed if `data_dir` has none yet: that takes a minute and a package index.

    Safe to call from several processes at once. Raises Unavailable with pip's last line, StorageFull for a full disk.
    """
    shelf = data_dir / "packages"
    packages = shelf / _digest()
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        with locked(shelf):
            if not packages.is_dir():
                _build(packages)
            os.utime(packages)
            remove_unused(shelf, keep=packages, after_s=_UNUSED_AFTER_S)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"The disk is full: the packages of {NAME} do not fit in {shelf}.") from error
        raise Unavailable(
            f"The packages of {NAME} could not be installed: {error.filename or shelf}: {error.strerror or error}."
        ) from error
    return packages


def _digest() -> str:
    identity = [sys.version, platform.machine(), _REQUIREMENTS.read_text(), _NODE_PACKAGES, shutil.which("npm") is None]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def _build(packages: Path) -> None:
    """Install under a temporary name and rename: the directory exists complete or not at all. The lock is held."""
    for left_over in packages.parent.glob(".building-*"):
        shutil.rmtree(left_over)
    building = packages.parent / f".building-{os.getpid()}"
    try:
        _run(
            *(
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-input",
                "--disable-pip-version-check",
                "--no-warn-script-location",
            ),
            *("--only-binary", ":all:", "--no-deps", "--no-compile", "--target", building, "-r", _REQUIREMENTS),
        )
        _install_node_packages(building)
        for name in _LEFT_OUT:
            shutil.rmtree(building / name, ignore_errors=True)
        _run("-m", "compileall", "-qq", "-s", building, "-p", DATA, "-x", "/tests/|/lib2to3/", building, check=False)
        _run("-B", "-c", f"import sys; sys.path.insert(0, sys.argv[1]); {_CHECK}", building)
        open_to_all(building)
        building.rename(packages)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _install_node_packages(building: Path) -> None:
    """What TypeScript contexts need of older versions of Node.js. Where this machine has no npm, they say so."""
    if shutil.which("npm") is not None:
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--silent")
        _execute("npm", "install", *options, "--prefix", building, *_NODE_PACKAGES)


def _run(*arguments: str | Path, check: bool = True) -> None:
    """Run this interpreter."""
    _execute(sys.executable, "-P", *arguments, check=check)


def _execute(*command: str | Path, check: bool = True) -> None:
    """Raises Unavailable with the last line that the command said."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"The packages of {NAME} could not be installed in {_INSTALL_S:.0f} s.") from error
    if check and ran.returncode != 0:
        said = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        reason = said[-1].strip() if said else f"exit code {ran.returncode}"
        raise Unavailable(f"The packages of {NAME} could not be installed: {reason}")
