"""Debian and Ubuntu suites, made by mmdebstrap with the host's own package sources."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import IO

from roost.isolation.templates.rootfs import Attributes, RootWriter
from roost.isolation.templates.tree import extract_tar
from roost.model.errors import InvalidArgument, Unavailable

_SUITE = re.compile(r"[a-z][a-z0-9-]{1,40}")
VARIANTS = ("minbase", "essential", "apt", "standard")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}")


def is_suite(text: str) -> bool:
    """Whether `text` can be a suite's name, such as `bookworm`."""
    return _SUITE.fullmatch(text) is not None


def bootstrap(
    suite: str,
    root: RootWriter,
    *,
    limit: int,
    variant: str = "minbase",
    packages: tuple[str, ...] = (),
    report: Callable[[str], None],
) -> None:
    """Write a suite's base system. Raises Unavailable with what mmdebstrap said if it did not succeed."""
    if variant not in VARIANTS:
        raise InvalidArgument(f"The variant {variant[:40]!r} is none of {', '.join(VARIANTS)}.")
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise InvalidArgument(f"{package[:100]!r} is not the name of a Debian package.")
    program = shutil.which("mmdebstrap")
    if program is None:
        raise Unavailable("mmdebstrap is needed to build a suite and is not installed: apt-get install -y mmdebstrap")
    command = [program, f"--variant={variant}", "--format=tar", "--quiet"]
    if packages:
        command.append(f"--include={','.join(packages)}")
    report(f"running mmdebstrap for {suite}, which downloads packages")
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*command, suite, "-"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            with process.stdout:
                failure: InvalidArgument | None = None
                try:
                    extract_tar(process.stdout, root, limit=limit)
                except InvalidArgument as error:
                    failure = error
            status = process.wait(timeout=60)
        finally:
            # It removes its own temporary directory when asked to end, not when killed.
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        if status != 0:
            raise Unavailable(f"mmdebstrap could not make {suite}: {_last_line(said)}") from failure
        if failure is not None:
            raise failure
    # It copies these from this machine, and they are none of a room's business.
    for name, text in (("etc/hostname", b"localhost\n"), ("etc/resolv.conf", b"")):
        root.file(name, Attributes(mode=0o644, uid=0, gid=0, mtime=0), io.BytesIO(text))


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read(1 << 20).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
