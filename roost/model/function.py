"""A function as an instance needs it: an immutable snapshot of one version's code and configuration.

Function Compute's JSON shapes live in `functions.definition`; here is the meaning. Sizes carry their unit in the name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from roost.model.taint import TaintRules

LATEST = "LATEST"

#: Where a room has the files of its session (an instance of its own), or of all sessions that share it.
SESSION_TARGET = "/mnt/session"
SHARED_SESSIONS_TARGET = "/mnt/sessions"
#: The end of a volume's path that has a folder for each task.
TASK_STEP = "/{task}"


#: How a room is kept apart: by namespaces, as a fork of its template's process or, strict, as a process of its own; or
#: on a kernel of its own, gVisor's.
NAMESPACES, STRICT, GVISOR = "namespaces", "strict", "gvisor"
ISOLATIONS = (NAMESPACES, STRICT, GVISOR)
#: How what a room may reach is reached: through a proxy that programs have to know, or by connecting to it as well.
PROXY, TRANSPARENT = "proxy", "transparent"
WAYS_OUT = (PROXY, TRANSPARENT)


class Runtime(StrEnum):
    """Who runs the user's code in the room."""

    PYTHON = "python"  # the guest's interpreter: event handler, generator, WSGI or ASGI object
    CUSTOM = "custom"  # the user's own web server on `port`
    SANDBOX = "sandbox"  # the guest's daemon of a sandbox: processes, files, code


class Affinity(StrEnum):
    """How a request names its session (Function Compute `sessionAffinity`)."""

    NONE = "NONE"
    HEADER_FIELD = "HEADER_FIELD"
    GENERATED_COOKIE = "GENERATED_COOKIE"
    MCP_SSE = "MCP_SSE"
    MCP_STREAMABLE_HTTP = "MCP_STREAMABLE_HTTP"


class IsolationMode(StrEnum):
    """Who shares an instance (Function Compute `instanceIsolationMode`)."""

    SHARE = "SHARE"
    SESSION_EXCLUSIVE = "SESSION_EXCLUSIVE"
    REQUEST_EXCLUSIVE = "REQUEST_EXCLUSIVE"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one instance may use. Each limit is enforced, and named as the reason when it is hit."""

    memory_mb: int = 512
    cpu: float = 1.0
    disk_mb: int = 512
    pids: int = 256
    open_files: int = 1024
    model_calls: int = 0  # requests to its model, in the life of its session, sandbox or instance; 0 is no limit
    output_bytes_per_s: int = 1 << 20  # of log output; what is over is dropped and counted in a marker line


@dataclass(frozen=True, kw_only=True)
class Hook:
    """`initializer` or `preStop`: a handler in the code, or a command in the room."""

    handler: str = ""
    command: tuple[str, ...] = ()
    timeout_s: float = 3.0


@dataclass(frozen=True, kw_only=True)
class SessionPolicy:
    """How sessions are recognised, how many share an instance, and how long they last."""

    affinity: Affinity = Affinity.NONE
    header: str = ""  # HEADER_FIELD: the header that carries the id, lower case
    sse_path: str = "/sse"
    sessions_per_instance: int = 20
    ttl_s: int = 21600
    idle_timeout_s: int = 1800
    disable_id_reuse: bool = False


@dataclass(frozen=True, kw_only=True)
class VolumeMount:
    """A named volume (or a folder in it) in the room."""

    volume: str
    path: str  # inside the volume, "/" for all of it
    target: str  # absolute, inside the room
    read_only: bool = False
    quota_mb: int | None = None

    @property
    def per_task(self) -> bool:
        """Whether each task has a folder of its own there, below the one that `base` names."""
        return self.path.endswith(TASK_STEP)

    @property
    def base(self) -> str:
        """`path` without the step that stands for the task."""
        return self.path.removesuffix(TASK_STEP) or "/"


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How many instances. Changing it restarts none."""

    min_instances: int = 0
    max_instances: int = 100
    on_demand: bool = True  # False: only the provisioned (`min_instances`) ones serve


@dataclass(frozen=True, kw_only=True)
class Idle:
    """When an instance without leases is frozen, and when it is stopped."""

    freeze_after_s: float = 1.0
    stop_after_s: float = 300.0


@dataclass(frozen=True, kw_only=True)
class EgressRules:
    """What a room may reach of the world, in rules (see `isolation.egress.rules`). `allow` wins over `deny`; `usual`:
    what the server allows to every such room is allowed too, unless it is denied. `added`: what requests to a host are
    given on their way, as E2B's `network.rules` say it. `may_change`: while the room runs. `way`: of WAYS_OUT.
    `taint`: what is asked of a room by what it has read. `megabytes` go either way in a room's life, over so many
    `connections` at once; 0 is what every room may."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    usual: bool = False
    added: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    may_change: bool = False
    way: str = PROXY
    taint: TaintRules = field(default_factory=TaintRules)
    megabytes: int = 0
    connections: int = 0

    @property
    def transparent(self) -> bool:
        return self.way == TRANSPARENT


@dataclass(frozen=True, kw_only=True)
class FunctionSpec:
    """Everything an instance is made from. Equal `revision` means interchangeable instances."""

    account: str
    name: str
    version: str  # LATEST or a number
    revision: str  # digest over all that affects a running instance
    runtime: Runtime
    handler: str = ""
    code: str = ""  # digest of the unpacked package under <data>/code
    layers: str = ""  # digest of the merged layers under <data>/code, mounted at /opt
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    timeout_s: float = 3.0
    concurrency: int = 1
    initializer: Hook | None = None
    pre_stop: Hook | None = None
    command: tuple[str, ...] = ()
    port: int = 9000
    template: str = "host"
    isolation: str = NAMESPACES  # one of ISOLATIONS
    live: bool = False  # its instances can be copied while they run
    isolation_mode: IsolationMode = IsolationMode.SHARE
    sessions: SessionPolicy = field(default_factory=SessionPolicy)
    mounts: tuple[VolumeMount, ...] = ()
    packages: tuple[str, ...] = ()  # package indexes the room may reach: "pypi", "npm"
    egress: EgressRules = field(default_factory=EgressRules)
    idle: Idle = field(default_factory=Idle)
    scaling: Scaling = field(default_factory=Scaling)

    # Asked for by every request, and computed once.

    @cached_property
    def key(self) -> tuple[str, str, str]:
        """Names the pool this spec's instances belong to."""
        return (self.account, self.name, self.version)

    @cached_property
    def task_folders(self) -> bool:
        """Whether a request has to be preceded by making a folder for it."""
        return any(mount.per_task for mount in self.mounts)

    @cached_property
    def exclusive(self) -> bool:
        """Whether sessions (or requests) have an instance for themselves."""
        return self.isolation_mode is not IsolationMode.SHARE

    @cached_property
    def ends_with_request(self) -> bool:
        """Whether an instance serves one request only."""
        return self.isolation_mode is IsolationMode.REQUEST_EXCLUSIVE
