"""`roost.server`, except that it dies by SIGKILL at a named point: `crashing_server POINT NUMBER [arguments of serve]`.

POINT is `<verb of the table of tasks>:before|after`, or `<another of TABLES>.<verb>:before|after`; NUMBER says at which
call of it. The verb's change is durable after it, and not begun before it.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from roost.server.program import main
from roost.store.task_outbox import TaskOutbox
from roost.store.tasks import Tasks
from roost.store.trigger_objects import TriggerObjects
from roost.store.trigger_rows import TriggerRows
from roost.store.triggers import Triggers
from tests.support.server import READY, Server, share_bundle

TABLES: dict[str, type] = {
    "": Tasks,
    "outbox": TaskOutbox,
    "triggers": Triggers,
    "objects": TriggerObjects,
    "rows": TriggerRows,
}
ROOT = Path(__file__).resolve().parents[2]


class CrashingServer(Server):
    """A server that kills itself at `point`, the `number`th time it comes there."""

    def __init__(self, data_dir: Path, point: str, number: int, *, config: str = "") -> None:
        super().__init__(data_dir, config=config)
        self._point = (point, str(number))

    def start(self) -> Server:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        share_bundle(self.data_dir)
        command = [sys.executable, "-m", "tests.support.crashing_server", *self._point]
        options = ["--port", "0", "--data-dir", str(self.data_dir)]
        if self._config:
            file = self.data_dir.parent / f"{self.data_dir.name}.toml"
            file.write_text(self._config)
            options += ["--config", str(file)]
        with (self.data_dir.parent / f"{self.data_dir.name}.log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, *options],
                stdout=subprocess.PIPE, stderr=log, text=True, env=self._env, cwd=ROOT,
            )  # fmt: skip
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(READY, line):
                self.url = f"http://127.0.0.1:{found[2]}"
                return self
        raise AssertionError(f"the server did not start:\n{self.log()}")

    def died(self, timeout: float = 30) -> None:
        """Wait for it."""
        assert self._process is not None
        assert self._process.wait(timeout) == -signal.SIGKILL, self.log()[-3000:]


def crash_at(point: str, number: int) -> None:
    where, _, moment = point.partition(":")
    table, _, verb = where.rpartition(".")
    owner = TABLES[table]
    work: Callable[..., Awaitable[Any]] = getattr(owner, verb)
    left = number

    @functools.wraps(work)
    async def crashing(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        last = left == 0
        if last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await work(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, verb, crashing)


if __name__ == "__main__":
    crash_at(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
