"""What waits, and whose turn it is. In memory, without I/O: the store has the tasks, here are counts and small buffers.

A *lane* is a session of a function, or all of its tasks that have none. Tasks of a session start one after the other;
those of the lane without a session as many at a time as the function may. Functions take turns.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from roost.model.errors import Throttled
from roost.model.task import Task
from roost.store.tasks import Lane as LaneKey
from roost.store.tasks import Waiting

#: Tasks that are held in memory for a function before their turn comes; how many lanes are asked for them at once.
BUFFER = 64
_LANES_AT_ONCE = 16
_NEVER = math.inf


@dataclass(frozen=True, kw_only=True)
class BacklogLimits:
    """Counts of tasks."""

    queued: int = 100_000  # that wait, on this server
    running: int = 64  # on this server
    running_per_function: int = 16


@dataclass(eq=False)
class Lane:
    """One lane. `due` is when its store is worth a look; never, while all that waits is in `ready`."""

    key: LaneKey
    station: Station
    due: float = _NEVER
    ready: deque[Task] = field(default_factory=deque)
    known: set[str] = field(default_factory=set)  # in `ready`, or being started
    running: int = 0
    fetching: bool = False
    hungry: bool = False
    listed: bool = False

    @property
    def open(self) -> bool:
        """Whether another of its tasks may start now, as far as the lane goes."""
        return bool(self.ready) and (not self.key[2] or not self.running)

    @property
    def idle(self) -> bool:
        return self.due == _NEVER and not (self.ready or self.running or self.fetching or self.hungry)


@dataclass(eq=False)
class Station:
    """One function's lanes."""

    key: tuple[str, str]
    pending: int = 0
    running: int = 0
    buffered: int = 0
    lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    runnable: deque[Lane] = field(default_factory=deque)
    hungry: deque[Lane] = field(default_factory=deque)
    fetching: bool = False
    listed: bool = False


