"""What a room may reach of the world through the host: its package indexes, its model, and what rules open."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import httpx

from roost.config import ModelConfig
from roost.instances.chains import HOPS, Chains
from roost.instances.labels import LabelBook, RoomLabels
from roost.instances.told import Told
from roost.isolation.driver import Door, Room
from roost.isolation.egress.authority import Authority, authority_environment
from roost.isolation.egress.budget import Budget
from roost.isolation.egress.embedded import EmbeddedServer
from roost.isolation.egress.guard import UNGUARDED, Guard
from roost.isolation.egress.index_proxy import IndexLimits, IndexProxy, RoomIndex
from roost.isolation.egress.injection import injection_of
from roost.isolation.egress.injector import Injector
from roost.isolation.egress.model_proxy import (
    DEFAULT_BASE_URL,
    PREFIX,
    Message,
    ModelEndpoint,
    ModelProxy,
    Receive,
    Send,
    room_environment,
)
from roost.isolation.egress.outward import PROXY_SOCKET, RoomProxy, proxy_environment
from roost.isolation.egress.resolver import Resolver
from roost.isolation.egress.routes import room_environment as package_environment
from roost.isolation.egress.rules import Policy, Reach, Rule, parse_rules
from roost.isolation.egress.taint import taint_policy
from roost.isolation.egress.transparent import Transparent
from roost.isolation.egress.upstreams import Upstreams
from roost.model.audit import Audit
from roost.model.errors import RoostError, Unavailable
from roost.model.function import EgressRules, FunctionSpec
from roost.model.secret import Secret
from roost.model.taint import Holder, Holdings, Labels
from roost.model.task import MAX_HOPS

log = logging.getLogger(__name__)

SOCKET = "index.sock"
#: Lives whose calls of a model are remembered; the one that had a room last is forgotten last.
_BUDGETS = 10_000
_LOOKUPS = 32  # of names, at once, for all rooms
#: What a room is told of its model instead of what was set.
MODEL_VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL")


def model_endpoint(environment: Mapping[str, str], default: ModelConfig) -> ModelEndpoint | None:
    """The model of a function: its own settings, else the server's. None if it doesn't ask for one, or there is none.

    A function asks by declaring one of the `OPENAI_*` variables, even an empty one. Raises InvalidArgument.
    """
    if not any(name in environment for name in MODEL_VARIABLES):
        return None
    base_url, api_key = environment.get("OPENAI_BASE_URL", ""), environment.get("OPENAI_API_KEY", "")
    if not base_url and not api_key:
        base_url, api_key = default.base_url, default.api_key
    if not base_url and not api_key:
        return None
    return ModelEndpoint(base_url=base_url or DEFAULT_BASE_URL, api_key=api_key)


def model_environment(environment: Mapping[str, str], default: ModelConfig) -> dict[str, str]:
    """The room's `OPENAI_*`: the proxy's address instead of the endpoint's, no key, the model's name."""
    name = environment.get("OPENAI_MODEL") or default.name
    return {**room_environment(), **({"OPENAI_MODEL": name} if name else {})}


def policy_of(rules: EgressRules, usual: tuple[Rule, ...]) -> Policy:
    """`usual` is what the server allows to all that take it. Raises InvalidArgument."""
    otherwise = usual if rules.usual else ()
    return Policy(
        allow=parse_rules(rules.allow),
        deny=parse_rules(rules.deny),
        otherwise=otherwise,
        most_bytes=rules.megabytes << 20,
        most_connections=rules.connections,
    )


class _Doors:
    """One room's application: the model at `/openai/`, the package indexes elsewhere."""

    def __init__(self, model: ModelProxy | None, index: RoomIndex) -> None:
        self._model = model
        self._index = index

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._model is not None and scope["path"].startswith(PREFIX):
            await self._model(scope, receive, send)
        else:
            await self._index(scope, receive, send)


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How a room's requests are looked into, if they are."""

    injector: Injector | None = None
    authority: Authority | None = None


async def _no_secret(account: str, name: str) -> Secret | None:
    return None


async def _no_door(room: Room) -> Door:
    raise Unavailable("Rooms of this server have no transparent way out.")


