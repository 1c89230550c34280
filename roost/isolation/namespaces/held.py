"""What the tracer holds, on the server's side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.isolation.driver import Left
from roost.isolation.namespaces.helper import Helper, Reply, Spent, unnoted
from roost.model.errors import Unavailable


@dataclass(frozen=True)
class Held:
    """A shadow, or a branch, of the tracer's."""

    helper: Helper
    number: int
    process: int = 0  # of a branch, on the host
    most: int = 0  # bytes that a branch took when it was made, shared ones too

    async def ask(self, op: str, fds: Sequence[int] = (), spent: Spent = unnoted, **fields: Any) -> dict[str, Any]:
        """Raises Unavailable, also if the tracer has ended since: with it, all that it held has."""
        reply, _ = await self.helper.request({"op": op, "shadow": self.number, **fields}, fds, spent)
        return reply

    async def open(self, op: str, fds: Sequence[int] = ()) -> Reply:
        """As `ask`, of what is answered with descriptors, which are the caller's."""
        return await self.helper.request({"op": op, "shadow": self.number}, fds)

    async def branch(
        self, *, keep: bool = False, into: Sequence[int] = (), spent: Spent = unnoted
    ) -> tuple[Held, Left]:
        """A copy of the memory as it is. The room is frozen. `keep`: it is to be settled more than once. `into`: where
        it outlives the room."""
        reply = await self.ask("branch", into, spent, keep=keep)
        left = reply["left"]
        made = Held(self.helper, reply["shadow"], reply["process"], reply["bytes"])
        return made, Left(threads=left["threads"], processes=left["processes"], files=tuple(left["files"]))

    async def drop(self) -> None:
        with contextlib.suppress(Unavailable):
            await self.ask("drop")

    async def shelve(self) -> None:
        """Its memory ends; what else it is stays known."""
        with contextlib.suppress(Unavailable):
            await self.ask("shelve")

    async def alive(self) -> bool:
        try:
            reply, _ = await self.helper.request({"op": "alive", "shadows": [self.number]})
        except Unavailable:
            return self.helper.alive
        return self.number in reply["shadows"]

    async def measure(self) -> int:
        """To count a large memory takes milliseconds, so others are served meanwhile."""
        return await asyncio.to_thread(_share_of, self.process)


def _share_of(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)
