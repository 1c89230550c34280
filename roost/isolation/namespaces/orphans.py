"""The server's side of the undertaker: a process that ends the rooms of a server that was killed for good."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_STOP_TIMEOUT_S = 5.0


class OrphanWatch:
    """Held while a server runs. `lock` is what a server of the data directory holds; `groups` are the parents of its
    rooms' cgroups, one in each tree."""

    def __init__(self, *, lock: Path, run_dir: Path, groups: Sequence[Path], grace_s: float) -> None:
        self._arguments = (str(grace_s), str(lock), str(run_dir), *map(str, groups))
        self._pipe = -1
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process. Raises OSError."""
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-S", "-s", "-B", "-m", "roost.isolation.namespaces.undertaker"),
                *(str(theirs), *self._arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs],
                env={"PYTHONPATH": str(Path(__file__).parents[3])},
                cwd="/",
                start_new_session=True,  # what ends the server from a terminal does not end it
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._pipe = ours

    async def close(self) -> None:
        """The server ends in order: the process ends and touches nothing."""
        pipe, self._pipe = self._pipe, -1
        process, self._process = self._process, None
        if pipe < 0 or process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, b".")
        os.close(pipe)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