class RoomEgress:
    """Implements `assembly.Egress`: a socket for each room that may reach something, in a folder of its own.

    `on_bytes(account, function, count)` is told what package indexes are about to send to rooms, and what goes through
    their proxies; it may raise Throttled. `audit` is told of every request that a room sends out. `vault` gives an
    account's secret by its name, as it is now; `outbound(account, url)` raises RoostError where the server may not
    connect to a model for an account, and `on_model_call(account)` where it has had enough of them. `open_door` turns
    what leaves a room's network to this; `labels` are those of all rooms; `chains` knows whose connections come back.
    """

    def __init__(
        self,
        cache_dir: Path,
        *,
        upstreams: Upstreams,
        limits: IndexLimits,
        model: ModelConfig,
        labels: LabelBook,
        on_bytes: Callable[[str, str, int], None],
        audit: Audit = lambda event: None,
        usual: tuple[Rule, ...] = (),
        reach: Reach | None = None,
        vault: Callable[[str, str], Awaitable[Secret | None]] = _no_secret,
        outbound: Callable[[str, str], Awaitable[str]] | None = None,
        on_model_call: Callable[[str], None] = lambda account: None,
        open_door: Callable[[Room], Awaitable[Door]] = _no_door,
        chains: Chains | None = None,
    ) -> None:
        self._chains = chains or Chains(MAX_HOPS)
        self._on_model_call = on_model_call
        self._vault = vault
        self._outbound = outbound
        self._cache_dir = cache_dir
        self._upstreams = upstreams
        self._limits = limits
        self._model = model
        self._labels = labels
        self._on_bytes = on_bytes
        self._audit = audit
        self._usual = usual
        self._reach = reach or Reach()
        self._open_door = open_door
        self._servers: dict[Path, EmbeddedServer] = {}
        self._proxies: dict[Path, RoomProxy] = {}
        self._transparent: dict[Path, Transparent] = {}
        self._budgets: OrderedDict[str, Budget] = OrderedDict()
        self._labelled: dict[Path, RoomLabels] = {}
        self._guards: dict[Path, Guard] = {}
        self._resolver = Resolver(_LOOKUPS)
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Before the first `attach`."""
        self._index = IndexProxy(self._upstreams, self._cache_dir, self._limits)

    def _trust(self) -> ssl.SSLContext:
        return self._trusted

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        """What servers are verified by, where a tunnel is looked into."""
        return ssl.create_default_context()

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        """For models. Made for the first room that has one, as it takes longer than most parts of a server's start."""
        return httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(600, connect=10),
            # Each room has a bound of its own; a common one would let a few rooms keep the others from their models.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )

    async def attach(
        self, spec: FunctionSpec, run_dir: Path, holdings: Holdings
    ) -> tuple[Path | None, Mapping[str, str]]:
        """The folder to mount at /run/roost, if the function may reach anything, and the environment that uses it.
        `holdings` is the data that the room begins with."""
        guard = await self._guarded(spec, run_dir, holdings)
        endpoint = model_endpoint(spec.environment, self._model)
        policy = policy_of(spec.egress, self._usual)
        if endpoint is None and not spec.packages and not policy.opens and not spec.egress.may_change:
            return None, {}
        directory = run_dir / "egress"
        directory.mkdir(mode=0o755, exist_ok=True)
        told = Told(self._audit, spec, run_dir.name, keyed=endpoint is not None and bool(endpoint.api_key))
        index = self._index.room(spec.packages, self._counted(spec), told.index, guard)
        model = (
            self._model_proxy(spec, endpoint, told, holdings.life or run_dir.name, run_dir.name) if endpoint else None
        )
        server = EmbeddedServer(_Doors(model, index), directory / SOCKET, mode=0o666, parser="h11")
        await server.start()
        self._servers[run_dir] = server
        environment = package_environment(spec.packages)
        if endpoint is not None:
            environment |= model_environment(spec.environment, self._model)
        # The door is opened with the room, whether or not rules open anything yet.
        way = self._way(spec, run_dir, policy) if policy.opens else _Way()
        if policy.opens or spec.egress.transparent:
            await self._open(spec, run_dir, policy, way)
        if policy.opens:
            environment |= proxy_environment()
            if way.authority is not None:
                environment |= authority_environment()
        return directory, environment

    async def _guarded(self, spec: FunctionSpec, run_dir: Path, holdings: Holdings) -> Guard:
        """What keeps the room's labels from now on. Raises InvalidArgument, or RoostError when they can't be kept."""
        if not spec.egress.taint.on:
            return UNGUARDED
        policy = taint_policy(spec.egress.taint)
        told = Told(self._audit, spec, run_dir.name)

        def grown(labels: Labels, why: str) -> None:
            told.labelled(labels, why)
            if (proxy := self._proxies.get(run_dir)) is not None:
                proxy.labels_grew()

        room = self._labelled[run_dir] = await self._labels.enter(holdings, grown)
        guard = self._guards[run_dir] = Guard(
            policy,
            labels=lambda: room.labels,
            add=partial(self._labels.grow, room),
            on_refused=told.tainted,
        )
        return guard

    def labels_of(self, holders: Collection[Holder]) -> Labels:
        """What is known of data that these keep."""
        return self._labels.of(holders)

    async def forget_labels(self, name: str) -> None:
        """What had this name is gone, with all that lay within it."""
        self._budgets.pop(name, None)
        try:
            await self._labels.clear(name)
        except RoostError as error:
            log.warning("labels of what is gone are still stored: %s: %s", name, error.message)

    async def furnish(self, spec: FunctionSpec, run_dir: Path, room: Room) -> None:
        """Open the room's transparent way out, if it is to have one; after `attach`. Raises Unavailable."""
        proxy = self._proxies.get(run_dir)
        if not spec.egress.transparent or proxy is None:
            return
        told = Told(self._audit, spec, run_dir.name)
        way = Transparent(await self._open_door(room), proxy, on_refused=lambda name: told.world(name, False))
        if self._proxies.get(run_dir) is not proxy:  # the room went meanwhile
            await way.close()
            return
        self._transparent[run_dir] = way
        await way.start()

    def _model_proxy(
        self, spec: FunctionSpec, endpoint: ModelEndpoint, told: Told, life: str, instance: str
    ) -> ModelProxy:
        own = endpoint.base_url != self._model.base_url  # the operator's may be anywhere
        admit = partial(self._outbound, spec.account) if own and self._outbound is not None else None
        return ModelProxy(
            endpoint,
            self._client,
            told.model,
            vault=partial(self._vault, spec.account),
            admit=admit,
            on_call=partial(self._on_model_call, spec.account),
            on_bytes=self._counted(spec),
            budget=self._budget(life, spec.limits.model_calls),
            said=lambda: {HOPS: str(self._chains.of(instance))},
        )

    def _budget(self, life: str, most: int) -> Budget:
        """That of a sandbox, a session, an instance: its next room goes on with it, under the limit of now."""
        budget = self._budgets.setdefault(life, Budget(time.monotonic))
        budget.most = most
        self._budgets.move_to_end(life)
        if len(self._budgets) > _BUDGETS:
            self._budgets.popitem(last=False)
        return budget

    async def change(self, spec: FunctionSpec, run_dir: Path) -> bool:
        """What a room may reach is another from now on, unless there is none, or it was made with no way out (False).
        Raises InvalidArgument."""
        if run_dir not in self._servers:
            return False
        policy = policy_of(spec.egress, self._usual)
        way = self._way(spec, run_dir, policy)
        if (proxy := self._proxies.get(run_dir)) is not None:
            proxy.change(policy, way.injector, way.authority)
        elif policy.opens:
            await self._open(spec, run_dir, policy, way)
        return True

    def _way(self, spec: FunctionSpec, run_dir: Path, policy: Policy) -> _Way:
        """Raises InvalidArgument, Unavailable."""
        injection = injection_of(spec.egress.added, spec.environment.values())
        if not injection and not policy.has_requests:
            return _Way()
        told = Told(self._audit, spec, run_dir.name)
        try:
            authority = Authority.open(run_dir, run_dir / "egress")
        except OSError as error:
            raise Unavailable(f"The room's authority can't be kept: {error.strerror}.") from error
        return _Way(injector=Injector(injection, partial(self._vault, spec.account), told.secret), authority=authority)

    async def _open(self, spec: FunctionSpec, run_dir: Path, policy: Policy, way: _Way) -> None:
        told = Told(self._audit, spec, run_dir.name)

        def dialled(source: tuple[str, int], open: bool) -> None:
            if open:
                self._chains.dialled(source, run_dir.name)
            else:
                self._chains.hung_up(source)

        proxy = RoomProxy(
            run_dir / "egress" / PROXY_SOCKET,
            policy,
            self._reach,
            self._resolver.resolve,
            on_bytes=self._counted(spec),
            on_request=told.world,
            on_dialled=dialled,
            injector=way.injector,
            authority=way.authority,
            guard=self._guards.get(run_dir, UNGUARDED),
            trust=self._trust,
        )
        self._proxies[run_dir] = proxy  # before anything is awaited: two changes at once make one
        await proxy.start()
        if self._proxies.get(run_dir) is not proxy:  # the room went meanwhile
            await proxy.close()

    def _counted(self, spec: FunctionSpec) -> Callable[[int], None]:
        account, name = spec.account, spec.name
        return lambda count: self._on_bytes(account, name, count)

    def detach(self, run_dir: Path) -> None:
        """The room is gone."""
        self._end(run_dir)
        self._guards.pop(run_dir, None)
        if (room := self._labelled.pop(run_dir, None)) is not None:
            self._labels.leave(room)
            for holder in room.holdings.holders:
                if not holder.lasting:
                    self._later(self.forget_labels(holder.name))

    def _end(self, run_dir: Path) -> None:
        for part in (table.pop(run_dir, None) for table in (self._transparent, self._servers, self._proxies)):
            if part is not None:
                self._later(part.close())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all connections. What rooms are left are the next server's."""
        for run_dir in list(self._servers):
            self._end(run_dir)
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._index.close()
        if "_client" in self.__dict__:  # it was made
            await self._client.aclose()
