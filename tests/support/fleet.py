"""The parts of a fleet wired as the server does it, over whatever a test puts below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from roost.instances.adoption import Adoption
from roost.instances.background import Background
from roost.instances.fleet import InstanceFleet
from roost.instances.pauses import Pauses
from roost.instances.roster import FleetLimits, Roster, Specs
from roost.instances.sessions import SessionBook, SessionStore
from roost.instances.surroundings import Surroundings
from roost.model.function import FunctionSpec
from roost.model.session import Session


class NoFolders:
    """Sessions without files."""

    def session_dir(self, spec: FunctionSpec, session: Session) -> str:
        return "/mnt/session"

    async def make_session_dir(self, spec: FunctionSpec, session: Session) -> None: ...

    async def make_task_dir(self, spec: FunctionSpec, session: Session | None, instance_id: str, task: str) -> str:
        return "/mnt/task"


class Parts:
    """`fleet` gives leases, `roster` has the instances, `pauses` the sleeping sessions, `adoption` the orphans."""

    def __init__(
        self, *, specs: Specs, store: SessionStore, around: Surroundings, limits: FleetLimits, run_dir: Path,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.book = SessionBook(store, clock=clock, ended=self._ended, idle=self._idle)
        self.roster = Roster(specs=specs, around=around, limits=limits, run_dir=run_dir)
        self.background = Background()
        self.pauses = Pauses(
            book=self.book, roster=self.roster, background=self.background, stop_grace=limits.stop_grace
        )
        self.fleet = InstanceFleet(
            roster=self.roster, book=self.book, pauses=self.pauses, background=self.background,
            folders=NoFolders(),
        )  # fmt: skip
        self.adoption = Adoption(specs=specs, book=self.book, roster=self.roster)

    async def _ended(self, session: Session) -> None:
        await self.pauses.ended(session)

    async def _idle(self, session: Session) -> None:
        await self.pauses.idle(session)

    async def deleted(self, account: str, function: str) -> None:
        await self.book.forget_function(account, function)
        await self.roster.emptied(account, function)

    async def close(self) -> None:
        await self.roster.close()
        await self.background.close()
