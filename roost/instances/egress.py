"""What a room may reach of the world through the host: its package indexes, its model, and what rules open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import httpx

from roost.config import ModelConfig
from roost.isolation.egress.embedded import EmbeddedServer
from roost.isolation.egress.index_proxy import IndexLimits, IndexProxy, RoomIndex
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
from roost.isolation.egress.upstreams import Upstreams
from roost.model.audit import Audit, AuditEvent
from roost.model.function import EgressRules, FunctionSpec, Runtime

SOCKET = "index.sock"
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
    return Policy(allow=parse_rules(rules.allow), deny=parse_rules(rules.deny), otherwise=otherwise)


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


class _Told:
    """What the audit is told of one room. `keyed`: its model's endpoint is shown a key."""

    def __init__(self, audit: Audit, spec: FunctionSpec, instance: str, *, keyed: bool) -> None:
        self._audit = audit
        self._spec = spec
        self._instance = instance
        self._keyed = keyed

    def index(self, path: str, allowed: bool) -> None:
        self._tell("egress.connect", f"index{path}", allowed)

    def model(self, path: str, allowed: bool) -> None:
        self._tell("egress.connect", f"model{path}", allowed)
        if allowed and self._keyed:
            self._tell("secret.use", "OPENAI_API_KEY", allowed)

    def world(self, target: str, allowed: bool) -> None:
        self._tell("egress.connect", target, allowed)

    def _tell(self, action: str, target: str, allowed: bool) -> None:
        self._audit(
            AuditEvent(
                action=action,
                account=self._spec.account,
                actor=f"instance/{self._instance}",
                target=target,
                outcome="allowed" if allowed else "denied",
                detail={"function": self._spec.name},
            )
        )


class RoomEgress:
    """Implements `assembly.Egress`: a socket for each room that may reach something, in a folder of its own.

    `on_bytes(account, function, count)` is told what package indexes are about to send to rooms, and what goes through
    their proxies; it may raise Throttled. `audit` is told of every request that a room sends out.
    """

    def __init__(
        self,
        cache_dir: Path,
        *,
        upstreams: Upstreams,
        limits: IndexLimits,
        model: ModelConfig,
        on_bytes: Callable[[str, str, int], None],
        audit: Audit = lambda event: None,
        usual: tuple[Rule, ...] = (),
        reach: Reach | None = None,
    ) -> None:
        self._cache_dir = cache_dir
        self._upstreams = upstreams
        self._limits = limits
        self._model = model
        self._on_bytes = on_bytes
        self._audit = audit
        self._usual = usual
        self._reach = reach or Reach()
        self._servers: dict[Path, EmbeddedServer] = {}
        self._proxies: dict[Path, RoomProxy] = {}
        self._resolver = Resolver(_LOOKUPS)
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Before the first `attach`."""
        self._index = IndexProxy(self._upstreams, self._cache_dir, self._limits)

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        """For models. Made for the first room that has one, as it takes longer than most parts of a server's start."""
        return httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(600, connect=10),
            # Each room has a bound of its own; a common one would let a few rooms keep the others from their models.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )

    async def attach(self, spec: FunctionSpec, run_dir: Path) -> tuple[Path | None, Mapping[str, str]]:
        """The folder to mount at /run/roost, if the function may reach anything, and the environment that uses it."""
        endpoint = model_endpoint(spec.environment, self._model)
        policy = policy_of(spec.egress, self._usual)
        # What a sandbox may reach can change while it runs.
        if endpoint is None and not spec.packages and not policy.opens and spec.runtime is not Runtime.SANDBOX:
            return None, {}
        directory = run_dir / "egress"
        directory.mkdir(mode=0o755, exist_ok=True)
        told = _Told(self._audit, spec, run_dir.name, keyed=endpoint is not None and bool(endpoint.api_key))
        index = self._index.room(spec.packages, self._counted(spec), told.index)
        model = ModelProxy(endpoint, self._client, told.model) if endpoint else None
        server = EmbeddedServer(_Doors(model, index), directory / SOCKET, mode=0o666, parser="h11")
        await server.start()
        self._servers[run_dir] = server
        environment = package_environment(spec.packages)
        if endpoint is not None:
            environment |= model_environment(spec.environment, self._model)
        if policy.opens:
            await self._open(spec, run_dir, policy)
            environment |= proxy_environment()
        return directory, environment

    async def change(self, spec: FunctionSpec, run_dir: Path) -> None:
        """What a room may reach is another from now on. Raises InvalidArgument."""
        policy = policy_of(spec.egress, self._usual)
        if (proxy := self._proxies.get(run_dir)) is not None:
            proxy.change(policy)
        elif policy.opens and run_dir in self._servers:
            await self._open(spec, run_dir, policy)

    async def _open(self, spec: FunctionSpec, run_dir: Path, policy: Policy) -> None:
        told = _Told(self._audit, spec, run_dir.name, keyed=False)
        proxy = RoomProxy(
            run_dir / "egress" / PROXY_SOCKET,
            policy,
            self._reach,
            self._resolver.resolve,
            on_bytes=self._counted(spec),
            on_request=told.world,
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
        for part in (self._servers.pop(run_dir, None), self._proxies.pop(run_dir, None)):
            if part is not None:
                task = asyncio.create_task(part.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all connections."""
        for run_dir in list(self._servers):
            self.detach(run_dir)
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._index.close()
        if "_client" in self.__dict__:  # it was made
            await self._client.aclose()
