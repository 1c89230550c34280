"""The packages that code contexts have at hand: installed once, by the first sandbox that needs them, or ahead of it by
`roost template packages`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from roost.model.errors import Unavailable


class ContextPackages:
    """Those of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._task: asyncio.Task[Path] | None = None

    async def get(self) -> Path:
        """Their directory. Raises Unavailable with the reason if they can't be installed; the next call tries again."""
        task = self._task
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._task = asyncio.create_task(_install(self._data_dir))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Break an installation off; the next server begins it anew."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


async def _install(data_dir: Path) -> Path:
    """In a process of its own: it takes a minute the first time, and can be ended. Bounded by its own time limit."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "roost.isolation.templates", "packages", "--data-dir", str(data_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        said, errors = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise Unavailable(lines[-1].removeprefix("roost template: "))
    return Path(said.decode().strip())
