"""Runs tasks that are due: claims each in the store when an instance is at hand, and writes down what came of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from roost.functions.tasks import policy
from roost.functions.tasks.backlog import Backlog, Lane
from roost.functions.tasks.endings import Endings
from roost.functions.tasks.feed import TaskFeed
from roost.functions.tasks.policy import Kind, Run, TaskSettings
from roost.functions.tasks.ports import Order, Runner, Specs
from roost.functions.tasks.tapes import Tapes
from roost.instances.background import Background
from roost.model.errors import NotFound, RoostError
from roost.model.task import Fenced, Task, TaskKey
from roost.store.tasks import Lane as LaneKey
from roost.store.tasks import Tasks

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
_STOP_S = 5.0
_SOON_S, _LOOK_S = 0.001, 60.0


class TaskWorker:
    """`start`, and `close` before the store and the instances end. `settings` answers from memory."""

    def __init__(
        self,
        *,
        store: Tasks,
        backlog: Backlog,
        specs: Specs,
        settings: Callable[[Task], TaskSettings],
        endings: Endings,
        tapes: Tapes,
        feed: TaskFeed,
        clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._backlog = backlog
        self._specs = specs
        self._settings = settings
        self._endings = endings
        self._tapes = tapes
        self._feed = feed
        self._clock = clock
        self._chance = chance
        self._runner: Runner | None = None
        self._background = Background()
        self._runs: set[asyncio.Task[None]] = set()
        self._orders: dict[TaskKey, Order] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pumping = False
        self._closing = asyncio.Event()

    # -- life

    def start(self, runner: Runner) -> None:
        self._runner = runner
        self._background.spawn(self._beat())
        self.wake()

    async def close(self, *, drain_s: float) -> None:
        """Start no more; let what runs go on for `drain_s` seconds, then break it off and write that down."""
        self._closing.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._runs:
            await asyncio.wait(self._runs, timeout=drain_s)
        for order in list(self._orders.values()):
            order.stop()
        if self._runs:
            await asyncio.wait(self._runs, timeout=_STOP_S)
        for run in self._runs:
            run.cancel()
        if self._runs:
            await asyncio.wait(self._runs)
        await self._background.close()

    def wake(self) -> None:
        """Something may be due: look soon."""
        if self._runner is not None and not self._pumping and not self._closing.is_set():
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def stop(self, key: TaskKey) -> None:
        """Somebody wants that task to end; the store knows already."""
        order = self._orders.get(key)
        if order is not None:
            order.stop()

    # -- what to do next

    def _pump(self) -> None:
        self._pumping = False
        if self._closing.is_set():
            return
        while (wanted := self._backlog.next_fetch(self._clock())) is not None:
            self._background.spawn(self._fetch(*wanted))
        while (turn := self._backlog.next_start()) is not None:
            self._spawn(self._run(*turn))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self._backlog.wake_at()) is not None:
            # It may have come due since the loop above looked; then soon.
            delay = min(max(at - self._clock(), _SOON_S), _LOOK_S)
            self._timer = asyncio.get_running_loop().call_later(delay, self.wake)

    async def _fetch(self, lanes: list[Lane], limit: int) -> None:
        found: list[list[Task]] | None = None
        try:
            found = await self._store.due([lane.key for lane in lanes], limit=limit)
        except RoostError as error:
            log.warning("due tasks can't be read: %s", error.message)
        finally:
            now = self._clock()
            for index, lane in enumerate(lanes):
                self._backlog.fetched(lane, None if found is None else found[index], limit, now)
            self.wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        run = asyncio.get_running_loop().create_task(work)
        self._runs.add(run)
        run.add_done_callback(self._finished)

    def _finished(self, run: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        if not run.cancelled() and (error := run.exception()) is not None:
            log.error("the run of a task failed", exc_info=error)

    # -- one task

    async def _run(self, lane: Lane, task: Task) -> None:
        try:
            await self._try(lane.key, task)
        finally:
            self._backlog.ended(lane, task)
            self.wake()

    async def _try(self, lane: LaneKey, task: Task) -> None:
        settings = self._settings(task)
        if (verdict := policy.expired(task, settings, now=self._clock())) is not None:
            await self._endings.conclude(lane, task, Run(kind=Kind.STOPPED, begun=False), verdict, settings)
            return
        try:
            spec = self._specs.resolve(task.account, task.function, task.qualifier)
        except RoostError as error:
            kind = Kind.REFUSED if isinstance(error, NotFound) else Kind.TROUBLE
            run = Run(kind=kind, begun=False, error_type=error.code, error=error.message)
            verdict = policy.after(task, run, settings, now=self._clock(), chance=self._chance())
            await self._endings.conclude(lane, task, run, verdict, settings)
            return
        order = Order(
            task=task,
            spec=spec,
            begin=lambda instance_id: self._begin(lane, order, instance_id),
            record=lambda: self._tapes.of(order.task),
        )
        self._orders[task.key] = order
        try:
            await self._carry_out(lane, order, settings)
        finally:
            del self._orders[task.key]

    async def _carry_out(self, lane: LaneKey, order: Order, settings: TaskSettings) -> None:
        run = await self._result(order)
        if order.tape is not None:
            await order.tape.flush()
        if order.lost or (run.kind is Kind.STOPPED and not run.begun):
            return  # it went on without us, or was stopped before it began: the store knows
        now, chance = self._clock(), self._chance()
        if run.kind is Kind.STOPPED and self._closing.is_set():
            verdict = policy.interrupted(order.task, settings, now=now, chance=chance, orderly=True)
        else:
            verdict = policy.after(order.task, run, settings, now=now, chance=chance, stopping=order.stopped)
        await self._endings.conclude(lane, order.task, run, verdict, settings)

    async def _result(self, order: Order) -> Run:
        assert self._runner is not None
        try:
            return await self._runner.run(order)
        except Exception:
            # A bug of ours must not leave the task without anybody who looks after it.
            log.exception("the run of task %s/%s failed", order.task.function, order.task.id)
            return Run(
                kind=Kind.TROUBLE, begun=order.begun, error_type="InternalServerError", error="It failed in Roost."
            )

    async def _begin(self, lane: LaneKey, order: Order, instance_id: str) -> bytes:
        task = order.task
        claim = asyncio.ensure_future(self._store.claim(task, instance_id=instance_id, now=self._clock()))
        try:
            await asyncio.wait({claim})
        finally:
            # Also when the try is broken off: whether the claim took place has to be known.
            try:
                order.task, payload = await claim
            except (Fenced, NotFound):
                order.lost = True
                raise
            order.begun = True
            self._backlog.left(lane)
            self._feed.changed(task.key)
        return payload

    async def _beat(self) -> None:
        """Tell the store that our tasks live, and break off those that are ours no more."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            held = [(key, order.task.epoch) for key, order in self._orders.items() if order.begun]
            if not held:
                continue
            try:
                lost = await self._store.heartbeat(held, now=self._clock())
            except RoostError as error:
                log.warning("the heartbeat of tasks can't be stored: %s", error.message)
                continue
            for key in lost:
                if (order := self._orders.get(key)) is not None and (key, order.task.epoch) in held:
                    order.stop()
