"""The start and ready commands of a template."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from roost.guest.faults import StartFailed
from roost.guest.reaping import wait
from roost.guest.sandbox import spawn
from roost.guest.sandbox.identities import Identities, UnknownUser
from roost.guest.sandbox.paths import resolve
from roost.guest.sandbox.pipes import readable
from roost.guest.sandbox.spawn import Program, StartError
from roost.guest.worker import Reporter

SHELL = "/bin/bash"
READY_LIMIT_S = 90.0
#: Between two runs of the ready command: short at first, since most services are ready at once.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


class Commands:
    """Both run as the default user in a login shell; what they print goes to the sandbox's log."""

    def __init__(self, identities: Identities, report: Reporter) -> None:
        self._identities = identities
        self._report = report
        self._background: set[asyncio.Task[int]] = set()

    async def run(self, start: str, ready: str) -> None:
        """Start the one in the background, then wait until the other succeeds. Raises StartFailed."""
        if not start and not ready:
            return
        try:
            if start:
                task = asyncio.get_running_loop().create_task(_wait(self._start(start)))
                self._background.add(task)
                task.add_done_callback(self._background.discard)
            if ready:
                await self._until_ready(ready)
        except (StartError, UnknownUser) as error:
            raise StartFailed("StartCommandFailed", f"The command of the template does not run: {error}.") from error

    async def _until_ready(self, command: str) -> None:
        self._report.send({"event": "phase", "what": "the ready command", "limit_s": READY_LIMIT_S + 10})
        deadline = time.monotonic() + READY_LIMIT_S
        pause_s, code = FIRST_PAUSE_S, -1
        while time.monotonic() < deadline:
            code = await _wait(self._start(command), deadline - time.monotonic())
            if code == 0:
                return
            await asyncio.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        raise StartFailed(
            "ReadyCommandFailed",
            f"The ready command did not succeed within {READY_LIMIT_S:g} s: its last code was {code}.",
        )

    def _start(self, command: str) -> spawn.Child:
        user = self._identities.lookup(self._identities.default)
        program = Program(
            argv=(SHELL, "-l", "-c", command),
            env=self._identities.environment(user),
            cwd=resolve("", user, self._identities.workdir),
            user=user,
        )
        null = os.open(os.devnull, os.O_RDONLY)
        # The daemon does not wait for room in the log's pipes; programs do.
        outputs = [os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_CLOEXEC) for number in (1, 2)]
        try:
            return spawn.start(program, (null, outputs[0], outputs[1]))
        finally:
            for fd in (null, *outputs):
                os.close(fd)


async def _wait(child: spawn.Child, limit_s: float | None = None) -> int:
    """The exit code, -1 for a signal; a child that takes longer is killed."""
    try:
        async with asyncio.timeout(limit_s):
            await readable(child.ended)
    except TimeoutError:
        spawn.signal_group(child.pid, signal.SIGKILL)
    finally:
        os.close(child.ended)
    status = wait(child.pid)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else -1
