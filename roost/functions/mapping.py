"""A function's definition to the FunctionSpec that instances are made from. Pure; the one place where it happens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

from roost.functions.affinity import session_policy
from roost.functions.definition import FunctionConfig, LifecycleHook
from roost.functions.rules import CONTAINER_RUNTIME, check_config, isolation_mode, runtime_of
from roost.functions.volumes import volume_mounts
from roost.model.errors import InvalidArgument
from roost.model.function import (
    NAMESPACES,
    PROXY,
    Affinity,
    EgressRules,
    FunctionSpec,
    Hook,
    Idle,
    IsolationMode,
    Limits,
    Runtime,
    Scaling,
    SessionPolicy,
)
from roost.model.taint import TaintRules, parse_taint

DEFAULT_TIMEOUT_S = 3
DEFAULT_PORT = 9000
#: With session affinity an instance of a custom runtime takes this many requests, shared by its sessions; so does one
#: of an MCP server, whose event streams stay open beside its other requests.
AFFINITY_CONCURRENCY = 200
_MCP = frozenset({Affinity.MCP_SSE, Affinity.MCP_STREAMABLE_HTTP})

#: What the host decides by, and can change under a running instance.
_NOT_IN_REVISION = ("revision", "scaling", "idle", "sessions")


def to_spec(
    *, account: str, name: str, version: str, config: FunctionConfig, code: str, layers: str, scaling: Scaling
) -> FunctionSpec:
    """The spec of one version. `code`, `layers`: digests of unpacked packages, "" for none.

    Raises InvalidArgument naming the field that can't be.
    """
    check_config(config)
    runtime = runtime_of(config.runtime)
    timeout = config.timeout or DEFAULT_TIMEOUT_S
    policy = session_policy(config.session_affinity, config.session_affinity_config, timeout_s=timeout)
    mode = isolation_mode(config)
    concurrency = _concurrency(config, runtime, policy, mode)
    extension = config.roost
    hooks = config.instance_lifecycle_config
    command, port = _command(config)
    spec = FunctionSpec(
        account=account,
        name=name,
        version=version,
        revision="",
        runtime=runtime,
        handler=config.handler,
        code=code,
        layers=layers,
        environment=dict(config.environment_variables or {}),
        limits=_limits(config),
        timeout_s=float(timeout),
        concurrency=concurrency,
        initializer=_hook(hooks.initializer if hooks else None),
        pre_stop=_hook(hooks.pre_stop if hooks else None),
        command=command,
        port=port,
        template=_template(config),
        isolation=(extension and extension.isolation) or NAMESPACES,
        live=bool(extension and extension.live),
        isolation_mode=mode,
        sessions=_sessions(policy, mode, concurrency),
        mounts=volume_mounts(
            config.nas_config, config.oss_mount_config, extension.volume_quota_mb if extension else None, mode=mode
        ),
        packages=tuple(sorted(set((extension and extension.packages) or ()))),
        egress=EgressRules(
            allow=tuple((extension and extension.allow_out) or ()),
            deny=tuple((extension and extension.deny_out) or ()),
            way=(extension and extension.egress) or PROXY,
            megabytes=(extension and extension.egress_mb) or 0,
            connections=(extension and extension.egress_connections) or 0,
            taint=parse_taint(extension.taint.model_dump()) if extension and extension.taint else TaintRules(),
        ),
        idle=_idle(config),
        scaling=scaling,
    )
    return replace(spec, revision=revision(spec))


def revision(spec: FunctionSpec) -> str:
    """A digest over all that affects a running instance."""
    values = asdict(spec)
    for name in _NOT_IN_REVISION:
        del values[name]
    if not spec.live:
        del values["live"]  # as it was before there was such a thing
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _concurrency(config: FunctionConfig, runtime: Runtime, policy: SessionPolicy, mode: IsolationMode) -> int:
    if mode is IsolationMode.REQUEST_EXCLUSIVE:
        return 1
    if config.instance_concurrency is not None:
        if config.instance_concurrency == 1 and runtime is Runtime.PYTHON and policy.affinity in _MCP:
            raise InvalidArgument(
                "instanceConcurrency: at least 2 with an MCP session affinity; the event stream takes one for itself."
            )
        return config.instance_concurrency
    if policy.affinity in _MCP or (policy.affinity is not Affinity.NONE and runtime is Runtime.CUSTOM):
        return AFFINITY_CONCURRENCY
    return 1


def _sessions(policy: SessionPolicy, mode: IsolationMode, concurrency: int) -> SessionPolicy:
    most = 1 if mode is IsolationMode.SESSION_EXCLUSIVE else min(policy.sessions_per_instance, concurrency)
    return replace(policy, sessions_per_instance=most)


def _limits(config: FunctionConfig) -> Limits:
    base = Limits()
    extension = config.roost
    return Limits(
        memory_mb=config.memory_size or base.memory_mb,
        cpu=config.cpu or base.cpu,
        disk_mb=config.disk_size or base.disk_mb,
        pids=(extension and extension.pids) or base.pids,
        open_files=(extension and extension.open_files) or base.open_files,
        model_calls=(extension and extension.model_calls) or base.model_calls,
    )


def _idle(config: FunctionConfig) -> Idle:
    base = Idle()
    extension = config.roost
    stop = base.stop_after_s if config.idle_timeout is None else float(config.idle_timeout)
    freeze = base.freeze_after_s
    if extension is not None:
        stop = stop if extension.idle_timeout is None else extension.idle_timeout
        freeze = freeze if extension.freeze_after is None else extension.freeze_after
    return Idle(freeze_after_s=freeze, stop_after_s=stop)


def _template(config: FunctionConfig) -> str:
    if config.runtime == CONTAINER_RUNTIME and config.custom_container_config is not None:
        return config.custom_container_config.image or ""
    return (config.roost and config.roost.template) or "host"


def _command(config: FunctionConfig) -> tuple[tuple[str, ...], int]:
    if runtime_of(config.runtime) is Runtime.PYTHON:
        return (), DEFAULT_PORT
    if config.runtime == CONTAINER_RUNTIME and config.custom_container_config is not None:
        container = config.custom_container_config
        command = (*(container.entrypoint or ()), *(container.command or ()))
        return command, container.port or DEFAULT_PORT  # none: what the image starts
    custom = config.custom_runtime_config
    if custom is None:
        return ("/code/bootstrap",), DEFAULT_PORT
    command = tuple(custom.command or ("/code/bootstrap",))
    return (*command, *(custom.args or ())), custom.port or DEFAULT_PORT


def _hook(hook: LifecycleHook | None) -> Hook | None:
    if hook is None:
        return None
    return Hook(handler=hook.handler or "", command=tuple(hook.command or ()), timeout_s=float(hook.timeout or 3))
