"""`roost doctor` of gVisor: a sandbox is really started, in a time that it is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from roost.isolation.gvisor.preflight import boot, preflight
from roost.isolation.gvisor.runsc import look
from tests.support.gvisor import need_runsc


def test_a_sandbox_starts_here() -> None:
    need_runsc()
    found = preflight()
    assert found.usable, found.problems
    assert "runsc" in found.level and "platform" in found.level


@pytest.mark.parametrize(("program", "said"), [("exit 3", "ended with 3"), ("echo No /dev/kvm; exit 1", "No /dev/kvm")])
async def test_one_that_does_not_start_is_told(tmp_path: Path, program: str, said: str) -> None:
    need_runsc()
    broken = tmp_path / "runsc"
    broken.write_text(f"#!/bin/sh\n{program}\n")
    broken.chmod(0o755)
    problem = await boot(replace(await look(), program=broken))
    assert said in problem and "apt-get install runsc" in problem


async def test_one_that_hangs_is_ended(tmp_path: Path) -> None:
    need_runsc()
    broken = tmp_path / "runsc"
    broken.write_text("#!/bin/sh\nexec sleep 600\n")
    broken.chmod(0o755)
    problem = await boot(replace(await look(), program=broken), timeout_s=0.3)
    assert "did not start within" in problem
