"""New objects lie together once the free places between old ones are taken; in processes of their own."""

from __future__ import annotations

import subprocess
import sys

#: Every other object of a crowd goes; prints over how many pages as many new ones are spread.
_SPREAD = """
import ctypes
import sys
from roost.guest import holes

def mixed(size, count):
    crowd = [bytes(size - 33) for _ in range(count)]
    del crowd[::2]
    return crowd

crowds = [mixed(size, 4000) for size in (64, 208, 512, 2048)]
if sys.argv[1] == "taken":
    holes.take()
for size in (64, 208, 512, 2048):
    made = [bytes(size - 33) for _ in range(200)]
    print(len({id(each) >> 12 for each in made}) / max(1, 200 * size >> 12))
"""


def _spread(how: str) -> list[float]:
    ran = subprocess.run([sys.executable, "-c", _SPREAD, how], capture_output=True, text=True, timeout=60, check=True)
    return [float(line) for line in ran.stdout.split()]


def test_new_objects_fill_their_pages() -> None:
    assert max(_spread("taken")) < 1.7
    assert min(_spread("left")) > 1.7, "without it they lie between the old ones"
