"""The `start` message as a checked record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class BadStart(ValueError):
    """The `start` message does not say what it must; the text names the field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hook:
    """`initializer` or `pre_stop`: a handler in the code, or a command. `timeout` in seconds."""

    handler: str = ""
    command: tuple[str, ...] = ()
    timeout: float = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionInfo:
    """What the user's code is told about its function. `memory` in MB."""

    name: str = ""
    version: str = ""
    qualifier: str = ""
    memory: int = 0
    handler: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxConfig:
    """What the daemon of a sandbox is told. `user` is who commands and files belong to when nobody is named;
    `version` is the envd version that the clients were told."""

    user: str = "user"
    workdir: str = ""
    interpreter: bool = False
    version: str = ""
    start_command: str = ""
    ready_command: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig:
    """What one instance is told to run."""

    instance: str = ""
    runtime: str = "python"
    handler: str = ""
    code: str = "/code"
    concurrency: int = 1
    timeout: float = 3.0
    env: Mapping[str, str] = field(default_factory=dict)
    initializer: Hook | None = None
    pre_stop: Hook | None = None
    command: tuple[str, ...] = ()
    port: int = 9000
    function: FunctionInfo = field(default_factory=FunctionInfo)
    region: str = ""
    account: str = ""
    output_bytes_per_s: int = 1 << 20
    entropy: bytes = b""
    time_zone: str = ""
    egress: bool = False
    live: bool = False  # its process can be copied while it runs
    resolver: str = ""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)


def parse_start(message: Mapping[str, Any]) -> StartConfig:
    """Raise BadStart, naming the field, when the message has a wrong type or value in it."""
    runtime = _text(message, "runtime", "python")
    if runtime not in ("python", "custom", "sandbox"):
        raise BadStart(f"runtime: unknown {runtime!r}")
    handler = _text(message, "handler")
    if runtime == "python" and not handler:
        raise BadStart("handler: missing")
    return StartConfig(
        instance=_text(message, "instance"),
        runtime=runtime,
        handler=handler,
        code=_text(message, "code", "/code"),
        concurrency=int(_number(message, "concurrency", 1, low=1, high=1000)),
        timeout=_number(message, "timeout", 3.0, low=0, high=1e9),
        env=_env(message),
        initializer=_hook(message, "initializer"),
        pre_stop=_hook(message, "pre_stop"),
        command=_texts(message, "command"),
        port=int(_number(message, "port", 9000, low=1, high=65535)),
        function=_function(message),
        region=_text(message, "region"),
        account=_text(message, "account"),
        output_bytes_per_s=int(_number(message, "output_bytes_per_s", 1 << 20, low=1, high=1 << 40)),
        entropy=_entropy(message),
        time_zone=_text(message, "time_zone"),
        egress=bool(message.get("egress", False)),
        live=bool(message.get("live", False)),
        resolver=_text(message, "resolver"),
        sandbox=_sandbox(message),
    )


def _text(message: Mapping[str, Any], key: str, default: str = "") -> str:
    value = message.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or "\0" in value:
        raise BadStart(f"{key}: not a string")
    return value


def _texts(message: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = message.get(key)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadStart(f"{key}: not a list of strings")
    return tuple(value)


def _number(message: Mapping[str, Any], key: str, default: float, *, low: float, high: float) -> float:
    value = message.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadStart(f"{key}: not a number from {low:g} to {high:g}")
    return value


def _env(message: Mapping[str, Any]) -> dict[str, str]:
    env = message.get("env")
    env = {} if env is None else env
    if not isinstance(env, dict):
        raise BadStart("env: not an object")
    for name, value in env.items():
        if not name or "=" in name or not isinstance(value, str) or "\0" in name + value:
            raise BadStart(f"env: {name!r} is not a variable with a string value")
    return dict(env)


def _mapping(message: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    value = message.get(key)
    if value is None or isinstance(value, dict):
        return value
    raise BadStart(f"{key}: not an object")


def _hook(message: Mapping[str, Any], key: str) -> Hook | None:
    value = _mapping(message, key)
    if value is None:
        return None
    hook = Hook(
        handler=_text(value, "handler"),
        command=_texts(value, "command"),
        timeout=_number(value, "timeout", 3.0, low=0.001, high=86400),
    )
    return hook if hook.handler or hook.command else None


def _function(message: Mapping[str, Any]) -> FunctionInfo:
    value = _mapping(message, "function") or {}
    return FunctionInfo(
        name=_text(value, "name"),
        version=_text(value, "version"),
        qualifier=_text(value, "qualifier"),
        memory=int(_number(value, "memory", 0, low=0, high=1 << 30)),
        handler=_text(value, "handler"),
    )


def _sandbox(message: Mapping[str, Any]) -> SandboxConfig:
    value = _mapping(message, "sandbox") or {}
    return SandboxConfig(
        user=_text(value, "user", "user"),
        workdir=_text(value, "workdir"),
        interpreter=bool(value.get("interpreter", False)),
        version=_text(value, "version"),
        start_command=_text(value, "start_command"),
        ready_command=_text(value, "ready_command"),
    )


def _entropy(message: Mapping[str, Any]) -> bytes:
    try:
        return bytes.fromhex(_text(message, "entropy"))
    except ValueError:
        raise BadStart("entropy: not hexadecimal") from None
