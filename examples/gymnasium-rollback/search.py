"""Find the way across FrozenLake with rollback in place of reset.

A Gymnasium environment can be reset to its start, not to where it was ten steps ago. So a search that goes back
resets it and takes all the steps again. Here the environment lives in a sandbox: each state on the way is a checkpoint,
and to go back is to roll back.

    python examples/gymnasium-rollback/search.py --map 4x4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from e2b_code_interpreter import Sandbox

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from branching import Branching, value

ACTIONS = ("left", "down", "right", "up")
MAKE = """
import gymnasium
env = gymnasium.make("FrozenLake-v1", map_name={map!r}, is_slippery=False)
observation, _ = env.reset(seed=1)
taken = 0
def step(action):
    global taken
    observation, reward, terminated, truncated, _ = env.step(action)
    taken += 1
    return f"{{int(observation)}} {{float(reward)}} {{terminated or truncated}}"
int(observation)
"""


@dataclass
class Search:
    """Depth first: a state that was seen is not entered again. `steps` are those that were taken, `replayed` those that
    a search with reset would have taken beside them, to be where this one was rolled back to."""

    live: Branching
    seen: set[str] = field(default_factory=set)
    steps: int = 0
    replayed: int = 0

    def down(self, path: list[int]) -> list[int] | None:
        """The way to the goal from where the environment is, `path` behind it."""
        here = self.live.checkpoint("/".join(ACTIONS[action] for action in path) or "start")
        for number, action in enumerate((1, 2, 3, 0)):
            if number:
                self.live.rollback(here)
                self.replayed += len(path)
            observation, reward, over = value(self.live.sandbox, f"step({action})").strip("'").split()
            self.steps += 1
            if float(reward) > 0:
                return [*path, action]
            if over == "True" or observation in self.seen:
                continue
            self.seen.add(observation)
            if (found := self.down([*path, action])) is not None:
                return found
        self.live.forget(here)
        return None


@contextmanager
def sandbox_with_gymnasium() -> Iterator[Sandbox]:
    """Installed from PyPI through the server's own door: a sandbox has no other way out."""
    sandbox = Sandbox.create(timeout=600, allow_internet_access=True)
    try:
        sandbox.commands.run("pip install --quiet gymnasium", timeout=300)
        yield sandbox
    finally:
        sandbox.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", choices=("4x4", "8x8"), default="4x4")
    options = parser.parse_args()
    with sandbox_with_gymnasium() as sandbox:
        live = Branching(sandbox)
        start = value(sandbox, MAKE.format(map=options.map))
        search = Search(live, {start})
        path = search.down([])
        live.close()
    if path is None:
        sys.exit("There is no way to the goal.")
    print(f"The way: {' '.join(ACTIONS[action] for action in path)}")
    print(f"Steps taken with rollback: {search.steps}")
    print(f"Steps that reset would have taken: {search.steps + search.replayed}")
    print(f"Steps saved: {search.replayed}")


if __name__ == "__main__":
    main()
