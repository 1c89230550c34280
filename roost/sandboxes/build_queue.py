"""The builds of one server: a few run at once, the others wait; how each went is remembered for a while."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from roost.model.errors import Conflict, NotFound, RoostError, Throttled
from roost.sandboxes.build_log import BuildLog
from roost.sandboxes.builder import BuildFailed

log = logging.getLogger(__name__)

_AT_ONCE = 2
_MOST_WAITING = 64
_KEPT = 256
_CANCELLED = "The build was cancelled."

Work = Callable[[BuildLog], Awaitable[None]]


class BuildStatus(StrEnum):
    WAITING = "waiting"
    BUILDING = "building"
    READY = "ready"
    ERROR = "error"


@dataclass(kw_only=True)
class Build:
    """`message` and `step` say what went wrong."""

    id: str
    template: str
    created: float  # Unix seconds
    status: BuildStatus = BuildStatus.WAITING
    message: str = ""
    step: str = ""
    log: BuildLog = field(default_factory=BuildLog)

    @property
    def ended(self) -> bool:
        return self.status in (BuildStatus.READY, BuildStatus.ERROR)


class BuildQueue:
    """One event loop. A build that a killed server was at is not known to the next one."""

    def __init__(self, *, clock: Callable[[], float], at_once: int = _AT_ONCE, kept: int = _KEPT) -> None:
        self._clock = clock
        self._slots = asyncio.Semaphore(at_once)
        self._kept = kept
        self._builds: OrderedDict[str, Build] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = False

    def start(self, id: str, template: str, work: Work) -> Build:
        """Have `work` done when its turn has come; it ends well when everything is registered.

        Raises Conflict if this build was started before, Throttled if too many wait.
        """
        if id in self._builds:
            raise Conflict(f"The build {id} was started already.")
        if self._closing or len(self._tasks) >= _MOST_WAITING:
            raise Throttled(f"{len(self._tasks)} builds wait already.", retry_after=5)
        build = self._builds[id] = Build(id=id, template=template, created=self._clock())
        self._tasks[id] = asyncio.create_task(self._run(build, work))
        self._forget_oldest()
        return build

    def get(self, id: str) -> Build:
        """Raises NotFound."""
        try:
            return self._builds[id]
        except KeyError:
            raise NotFound(f"build '{id[:128]}' not found", code="BuildNotFound") from None

    async def cancel(self, id: str) -> None:
        """End it, if it has not ended; returns when nothing of it is left. Raises NotFound."""
        build = self.get(id)
        if task := self._tasks.get(id):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not build.ended:  # it had not begun
                self._failed(build, _CANCELLED)
                self._tasks.pop(id, None)

    async def close(self) -> None:
        """The server stops: what has not ended fails."""
        self._closing = True
        await asyncio.gather(*(self.cancel(id) for id in list(self._tasks)))

    async def _run(self, build: Build, work: Work) -> None:
        try:
            async with self._slots:
                build.status = BuildStatus.BUILDING
                await work(build.log)
        except asyncio.CancelledError:
            self._failed(build, _CANCELLED)
        except BuildFailed as error:
            self._failed(build, error.message, error.step)
        except RoostError as error:
            self._failed(build, error.message)
        except Exception:
            log.exception("build %s failed", build.id)
            self._failed(build, "The build failed for a reason of the server's own; its log has it.")
        else:
            build.log.end(self._clock(), "info", "The template is ready.")
            build.status = BuildStatus.READY
        finally:
            self._tasks.pop(build.id, None)

    def _failed(self, build: Build, message: str, step: str = "") -> None:
        build.log.end(self._clock(), "error", message)
        build.message, build.step, build.status = message, step, BuildStatus.ERROR

    def _forget_oldest(self) -> None:
        for id in list(self._builds):
            if len(self._builds) <= self._kept:
                return
            if self._builds[id].ended:
                del self._builds[id]
