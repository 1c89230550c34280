"""requirements.txt of an agent, installed once for the interpreter of the rooms and kept by what it asks for."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from roost.sdk import bytecode, package
from roost.sdk.errors import Failed

FILE = "requirements.txt"


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where deploys keep what they can make again: below XDG_CACHE_HOME or ~/.cache."""
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "roost"


def vendor(
    directory: Path, python: str, cache: Path, progress: Callable[[str], None] = lambda line: None
) -> Path | None:
    """A folder with what `directory`/requirements.txt asks for, for Python `python` ("3.11"); None without the file.

    Where `python` is this interpreter's version, bytecode lies beside the sources. Each line that pip prints goes to
    `progress`. Raises Failed with pip's last lines when it can't be installed.
    """
    requirements = directory.absolute() / FILE
    if not requirements.is_file():
        return None
    digest = hashlib.sha256()
    for part in (python, sys.version, platform.machine(), requirements.read_text()):
        digest.update(part.encode() + b"\0")
    target = cache / digest.hexdigest()[:32]
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".installing-") as temporary:
        made = Path(temporary) / "packages"
        _install(requirements, python, made, progress)
        # Scripts name an interpreter of this machine in their first line; `python -m` works in the room.
        shutil.rmtree(made / "bin", ignore_errors=True)
        if python == bytecode.OWN_PYTHON:
            progress("compiling")
            bytecode.compile_members(dict(package.files(made)), made)
        try:
            made.rename(target)
        except OSError:
            # Another deploy has installed the same meanwhile.
            if not target.is_dir():
                raise
    return target


def pip_command(requirements: Path, python: str, target: Path) -> list[str]:
    """The pip command; for another Python than this one only wheels can be taken."""
    command = [sys.executable, "-m", "pip", "install", "--target", str(target), "--no-input", "--no-compile"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "-r", str(requirements)]
    if python != bytecode.OWN_PYTHON:
        command += ["--python-version", python, "--only-binary", ":all:"]
    return command


def _install(requirements: Path, python: str, target: Path, progress: Callable[[str], None]) -> None:
    last: list[str] = []
    errors: list[str] = []
    with subprocess.Popen(
        pip_command(requirements, python, target),
        cwd=requirements.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = [*last[-4:], line.strip()]
            if line.startswith("ERROR: "):
                errors = [*errors[-4:], line.strip().removeprefix("ERROR: ")]
            progress(line.strip())
    if process.returncode:
        raise Failed(f"pip could not install {requirements}: {' / '.join(errors or last) or 'it said nothing'}")
    target.mkdir(exist_ok=True)
