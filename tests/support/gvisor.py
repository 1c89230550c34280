"""gVisor for tests."""

from __future__ import annotations

import os
from pathlib import Path

from roost.isolation.gvisor.runsc import MISSING, program

#: Put there by `scripts/system-packages`, beside the one of the distribution.
NEWER = Path("/usr/local/lib/roost-tests/runsc")


def need_runsc() -> None:
    """Fail, with the command that installs it, where there is none."""
    assert program() is not None, MISSING


def copying_runsc() -> Path:
    """One that copies rooms."""
    assert os.access(NEWER, os.X_OK), f"{NEWER} is missing: scripts/system-packages python3 tests"
    return NEWER
