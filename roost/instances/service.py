"""Sessions and instances as an API's caller sees them: create, read, change, pause, end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from roost.instances.instance import Instance
from roost.instances.pauses import Pauses
from roost.instances.roster import Roster
from roost.instances.sessions import SessionBook
from roost.model.errors import Conflict
from roost.model.function import FunctionSpec
from roost.model.instance import State
from roost.model.session import Session, SessionState
from roost.model.taint import Labels
from roost.model.usage import TransitionRecord

#: Ended instances that are remembered for listings.
REMEMBERED = 1000


class Networks(Protocol):
    """What rooms may reach."""

    async def network_changed(self, spec: FunctionSpec, instance_id: str, session: Session) -> None: ...

    def labels_of(self, spec: FunctionSpec | None, session: Session) -> Labels: ...


class SessionService:
    """The Session API's verbs over the book and the instances."""

    def __init__(self, book: SessionBook, pauses: Pauses, roster: Roster, networks: Networks) -> None:
        self._book = book
        self._pauses = pauses
        self._roster = roster
        self._networks = networks

    async def create(
        self,
        spec: FunctionSpec,
        *,
        qualifier: str,
        session_id: str | None,
        user: str,
        ttl_s: int,
        idle_timeout_s: int,
        disable_id_reuse: bool,
        auto_pause: bool,
        auto_resume: bool,
        config: Mapping[str, Any],
    ) -> Session:
        """A new session; None lets the server choose the id. Raises Conflict, InvalidArgument."""
        fields = {
            "user": user,
            "ttl_s": ttl_s,
            "idle_timeout_s": idle_timeout_s,
            "disable_id_reuse": disable_id_reuse,
            "auto_pause": auto_pause,
            "auto_resume": auto_resume,
            "config": config,
        }
        return await self._book.create(spec, qualifier, session_id or "", fields)

    async def get(self, account: str, function: str, session_id: str) -> Session:
        """Raises NotFound."""
        return self._book.get(account, function, session_id)

    def labels(self, session: Session) -> Labels:
        """What is known of where its data came from."""
        instance = self._roster.pinned.get(session.key)
        return self._networks.labels_of(None if instance is None else instance.spec, session)

    async def list(
        self,
        account: str,
        function: str,
        *,
        qualifier: str | None,
        session_id: str | None,
        state: SessionState | None,
        limit: int,
        next_token: str,
    ) -> tuple[Sequence[Session], str]:
        """A page ordered by id, and the token of the next one."""
        found = sorted(
            (
                s
                for s in self._book.list(account, function)
                if s.id >= next_token
                and qualifier in (None, s.qualifier)
                and session_id in (None, s.id)
                and state in (None, s.state)
            ),
            key=lambda s: s.id,
        )
        return found[:limit], found[limit].id if len(found) > limit else ""

    async def update(
        self,
        account: str,
        function: str,
        session_id: str,
        *,
        ttl_s: int | None,
        idle_timeout_s: int | None,
        disable_id_reuse: bool | None,
        auto_pause: bool | None,
        auto_resume: bool | None,
        network: Mapping[str, Any],
    ) -> Session:
        """Change what is not None; `network` are fields of its configuration, which its room learns of at once.
        Raises NotFound, Conflict unless it is Active, InvalidArgument."""
        session = self._book.get(account, function, session_id)
        if session.state is not SessionState.ACTIVE:
            raise Conflict(
                f"Session {session_id} is {session.state.value}; only an Active one can be changed.",
                code="SessionStatusConflict",
            )
        wanted: dict[str, Any] = {
            "ttl_s": ttl_s,
            "idle_timeout_s": idle_timeout_s,
            "disable_id_reuse": disable_id_reuse,
            "auto_pause": auto_pause,
            "auto_resume": auto_resume,
            "config": {**session.config, **network} if network else None,
        }
        instance = self._roster.pinned.get(session.key)
        if network and instance is not None:
            changed = replace(session, config=wanted["config"] or {})
            await self._networks.network_changed(instance.spec, instance.id, changed)
            if instance.session is not None:
                instance.session = changed  # its next room, after a pause, is made by that
        return await self._book.change(session, {k: v for k, v in wanted.items() if v is not None})

    async def delete(self, account: str, function: str, session_id: str) -> None:
        """End it and forget it; its volume stays. Raises NotFound."""
        await self._book.end(self._book.get(account, function, session_id), forget=True)

    async def pause(self, account: str, function: str, session_id: str, *, files_only: bool) -> tuple[Session, bool]:
        """The paused session, and whether memory was kept too. Raises NotFound, Conflict unless it is Active."""
        session = await self._pauses.pause(self._book.get(account, function, session_id), memory=not files_only)
        return session, self._pauses.in_memory(session)

    async def resume(self, account: str, function: str, session_id: str) -> tuple[Session, bool]:
        """The session, and whether its memory is there. Raises NotFound, Conflict unless it is Paused."""
        session = self._book.get(account, function, session_id)
        in_memory = self._pauses.in_memory(session)
        return await self._pauses.resume(session), in_memory


@dataclass(frozen=True, kw_only=True)
class InstanceView:
    """One instance as its owner sees it. Times: Unix seconds; `destroyed` is None while it lives."""

    instance_id: str
    state: str
    version: str
    qualifier: str
    created: float
    destroyed: float | None = None


class InstanceHistory:
    """Instances that live, and those that ended recently. A sink of transitions."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._ended: deque[tuple[str, str, InstanceView]] = deque(maxlen=REMEMBERED)
        self._born: dict[str, float] = {}

    def transition(self, record: TransitionRecord) -> None:
        """Remember instances that end."""
        self._born.setdefault(record.instance_id, record.at - record.held_s)
        if record.after is not State.STOPPED:
            return
        view = InstanceView(
            instance_id=record.instance_id,
            state=State.STOPPED.value,
            version=record.version,
            qualifier=record.version,
            created=self._born.pop(record.instance_id),
            destroyed=record.at,
        )
        self._ended.append((record.account, record.function, view))

    def list_instances(self, account: str, function: str) -> Sequence[InstanceView]:
        """Newest first."""
        alive = [_view(i) for i in self._roster.instances() if (i.spec.account, i.spec.name) == (account, function)]
        ended = [view for owner, name, view in self._ended if (owner, name) == (account, function)]
        return sorted([*alive, *ended], key=lambda view: view.created, reverse=True)


def _view(instance: Instance) -> InstanceView:
    return InstanceView(
        instance_id=instance.id,
        state=instance.state.value,
        version=instance.spec.version,
        qualifier=instance.spec.version,
        created=instance.created,
    )
