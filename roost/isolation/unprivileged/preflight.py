"""Whether users without root can have rooms on this machine: one is made. Leaves nothing.

Root has it tried by a process of nobody's: python -m roost.isolation.unprivileged.preflight
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from roost.isolation import landlock
from roost.isolation.boot import boot
from roost.isolation.driver import Preflight
from roost.isolation.unprivileged.driver import UnprivilegedDriver

LEVEL = (
    "Linux namespaces in a user namespace of the server's user, no capabilities, a system call allow-list; "
    "no hard limits of memory, CPU and disk, no freezing, no snapshots"
)
#: What a room's /proc takes, and a container that covers parts of its own does not give.
_MASKED = " /proc may be masked by a container around this: docker run --security-opt systempaths=unconfined."
_NOBODY = 65534
_TIMEOUT_S = 180.0


def preflight() -> Preflight:
    """Look, and try. Takes some seconds."""
    problem = _as_nobody() if os.geteuid() == 0 else boot(UnprivilegedDriver)
    if "mounting proc" in problem and _MASKED not in problem:
        problem += _MASKED
    wall = "Landlock" if landlock.abi() >= landlock.OLDEST else "no Landlock"
    return Preflight(usable=not problem, level=f"{LEVEL}; {wall}", problems=(problem,) if problem else ())


def _as_nobody() -> str:
    """What went wrong for somebody else, or nothing."""
    closed = "Other users can't run this installation of Roost ({}): put it where they can read it."
    try:
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "roost.isolation.unprivileged.preflight"],
            env={"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": os.defpath},
            cwd="/",
            user=_NOBODY,
            group=_NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return closed.format(error)
    try:
        return " ".join(json.loads(ran.stdout)["problems"])
    except (ValueError, KeyError, TypeError):
        return closed.format((ran.stderr.strip().splitlines() or ["it said nothing"])[-1])


def main() -> None:
    print(json.dumps(asdict(preflight())))


if __name__ == "__main__":
    main()