class Backlog:
    """`now` is in Unix seconds throughout."""

    def __init__(self, limits: BacklogLimits, admit: Callable[[str, int], None] | None = None) -> None:
        """`admit(account, waiting)` may refuse an account one more task: it raises Throttled."""
        self._limits = limits
        self._admit = admit
        self._stations: dict[tuple[str, str], Station] = {}
        self._turns: deque[Station] = deque()
        self._hungry: dict[Station, None] = {}  # a set that keeps its order
        self._alarms: list[tuple[float, int, Lane]] = []
        self._numbers = itertools.count()
        self._running = 0
        self.pending = 0
        self._waiting: Counter[str] = Counter()  # tasks, by account

    def restore(self, waiting: Iterable[Waiting]) -> None:
        """What the store has at the start."""
        for one in waiting:
            self._count(one.lane, one.count)
            self._look(self._lane(one.lane), one.due)

    def reserve(self, lane: LaneKey) -> None:
        """Count a task that is about to be stored. Raises Throttled when the queue is full."""
        if self.pending >= self._limits.queued:
            raise Throttled(
                f"The queue of asynchronous tasks is full ({self._limits.queued}).",
                code="AsyncQueueFull",
                retry_after=5,
            )
        if self._admit is not None:
            self._admit(lane[0], self._waiting[lane[0]])
        self._count(lane, 1)

    def added(self, lane: LaneKey, due: float) -> None:
        """A task that was counted is stored, or will be due at another time."""
        self._look(self._lane(lane), due)

    def returned(self, lane: LaneKey, due: float) -> None:
        """A task waits again."""
        self._count(lane, 1)
        self.added(lane, due)

    def left(self, lane: LaneKey) -> None:
        """A task waits no more: it was started or stopped, or not stored after all."""
        self._count(lane, -1)

    def forget(self, account: str, function: str) -> None:
        """The function is gone with its tasks."""
        station = self._stations.pop((account, function), None)
        if station is None:
            return
        self.pending -= station.pending
        self._waiting[account] -= station.pending
        station.pending = 0
        for lane in station.lanes.values():
            lane.ready.clear()
            lane.due = _NEVER
        station.runnable.clear()
        station.hungry.clear()
        self._hungry.pop(station, None)

    # -- what to read from the store

    def next_fetch(self, now: float) -> tuple[list[Lane], int] | None:
        """Lanes whose first tasks are to be read, and how many of each; then `fetched` is called for every one.

        None: there is nothing to do now.
        """
        while self._alarms and self._alarms[0][0] <= now:
            lane = heapq.heappop(self._alarms)[2]
            if lane.due <= now and not lane.hungry:
                lane.hungry = True
                lane.station.hungry.append(lane)
                self._hungry[lane.station] = None
        for station in self._hungry:
            room = BUFFER - station.buffered
            if not station.fetching and room >= BUFFER // 2:
                lanes = [station.hungry.popleft() for _ in range(min(_LANES_AT_ONCE, len(station.hungry)))]
                station.fetching = True
                if not station.hungry:
                    del self._hungry[station]
                for lane in lanes:
                    lane.hungry, lane.fetching, lane.due = False, True, _NEVER
                # Those that are known come first in the store, until they have started.
                return lanes, room // len(lanes) + max(len(lane.known) for lane in lanes)
        return None

    def fetched(self, lane: Lane, tasks: list[Task] | None, asked: int, now: float) -> None:
        """What was read, in the order in which it is due; `asked` is how much would have fitted; None: it failed."""
        lane.fetching = lane.station.fetching = False
        if self._stations.get(lane.station.key) is not lane.station:
            return  # forgotten meanwhile
        if tasks is None:
            self._look(lane, now + 1.0)
            return
        for task in tasks:
            if task.due > now:
                self._look(lane, task.due)
                break
            if task.id not in lane.known:
                lane.known.add(task.id)
                lane.ready.append(task)
                lane.station.buffered += 1
        else:
            if len(tasks) >= asked:
                self._look(lane, now)
        self._list(lane)
        self._drop_if_idle(lane)

    def wake_at(self) -> float | None:
        """When `next_fetch` is worth a call again, as far as time goes."""
        while self._alarms and self._alarms[0][2].due != self._alarms[0][0]:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    # -- what to start

    def next_start(self) -> tuple[Lane, Task] | None:
        """The next task whose turn it is; it counts as running until `ended`."""
        while self._turns and self._running < self._limits.running:
            station = self._turns.popleft()
            station.listed = False
            if not station.runnable or station.running >= self._limits.running_per_function:
                continue
            lane = station.runnable.popleft()
            lane.listed = False
            if not lane.open:
                self._list_station(station)
                continue
            task = lane.ready.popleft()
            station.buffered -= 1
            station.running += 1
            lane.running += 1
            self._running += 1
            self._list(lane)
            self._list_station(station)
            return lane, task
        return None

    def ended(self, lane: Lane, task: Task) -> None:
        """A task that `next_start` gave runs no more."""
        self._running -= 1
        lane.station.running -= 1
        lane.running -= 1
        lane.known.discard(task.id)
        self._list(lane)
        self._list_station(lane.station)
        self._drop_if_idle(lane)

    def _count(self, key: LaneKey, change: int) -> None:
        station = self._station(key)
        change = max(change, -station.pending)
        station.pending += change
        self.pending += change
        self._waiting[key[0]] += change

    def _look(self, lane: Lane, due: float) -> None:
        if due < lane.due:
            lane.due = due
            heapq.heappush(self._alarms, (due, next(self._numbers), lane))

    def _list(self, lane: Lane) -> None:
        if lane.open and not lane.listed:
            lane.listed = True
            lane.station.runnable.append(lane)
        if lane.listed:
            self._list_station(lane.station)

    def _list_station(self, station: Station) -> None:
        if station.runnable and not station.listed:
            station.listed = True
            self._turns.append(station)

    def _station(self, key: LaneKey) -> Station:
        return self._stations.setdefault(key[:2], Station(key[:2]))

    def _lane(self, key: LaneKey) -> Lane:
        station = self._station(key)
        lane = station.lanes.get(key)
        if lane is None:
            lane = station.lanes[key] = Lane(key, station)
        return lane

    def _drop_if_idle(self, lane: Lane) -> None:
        station = lane.station
        if lane.idle and station.lanes.get(lane.key) is lane:
            del station.lanes[lane.key]
            if not station.lanes and not station.pending and self._stations.get(station.key) is station:
                del self._stations[station.key]
