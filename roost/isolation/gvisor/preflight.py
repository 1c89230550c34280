"""Whether this machine can run gVisor: a tiny sandbox is really started, and must answer in time. Leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from pathlib import Path

from roost.isolation.driver import Preflight
from roost.isolation.gvisor.oci import Kernel, configuration
from roost.isolation.gvisor.runsc import MEND, Runsc, look
from roost.model.errors import Unavailable

LEVEL = "gVisor: system calls are answered by a kernel in user space"
_BOOT_TIMEOUT_S = 20.0
_SAID_LIMIT = 4096
_WORD = "roost-preflight"


def preflight() -> Preflight:
    """Look at this machine, and try. Takes the time of a sandbox's start."""
    return asyncio.run(_preflight())


async def _preflight() -> Preflight:
    try:
        runsc = await look()
    except Unavailable as error:
        return Preflight(usable=False, level=LEVEL, problems=(error.message,))
    level = f"{LEVEL}, runsc {runsc.version}, platform {runsc.platform}, in a room of namespaces"
    if runsc.platform == "ptrace":
        level += "; newer versions have the faster systrap"
    level += "" if runsc.copies else f"; forks have files alone, as {runsc.lack_of_copies}"
    if os.geteuid() != 0:
        return Preflight(usable=False, level=level, problems=("Rooms take root: sudo roost doctor.",))
    problem = await boot(runsc)
    return Preflight(usable=not problem, level=level, problems=(problem,) if problem else ())


async def boot(runsc: Runsc, *, timeout_s: float = _BOOT_TIMEOUT_S) -> str:
    """Start a sandbox that prints a word. What went wrong, with what mends it, or nothing."""
    mend = f"try the present version ({MEND}, or https://gvisor.dev/docs/user_guide/install/)."
    with tempfile.TemporaryDirectory(prefix="roost-preflight-") as directory:
        bundle = Path(directory)
        kernel = Kernel(flags=runsc.flags, command=("/bin/echo", _WORD))
        told = configuration(
            kernel, hostname="preflight", capabilities=(), open_files=64, shm_mb=1, run_mb=1, mounts=()
        )
        told |= {"root": {"path": "/", "readonly": True}, "mounts": []}
        (bundle / "config.json").write_text(json.dumps(told))
        process = await asyncio.create_subprocess_exec(
            *(str(runsc.program), f"--root={bundle / 'state'}", *runsc.flags),
            *("run", f"--bundle={bundle}", f"roost-preflight-{os.getpid()}"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), timeout_s)
        except TimeoutError:
            return f"A sandbox did not start within {timeout_s:.0f} s: {mend}"
        finally:
            # The kernel ends what runsc has started when it ends itself: it runs attached.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    text = said[-_SAID_LIMIT:].decode(errors="replace").strip()
    if process.returncode == 0 and _WORD in text:
        return ""
    reason = (text.splitlines() or [f"it ended with {process.returncode}"])[-1]
    return f"A sandbox did not start ({reason}): {mend}"
