"""The API on a real uvicorn in a thread, with a real store and real packages; only sessions and instances are fakes."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from alibabacloud_fc20230330.client import Client
from alibabacloud_tea_openapi.utils_models import Config
from starlette.applications import Starlette

from roost.api.fc.app import build_fc_api
from roost.functions.catalog import FunctionCatalog
from roost.functions.packages import PackageLimits, PackageStore
from roost.functions.tasks.backlog import BacklogLimits
from roost.functions.tasks.service import Retention
from roost.functions.tasks.tasks import AsyncTasks
from roost.model.errors import Conflict, NotFound
from roost.model.function import FunctionSpec
from roost.model.session import Session, SessionState, check_session_transition
from roost.model.signature import AccessKey, Keys
from roost.model.taint import NONE, Labels
from roost.store.store import Store
from roost.tenants.identity import Identity
from roost.triggers.status import Statuses

KEY_ID, SECRET, ACCOUNT = "LTAItest", "a-secret-of-the-test", "acct1"


class FakeSessions:
    """Sessions in a dict, without instances: enough to see what the API passes on and gives back."""

    def __init__(self) -> None:
        self.sessions: dict[tuple[str, str, str], Session] = {}
        self.now = 1_700_000_000.0

    async def create(self, spec: FunctionSpec, *, qualifier: str, session_id: str | None, **fields: Any) -> Session:
        session = Session(
            account=spec.account,
            function=spec.name,
            qualifier=qualifier,
            id=session_id or f"generated-{len(self.sessions)}",
            affinity=spec.sessions.affinity,
            created=self.now,
            modified=self.now,
            last_used=self.now,
            **fields,
        )
        if session.key in self.sessions:
            raise Conflict("The session exists.", code="SessionAlreadyExists")
        self.sessions[session.key] = session
        return session

    async def get(self, account: str, function: str, session_id: str) -> Session:
        if (account, function, session_id) not in self.sessions:
            raise NotFound("No such session.", code="SessionNotFound")
        return self.sessions[account, function, session_id]

    def labels(self, session: Session) -> Labels:
        return NONE

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
        found = [
            session
            for key, session in sorted(self.sessions.items())
            if key[:2] == (account, function)
            and session_id in {None, session.id}
            and qualifier in {None, session.qualifier}
            and state in {None, session.state}
            and session.id >= next_token
        ]
        return found[:limit], found[limit].id if len(found) > limit else ""

    async def update(self, account: str, function: str, session_id: str, **fields: Any) -> Session:
        session = await self.get(account, function, session_id)
        fields["config"] = {**session.config, **fields.pop("network")}
        return self._keep(replace(session, **{key: value for key, value in fields.items() if value is not None}))

    async def delete(self, account: str, function: str, session_id: str) -> None:
        del self.sessions[(await self.get(account, function, session_id)).key]

    async def pause(self, account: str, function: str, session_id: str, *, files_only: bool) -> tuple[Session, bool]:
        session = await self.get(account, function, session_id)
        check_session_transition(session, SessionState.PAUSING)
        return self._keep(replace(session, state=SessionState.PAUSED)), not files_only

    async def resume(self, account: str, function: str, session_id: str) -> tuple[Session, bool]:
        session = await self.get(account, function, session_id)
        check_session_transition(session, SessionState.RESUMING)
        return self._keep(replace(session, state=SessionState.ACTIVE)), True

    def _keep(self, session: Session) -> Session:
        self.sessions[session.key] = session
        return session


class FakeSnapshots:
    """There are none."""

    def get(self, account: str, function: str, id: str) -> Any:
        raise NotFound("No such snapshot.", code="SnapshotNotFound")

    async def create(self, spec: FunctionSpec, session: Session, description: str) -> Any:
        raise Conflict("There are none.")

    async def delete(self, account: str, function: str, id: str) -> None:
        self.get(account, function, id)

    async def restore(self, id: str, spec: FunctionSpec, session: Session) -> Any:
        self.get(session.account, session.function, id)

    def list(self, account: str) -> Sequence[Any]:
        return []


@dataclass(frozen=True, kw_only=True)
class FakeInstance:
    instance_id: str
    state: str = "ready"
    version: str = "LATEST"
    qualifier: str = "LATEST"
    created: float = 1_700_000_000.0
    destroyed: float | None = None


@dataclass
class FakeInstances:
    views: list[FakeInstance] = field(default_factory=list)

    def list_instances(self, account: str, function: str) -> Sequence[FakeInstance]:
        return list(self.views)


@dataclass
class Running:
    """One server of a test, and how to talk to it."""

    port: int
    catalog: FunctionCatalog
    sessions: FakeSessions
    instances: FakeInstances

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key_id: str = KEY_ID, secret: str = SECRET) -> Client:
        """The official SDK, as a user makes it."""
        return Client(
            Config(
                access_key_id=key_id,
                access_key_secret=secret,
                endpoint=f"127.0.0.1:{self.port}",
                protocol="http",
                region_id="local",
            )
        )


@contextlib.contextmanager
def running(folder: Path, *, keys: Keys, limits: PackageLimits | None = None) -> Iterator[Running]:
    store = Store(folder / "roost.db")
    packages = PackageStore(folder / "code", limits)
    packages.open()
    catalog = FunctionCatalog(store, packages, keys=keys, choose=random.Random(7))
    sessions, instances = FakeSessions(), FakeInstances()
    tasks = AsyncTasks(
        store=store, catalog=catalog, limits=BacklogLimits(), retention=Retention(), clock=time.time, publishers={}
    )
    routes = build_fc_api(
        catalog=catalog, sessions=sessions, snapshots=FakeSnapshots(), instances=instances,
        tasks=tasks.service, statuses=Statuses(),
        identity=Identity(keys, clock=time.time),
        link_secret=b"link-secret-of-the-test",
    )  # fmt: skip

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> Any:
        await store.open()
        try:
            await catalog.load()
            yield
        finally:
            await store.close()

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(Starlette(routes=routes, lifespan=lifespan), log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.01)
        assert thread.is_alive(), "the server did not start"
        yield Running(port=listener.getsockname()[1], catalog=catalog, sessions=sessions, instances=instances)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def signing_keys() -> Keys:
    return Keys(
        [
            AccessKey(id=KEY_ID, secret=SECRET, account=ACCOUNT),
            AccessKey(id="LTAIother", secret="another-secret-here", account="acct2"),
        ],
        default_account=ACCOUNT,
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """With keys, and small limits so that tests of them are fast."""
    with running(
        tmp_path / "signed", keys=signing_keys(), limits=PackageLimits(compressed=1 << 20, unpacked=4 << 20)
    ) as found:
        yield found


@pytest.fixture
def open_server(tmp_path: Path) -> Iterator[Running]:
    """Without keys."""
    with running(tmp_path / "open", keys=Keys()) as found:
        yield found


@pytest.fixture
def restartable(tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[Running]]:
    """Call it again after the first server has ended: same data."""
    return lambda: running(tmp_path, keys=signing_keys())


def make_zip(files: Mapping[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (files or {"index.py": "def handler(event, context):\n    return event\n"}).items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return out.getvalue()


@pytest.fixture
def zip64() -> Callable[..., str]:
    """An archive of name -> text, in base64."""
    return lambda files=None: base64.b64encode(make_zip(files)).decode()
