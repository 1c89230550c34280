"""Leases: a slot on an instance for each request, on the session's own instance if it has one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Protocol

from roost.instances.background import Background
from roost.instances.instance import Instance
from roost.instances.lease import Lease, SessionRef
from roost.instances.pauses import Pauses
from roost.instances.pool import Pool
from roost.instances.roster import Moved, Roster
from roost.instances.sessions import Key, SessionBook
from roost.model.errors import Conflict, NotFound, RoostError, Throttled, Unavailable
from roost.model.function import FunctionSpec
from roost.model.instance import State, StopReason
from roost.model.session import Session, SessionState

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_NONE: Mapping[str, str] = {}


class SessionFolders(Protocol):
    """Where sessions have their files."""

    def session_dir(self, spec: FunctionSpec, session: Session) -> str:
        """As the room sees it."""
        ...

    async def make_session_dir(self, spec: FunctionSpec, session: Session) -> None:
        """Have it there before the session's first request to an instance. Raises RoostError."""
        ...

    async def make_task_dir(self, spec: FunctionSpec, session: Session | None, instance_id: str, task: str) -> str:
        """Have the task's folder there before its request; as the room sees it. Raises RoostError."""
        ...


class InstanceLease:
    """One slot on one instance. See `lease.Lease`."""

    __slots__ = (
        "_fleet",
        "_instance",
        "_released",
        "app_socket",
        "cold",
        "instance_id",
        "request_headers",
        "restored",
        "session",
        "spec",
    )

    def __init__(
        self, instance: Instance, session: Session | None, *, fleet: InstanceFleet, cold: bool, restored: bool
    ) -> None:
        self.spec = instance.spec
        self.instance_id = instance.id
        self.app_socket = instance.app_socket
        self.session = session
        self.cold = cold
        self.restored = restored
        self.request_headers: Mapping[str, str] = fleet.session_headers(instance.spec, session) if session else _NONE
        self._instance = instance
        self._fleet = fleet
        self._released = False
        if session is not None:
            fleet.granted(session)

    def release(self) -> None:
        if not self._released:
            self._released = True
            if self.session is not None:
                self._fleet.returned(self.session)
            if self.spec.ends_with_request:
                self._instance.stop(StopReason.REQUEST_ENDED)
            self._instance.give_back()

    def abandon(self, reason: str) -> None:
        if not self._released:
            self._released = True
            if self.session is not None:
                self._fleet.returned(self.session)
            self._fleet.abandoned(self._instance, reason)

    async def failure(self) -> Exception:
        return await self._instance.why(1.0)


