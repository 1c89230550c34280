"""What the API needs from the layer that runs instances. Only plain values and `model` types cross this line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from roost.model.function import FunctionSpec
from roost.model.session import Session, SessionState
from roost.model.taint import Labels


class Sessions(Protocol):
    """Sessions of functions. Every method raises NotFound (SessionNotFound) for one that does not exist."""

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
        """A new session; None lets the server choose the id. All values are checked.

        `config` is kept with the session: the API's own fields as they came, and `mounts`, a list of objects with the
        fields of `VolumeMount`. Raises Conflict when the id is taken, or may not be used again.
        """
        ...

    async def get(self, account: str, function: str, session_id: str) -> Session: ...

    def labels(self, session: Session) -> Labels:
        """What is known of where its data came from."""
        ...

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
        """Up to `limit` sessions by id, from `next_token` ("" for the first) on; and the next token, "" at the end."""
        ...

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
        """Change what is not None, and fields of its configuration that are about its network. Raises Conflict unless
        it is Active."""
        ...

    async def delete(self, account: str, function: str, session_id: str) -> None: ...

    async def pause(self, account: str, function: str, session_id: str, *, files_only: bool) -> tuple[Session, bool]:
        """The paused session, and whether its memory was kept too. Raises Conflict unless it is Active."""
        ...

    async def resume(self, account: str, function: str, session_id: str) -> tuple[Session, bool]:
        """The session, and whether its memory is there. Raises Conflict unless it is Paused."""
        ...


class Snapshot(Protocol):
    """A snapshot of a session. Times: Unix seconds; `lost`: what did not come along of the memory, or why none did."""

    @property
    def id(self) -> str: ...

    @property
    def source(self) -> Session: ...

    @property
    def spec(self) -> FunctionSpec: ...

    @property
    def description(self) -> str: ...

    @property
    def created(self) -> float: ...

    @property
    def expires(self) -> float: ...

    @property
    def disk_bytes(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    @property
    def has_memory(self) -> bool: ...

    @property
    def lost(self) -> tuple[str, ...]: ...

    def begun(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a session that begins with it is configured as: as its source was, but for what is said otherwise."""
        ...


class Snapshots(Protocol):
    """Snapshots of sessions. `get` and `delete` raise NotFound (SnapshotNotFound)."""

    async def create(self, spec: FunctionSpec, session: Session, description: str) -> Snapshot:
        """Raises Conflict, Throttled, StorageFull, Unavailable."""
        ...

    def get(self, account: str, function: str, id: str) -> Snapshot: ...

    def list(self, account: str) -> Sequence[Snapshot]: ...

    async def delete(self, account: str, function: str, id: str) -> None: ...

    async def restore(self, id: str, spec: FunctionSpec, session: Session) -> tuple[Session, bool, tuple[str, ...]]:
        """Have a session, just created, begin with a snapshot: the session, whether with memory, and what did not come
        along. Raises RoostError; the session is gone then."""
        ...


class InstanceView(Protocol):
    """One instance, as shown to its owner. Times: Unix seconds; `destroyed` is None while it lives."""

    @property
    def instance_id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def qualifier(self) -> str: ...

    @property
    def created(self) -> float: ...

    @property
    def destroyed(self) -> float | None: ...


class Instances(Protocol):
    def list_instances(self, account: str, function: str) -> Sequence[InstanceView]:
        """Those that live now, and those that ended recently, as far as they are remembered."""
        ...
