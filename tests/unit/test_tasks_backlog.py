"""Whose turn it is: bounds hold, functions take turns, a session's tasks go one by one, nothing is forgotten."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from roost.functions.tasks.backlog import BUFFER, Backlog, BacklogLimits, Lane
from roost.model.errors import Throttled
from roost.model.task import Task
from roost.store.tasks import Waiting
from tests.unit.test_tasks_model import task


class Shelf:
    """Plays the store: due tasks by lane, in order."""

    def __init__(self, backlog: Backlog) -> None:
        self.backlog = backlog
        self.tasks: dict[tuple[str, str, str], list[Task]] = {}
        self.most = 0

    def put(self, function: str, number: int, *, session: str = "", due: float = 0.0) -> None:
        lane = ("a", function, session)
        self.backlog.reserve(lane)
        self.tasks.setdefault(lane, []).append(task(function=function, session=session, id=f"t{number}", due=due))
        self.tasks[lane].sort(key=lambda each: each.due)
        self.backlog.added(lane, due)

    def pump(self, now: float) -> list[tuple[Lane, Task]]:
        started = []
        while True:
            while (wanted := self.backlog.next_fetch(now)) is not None:
                lanes, limit = wanted
                for lane in lanes:
                    self.backlog.fetched(lane, self.tasks.get(lane.key, [])[:limit], limit, now)
            held = sum(
                len(lane.ready) for station in self.backlog._stations.values() for lane in station.lanes.values()
            )
            self.most = max(self.most, held)
            turn = self.backlog.next_start()
            if turn is None:
                return started
            started.append(turn)

    def claimed(self, lane: Lane, task: Task) -> None:
        self.tasks[lane.key].remove(task)
        self.backlog.left(lane.key)


def test_functions_take_turns_within_their_bounds() -> None:
    shelf = Shelf(Backlog(BacklogLimits(running=6, running_per_function=4)))
    for number in range(50):
        shelf.put("busy", number)
    for number in range(2):
        shelf.put("quiet", number)
    started = shelf.pump(1.0)
    assert [task.function for _, task in started].count("busy") == 4
    assert [task.function for _, task in started].count("quiet") == 2
    assert [task.id for _, task in started if task.function == "busy"] == ["t0", "t1", "t2", "t3"]


def test_tasks_of_a_session_go_one_after_the_other_and_hold_up_nobody() -> None:
    shelf = Shelf(Backlog(BacklogLimits(running=10, running_per_function=10)))
    for number in range(5):
        shelf.put("f", number, session="one", due=number / 10)
    shelf.put("f", 9, session="two")
    shelf.put("f", 8)
    first = shelf.pump(1.0)
    assert sorted(task.id for _, task in first) == ["t0", "t8", "t9"]
    lane, done = next(turn for turn in first if turn[1].id == "t0")
    shelf.claimed(lane, done)
    assert shelf.pump(1.0) == []
    shelf.backlog.ended(lane, done)
    assert [task.id for _, task in shelf.pump(1.0)] == ["t1"]


def test_what_is_due_later_waits_and_says_when() -> None:
    shelf = Shelf(Backlog(BacklogLimits()))
    shelf.put("f", 1, due=50.0)
    assert shelf.pump(10.0) == []
    assert shelf.backlog.wake_at() == 50.0
    shelf.put("f", 2, due=20.0)
    assert shelf.backlog.wake_at() == 20.0
    assert [task.id for _, task in shelf.pump(20.0)] == ["t2"]
    assert [task.id for _, task in shelf.pump(50.0)] == ["t1"]


def test_a_full_queue_is_said_and_room_is_made_by_what_leaves() -> None:
    shelf = Shelf(Backlog(BacklogLimits(queued=2)))
    shelf.put("f", 1)
    shelf.put("g", 2)
    with pytest.raises(Throttled):
        shelf.put("f", 3)
    [lane, first], _ = shelf.pump(1.0)
    shelf.claimed(lane, first)
    shelf.put("f", 3)
    shelf.backlog.forget("a", "g")
    shelf.put("f", 4)
    with pytest.raises(Throttled):
        shelf.put("f", 5)


def test_what_the_store_has_at_the_start_is_found() -> None:
    shelf = Shelf(Backlog(BacklogLimits(queued=3)))
    shelf.tasks["a", "f", "s"] = [task(session="s", due=5.0)]
    shelf.backlog.restore([Waiting(lane=("a", "f", "s"), count=3, due=5.0)])
    assert shelf.backlog.wake_at() == 5.0
    with pytest.raises(Throttled):
        shelf.backlog.reserve(("a", "f", ""))
    assert len(shelf.pump(6.0)) == 1


def test_a_failed_read_is_made_again() -> None:
    backlog = Backlog(BacklogLimits())
    backlog.reserve(("a", "f", ""))
    backlog.added(("a", "f", ""), 1.0)
    wanted = backlog.next_fetch(2.0)
    assert wanted is not None
    backlog.fetched(wanted[0][0], None, wanted[1], 2.0)
    assert backlog.next_fetch(2.0) is None
    assert backlog.next_fetch(3.0) is not None


def test_what_was_forgotten_while_it_was_read_stays_forgotten() -> None:
    backlog = Backlog(BacklogLimits())
    backlog.reserve(("a", "f", ""))
    backlog.added(("a", "f", ""), 1.0)
    wanted = backlog.next_fetch(2.0)
    assert wanted is not None
    backlog.forget("a", "f")
    backlog.fetched(wanted[0][0], [task()], wanted[1], 2.0)
    assert backlog.next_start() is None
    assert backlog.pending == 0


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_everything_is_run_once_within_all_bounds(seed: int) -> None:
    dice = random.Random(seed)
    limits = BacklogLimits(running=dice.randint(1, 9), running_per_function=dice.randint(1, 5))
    backlog = Backlog(limits)
    shelf = Shelf(backlog)
    now, number, running, done = 0.0, 0, [], []
    while number < 400 or backlog.pending or running:
        now += dice.random()
        for _ in range(dice.randint(0, 20) if number < 400 else 0):
            session = dice.choice(["", "", "s1", "s2", f"s{number}"])
            shelf.put(dice.choice("fgh"), number, session=session, due=now + dice.choice([0, 0, 0, 3]))
            number += 1
        for lane, each in shelf.pump(now):
            assert each.due <= now
            shelf.claimed(lane, each)
            running.append((lane, each))
        assert len(running) <= limits.running
        for function in "fgh":
            mine = [each for _, each in running if each.function == function]
            assert len(mine) <= limits.running_per_function
            sessions = [each.session for each in mine if each.session]
            assert len(set(sessions)) == len(sessions)
        dice.shuffle(running)
        for _ in range(dice.randint(0, len(running))):
            lane, each = running.pop()
            backlog.ended(lane, each)
            if dice.random() < 0.2:
                retry = replace(each, due=now + dice.random() * 3)
                shelf.tasks[lane.key] = sorted([*shelf.tasks[lane.key], retry], key=lambda each: each.due)
                backlog.returned(lane.key, retry.due)
            else:
                done.append(each.id)
    assert sorted(done) == sorted(f"t{n}" for n in range(number))
    assert backlog._stations == {}
    assert shelf.most <= 3 * 2 * BUFFER