class InstanceFleet:
    """Implements `lease.Fleet`. One event loop; nothing here blocks it."""

    def __init__(
        self,
        *,
        roster: Roster,
        book: SessionBook,
        pauses: Pauses,
        background: Background,
        folders: SessionFolders,
    ) -> None:
        self._roster = roster
        self._book = book
        self._pauses = pauses
        self._background = background
        self._folders = folders

    def try_lease(self, spec: FunctionSpec, session: SessionRef | None = None) -> Lease | None:
        pool = self._roster.current(spec)
        if pool is None or spec.task_folders:
            return None
        if session is None:
            instance, known = pool.at_once(), None
        else:
            known = self._book.find((spec.account, spec.name, session.id)) if session.id else None
            instance = self._at_home(pool, known) if known is not None else None
        if instance is None:
            return None
        instance.take()
        restored = known is not None and instance.forgot(known.key)
        return InstanceLease(instance, known, fleet=self, cold=False, restored=restored)

    def version_of(self, spec: FunctionSpec, session: SessionRef) -> str:
        instance = self._roster.pinned.get((spec.account, spec.name, session.id))
        return instance.spec.version if instance is not None else ""

    def _at_home(self, pool: Pool, session: Session) -> Instance | None:
        """The instance of an active session, if it can take a request at once."""
        instance = self._roster.pinned.get(session.key)
        if instance is None or session.state is not SessionState.ACTIVE or session.instance_id != instance.id:
            return None
        return instance if pool.takes_at_once(instance) else None

    async def lease(
        self, spec: FunctionSpec, session: SessionRef | None = None, *, task: str = "", timeout_s: float = 60.0
    ) -> Lease:
        lease = await self._leased(spec, session, timeout_s)
        if task and lease.spec.task_folders:
            try:
                folder = await self._folders.make_task_dir(lease.spec, lease.session, lease.instance_id, task)
            except BaseException:
                lease.release()
                raise
            lease.request_headers = {**lease.request_headers, "x-roost-task-dir": folder}
        return lease

    async def _leased(self, spec: FunctionSpec, session: SessionRef | None, timeout_s: float) -> InstanceLease:
        pool = self._roster.pool(spec)
        if session is None:
            instance, cold = await pool.any_instance(timeout_s)
            return await self._granted(instance, None, cold=cold)
        deadline = asyncio.get_running_loop().time() + timeout_s
        known = self._known(spec, session)
        opened = known or self._book.open(spec, spec.version, session.id, {})
        try:
            return await self._lease_session(spec, opened, deadline)
        except BaseException:
            if known is None:
                self._book.discard(opened)  # unless an instance was started for it
            raise

    def _known(self, spec: FunctionSpec, ref: SessionRef) -> Session | None:
        known = self._book.find((spec.account, spec.name, ref.id)) if ref.id else None
        if known is None and ref.id and ref.generated:
            # Only the server hands these out: one that it does not know was planted, or is over.
            raise _no_session(spec.name, ref.id)
        return known

    async def _granted(
        self, instance: Instance, session: Session | None, *, cold: bool, restored: bool = False
    ) -> InstanceLease:
        """The lease of a slot that was taken; thawed."""
        try:
            lease = InstanceLease(instance, session, fleet=self, cold=cold, restored=restored)
        except BaseException:
            instance.give_back()
            raise
        try:
            if instance.state is State.FROZEN:
                await instance.thawed()
        except BaseException:
            lease.release()
            raise
        return lease

    async def _lease_session(self, spec: FunctionSpec, session: Session, deadline: float) -> InstanceLease:
        for _ in range(_ATTEMPTS):
            await self._active(session.key)
            pool = self._roster.pool(spec)  # the function may have changed while it was waited for
            with contextlib.suppress(Moved):
                return await self._lease_placed(pool, session.key, deadline)
        raise Unavailable(f"The session's instance keeps ending; see the logs of {spec.name}.", retry_after=1)

    async def _lease_placed(self, pool: Pool, key: Key, deadline: float) -> InstanceLease:
        instance = await self._place(pool, key, deadline)
        session = self._book.get(*key)
        restored = bool(session.instance_id) and session.instance_id != instance.id
        stored: asyncio.Task[None] | None = None
        if session.instance_id != instance.id:
            session = self._book.assign(session, instance.id)
            stored = self._background.spawn(self._settle(pool.spec, session))  # beside the instance's start
        instance.wake_up()
        cold = await pool.this_instance(instance, deadline - asyncio.get_running_loop().time())
        restored = instance.forgot(key) or restored
        lease = await self._granted(instance, session, cold=cold, restored=restored)
        try:
            if stored is not None:
                await asyncio.shield(stored)
        except BaseException:
            lease.release()
            raise
        return lease

    async def _settle(self, spec: FunctionSpec, session: Session) -> None:
        """Make durable where the session is, and have its folder there."""
        await self._book.persist(session.key)
        await self._folders.make_session_dir(spec, session)

    async def _active(self, key: Key) -> None:
        """The session is ready for a request. Raises Conflict when it is paused and does not resume by itself."""
        session = self._book.get(*key)
        if session.state is SessionState.RESUMING or (session.state is SessionState.PAUSED and session.auto_resume):
            session = await self._pauses.resumed(session)
        if session.state is not SessionState.ACTIVE:
            raise Conflict(f"Session {session.id} is {session.state.value}.", code="SessionStatusConflict")

    async def _place(self, pool: Pool, key: Key, deadline: float) -> Instance:
        """The session's instance; a new one when it has none, or when the function has changed since."""
        while (instance := self._roster.pinned.get(key)) is not None:
            if instance.usable and instance.spec.revision == pool.spec.revision:
                return instance
            if instance.session is None:
                break
            # Its files are in use until it has stopped.
            instance.stop(StopReason.UPDATED)
            try:
                async with asyncio.timeout_at(deadline):
                    await instance.stopped.wait()
            except TimeoutError:
                raise Throttled("The session's former instance is still busy.", retry_after=1) from None
        if self._roster.closing or pool.closed:
            raise Moved("The function was deleted, or the server stops.")
        session = self._book.find(key)
        if session is None:
            raise _no_session(key[1], key[2])
        chosen = self._shareable(pool, pool.spec) or self._roster.start(pool, session if pool.spec.exclusive else None)
        if chosen is None:
            raise Throttled("This server has no room for another instance.", retry_after=1)
        self._roster.pin(key, chosen)
        return chosen

    @staticmethod
    def _shareable(pool: Pool, spec: FunctionSpec) -> Instance | None:
        if spec.exclusive:
            return None
        roomy = [
            i
            for i in pool.instances.values()
            if i.usable
            and i.spec.revision == spec.revision
            and len(i.sessions) < spec.sessions.sessions_per_instance
            and (i.sessions or i.leases < i.slots)
        ]
        return max(roomy, key=lambda i: (len(i.sessions), -i.created), default=None)

    def bind(self, spec: FunctionSpec, session_id: str, instance_id: str) -> None:
        """A session whose id the user's own server made (MCP) belongs to this instance."""
        instance = self._roster.pool(spec).instances.get(instance_id)
        if instance is None:
            return
        key = (spec.account, spec.name, session_id)
        if self._book.find(key) is None:
            try:
                self._book.open(spec, spec.version, session_id, {"instance_id": instance_id})
            except RoostError as error:  # the user's server may send anything
                log.info("function %s: its session is not kept: %s", spec.name, error.message)
                return
            self._background.spawn(self._settle(spec, self._book.get(*key)))
        self._roster.pin(key, instance)

    def end(self, spec: FunctionSpec, session_id: str) -> None:
        """The client ended a session."""
        session = self._book.find((spec.account, spec.name, session_id))
        if session is not None:
            self._background.spawn(self._book.end(session, forget=True))

    def session_headers(self, spec: FunctionSpec, session: Session) -> Mapping[str, str]:
        """What the guest is told of the request's session."""
        return {"x-fc-session-id": session.id, "x-roost-session-dir": self._folders.session_dir(spec, session)}

    def granted(self, session: Session) -> None:
        """A lease begins."""
        self._book.enter(session.key)

    def returned(self, session: Session) -> None:
        """A lease ended."""
        self._book.leave(session.key)

    def abandoned(self, instance: Instance, reason: str) -> None:
        """A handler did not let go of its request: kill what must be killed, and no more."""
        if instance.leases > 1 or instance.spec.ends_with_request:
            instance.stop(StopReason.TIMEOUT)
            instance.give_back()
            return
        self._background.spawn(self._replace_worker(instance, reason))

    async def _replace_worker(self, instance: Instance, reason: str) -> None:
        # The slot stays taken meanwhile: no request meets the worker that is being replaced.
        log.info("instance %s: its worker is replaced (%s)", instance.id, reason)
        if not await instance.restart_worker():
            instance.stop(StopReason.TIMEOUT, grace=0)
        instance.give_back()


def _no_session(function: str, id: str) -> NotFound:
    return NotFound(f"Session {id} of function {function} does not exist.", code="SessionNotFound")
