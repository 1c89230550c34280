"""The program `runsc`: where it is, its version, and what it can do."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from roost.model.errors import Unavailable

MEND = "apt-get install runsc"
MEND_COPIES = "apt-get install -t bookworm-backports runsc"
MISSING = f"gVisor's runsc is not installed: {MEND}."
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Runsc:
    """An installed runsc."""

    program: Path
    version: str
    platform: str  # how it catches system calls: systrap, or ptrace where that is all it has
    flags: tuple[str, ...]
    copies: bool  # it writes down a room that goes on afterwards

    @property
    def lack_of_copies(self) -> str:
        """Why rooms can't be copied with their processes, and what mends it; or nothing."""
        if self.copies:
            return ""
        return f"runsc {self.version} ends a room that it copies; one of June 2024 or later does not ({MEND_COPIES})"


def program(given: Path | None = None) -> Path | None:
    """Where it is on this machine; the environment of the server does not say."""
    if given is not None:
        return given if given.is_file() else None
    found = shutil.which("runsc", path=_PATH)
    return Path(found).resolve() if found else None


async def look(given: Path | None = None) -> Runsc:
    """Raises Unavailable, with what mends it, when there is none or it does not run."""
    path = program(given)
    if path is None:
        raise Unavailable(MISSING if given is None else f"There is no runsc at {given}.")
    asked = (("--version",), ("flags",), ("help", "checkpoint"))
    return describe(path, *[await _ask(path, *arguments) for arguments in asked])


def describe(path: Path, version: str, known: str, checkpoint: str = "") -> Runsc:
    """What `runsc --version`, `runsc flags` and `runsc help checkpoint` say. Pure."""
    number = re.search(r"runsc version (\S+)", version)
    platform = "systrap" if "systrap" in known else "ptrace"
    flags = [
        f"--platform={platform}",
        "--network=none",
        "--ignore-cgroups",  # the room has its own
        "--host-uds=open",  # the sockets of /run/roost; none is made on the host
        "--overlay2=none",  # files go to the room's layer
        "--log=/dev/null",
    ]
    if re.search(r"^\s*-directfs\b", known, re.MULTILINE):
        flags.append("--directfs=false")  # files are opened by another process than the one that the room talks to
    return Runsc(
        program=path,
        version=number[1] if number else "of unknown version",
        platform=platform,
        flags=tuple(flags),
        # That came a month after what is needed: before, a checkpoint's room was started anew, as another one.
        copies="-exclude-committed-zero-pages" in checkpoint,
    )


async def _ask(path: Path, *arguments: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            str(path),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": _PATH},
        )
    except OSError as error:
        raise Unavailable(f"{path} does not run ({error.strerror}): {MEND}.") from error
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    except TimeoutError:
        raise Unavailable(f"{path} {arguments[0]} did not end within {_TIMEOUT_S:.0f} s.") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return output.decode(errors="replace")
