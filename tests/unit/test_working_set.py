"""Which pages rooms are given ahead: those that all rooms of their kind wrote to that were looked at."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

from roost.isolation.namespaces.working_set import (
    LOOKS,
    MOST_PAGES,
    PAGE,
    USED_S,
    WorkingSets,
    is_entered,
    own_pages,
    ranges,
)

PRESENT, FILE, OWN = 1 << 63, 1 << 61, 1 << 56


def test_a_page_is_its_own_if_it_is_there_no_files_and_nobody_elses() -> None:
    entries = [0, PRESENT | OWN, PRESENT | OWN | FILE, PRESENT, OWN, PRESENT | OWN | 7]
    assert list(own_pages(entries, 100)) == [101, 105]


def test_a_rooms_process_may_have_any_name() -> None:
    named = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'\\xff\\xfe', 0, 0, 0); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", named], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not is_entered(process.pid)
        process.kill()
    assert not is_entered(process.pid)  # it has ended


def test_pages_are_asked_for_by_runs() -> None:
    assert ranges([]) == []
    assert ranges({9, 3, 4, 5}) == [(3 * PAGE, 3 * PAGE), (9 * PAGE, PAGE)]


@dataclass
class Rooms:
    """Rooms with so many pages, some of which are somebody's."""

    pages: dict[int, set[int]] = field(default_factory=dict)
    entered: set[int] = field(default_factory=set)
    now: float = 0.0
    read: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sets = WorkingSets(read=self._read, entered=self.entered.__contains__, clock=lambda: self.now)

    def _read(self, pid: int) -> set[int]:
        self.read.append(pid)
        if pid not in self.pages:
            raise ProcessLookupError
        return self.pages[pid]

    def use(self, pid: int, pages: set[int], kind: str = "kind") -> None:
        self.pages[pid] = pages
        self.entered.add(pid)
        self.sets.began(pid, kind)
        self.sets.learn()
        self.now += USED_S
        self.sets.learn()


def test_what_all_of_three_have_written_to_is_the_set() -> None:
    rooms = Rooms()
    rooms.use(1, {1, 2, 3, 10})
    rooms.use(2, {1, 2, 3, 11})
    assert rooms.sets.of("kind") == []  # not what one or two have, who may be of hostile code
    rooms.use(3, {2, 3, 10, 12})
    assert rooms.sets.of("kind") == ranges({2, 3})
    rooms.use(4, {2})
    assert rooms.read == [1, 2, 3][:LOOKS]  # it is known by then
    assert rooms.sets.of("another") == []


def test_of_very_many_pages_none_is_copied() -> None:
    rooms = Rooms()
    for number in range(LOOKS + 1):
        rooms.use(number, set(range(MOST_PAGES + 1)))
    assert (rooms.sets.of("kind"), rooms.read) == ([], [0, 1, 2])  # nor looked for: a look takes milliseconds
    for number in range(LOOKS):
        rooms.use(10 + number, set(range(MOST_PAGES)), "other")
    assert rooms.sets.of("other") == [(0, MOST_PAGES * PAGE)]


def test_only_what_has_been_somebodys_for_a_while_is_looked_at() -> None:
    rooms = Rooms()
    rooms.pages[1] = {1}
    rooms.sets.began(1, "kind")
    rooms.now += 60
    rooms.sets.learn()  # nobody's
    rooms.entered.add(1)
    rooms.sets.learn()
    rooms.now += USED_S / 2
    rooms.sets.learn()
    assert rooms.read == []
    rooms.now += USED_S / 2
    rooms.sets.learn()
    assert rooms.read == [1]


def test_what_has_ended_is_not_looked_at_nor_who_gets_its_number() -> None:
    rooms = Rooms()
    rooms.use(1, {1, 2})
    rooms.entered.add(2)
    rooms.sets.began(2, "kind")
    rooms.sets.learn()
    rooms.sets.ended(2)
    rooms.now += 60
    rooms.sets.learn()
    rooms.sets.began(3, "kind")
    rooms.entered.add(3)
    rooms.sets.learn()
    rooms.now += 60
    rooms.sets.learn()  # it has ended just now, which is no look
    assert rooms.read == [1, 3]
    rooms.use(4, {1, 2})
    assert rooms.sets.of("kind") == []
    rooms.use(5, {2, 3})
    assert rooms.sets.of("kind") == ranges({2})


def test_kinds_have_sets_of_their_own() -> None:
    rooms = Rooms()
    for number in range(LOOKS):
        rooms.use(number, {1}, "sandbox")
        rooms.use(10 + number, {2}, "function")
    assert (rooms.sets.of("sandbox"), rooms.sets.of("function")) == ([(PAGE, PAGE)], [(2 * PAGE, PAGE)])
