"""Images of real memory: whatever a process has done to its own, it is the same afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("seed", range(3))
def test_memory_that_was_changed_at_random_is_the_same_again(seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.image_rounds", str(seed), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
