"""What a function's definition must fulfil beyond the types of its fields. Pure."""

from __future__ import annotations

import re

from roost.functions.definition import FunctionConfig, LifecycleHook, Taint
from roost.isolation.egress.rules import parse_rules
from roost.isolation.egress.taint import taint_policy
from roost.model.errors import InvalidArgument
from roost.model.function import NAMESPACES, Affinity, IsolationMode, Runtime
from roost.model.taint import parse_taint

#: All of these run on the guest's own Python; `runtime` is shown as it was given.
PYTHON_RUNTIMES = frozenset({"python3", *(f"python3.{minor}" for minor in range(6, 15))})
CONTAINER_RUNTIME = "custom-container"
CUSTOM_RUNTIMES = frozenset({"custom", "custom.debian10", "custom.debian11", "custom.debian12", "custom.debian13"})

_ENVIRONMENT_BYTES = 4096
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TEMPLATE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_HANDLER = re.compile(r"[^\s.][^\s]*\.[^\s.]+")
_UNSUPPORTED = {
    "gpu_config": "gpuConfig: Roost has no GPUs to give.",
    "juice_fs_config": "juiceFsConfig: Roost does not mount JuiceFS; use nasConfig with a volume.",
    "polar_fs_config": "polarFsConfig: Roost does not mount PolarFS; use nasConfig with a volume.",
    "micro_sandbox_config": "microSandboxConfig: Roost makes rooms from templates; use runtime custom-container.",
}


def check_config(config: FunctionConfig) -> None:
    """Raise InvalidArgument for the first rule that is broken, naming the field."""
    for field, reason in _UNSUPPORTED.items():
        if getattr(config, field):
            raise InvalidArgument(reason)
    runtime = runtime_of(config.runtime)
    _check_runtime(config, runtime)
    _check_resources(config)
    _check_environment(config.environment_variables or {})
    _check_isolation(config)
    _check_live(config, runtime)
    if config.roost is not None:
        _check_egress("roost.allowOut", config.roost.allow_out)
        _check_egress("roost.denyOut", config.roost.deny_out)
        _check_taint(config.roost.taint)
    if config.instance_lifecycle_config is not None:
        _check_hook("initializer", config.instance_lifecycle_config.initializer)
        _check_hook("preStop", config.instance_lifecycle_config.pre_stop)


def runtime_of(name: str) -> Runtime:
    """Who runs code of this runtime. Raises InvalidArgument naming those there are."""
    if name in PYTHON_RUNTIMES:
        return Runtime.PYTHON
    if name in CUSTOM_RUNTIMES or name == CONTAINER_RUNTIME:
        return Runtime.CUSTOM
    raise InvalidArgument(
        f"runtime: {name[:40]!r} is not supported; use python3, python3.6 to python3.14, custom, custom.debian10 to"
        " custom.debian13, or custom-container."
    )


def _check_runtime(config: FunctionConfig, runtime: Runtime) -> None:
    if runtime is Runtime.PYTHON:
        if not _HANDLER.fullmatch(config.handler):
            raise InvalidArgument("handler: 'module.function' is expected, for example 'index.handler'.")
        if config.custom_runtime_config is not None:
            raise InvalidArgument("customRuntimeConfig: only with a custom runtime.")
    container = config.custom_container_config
    if config.runtime == CONTAINER_RUNTIME:
        if container is None or not container.image:
            raise InvalidArgument("customContainerConfig.image: runtime custom-container needs a template's name.")
        check_template("customContainerConfig.image", container.image)
    elif container is not None:
        raise InvalidArgument("customContainerConfig: only with runtime custom-container.")
    if config.roost is not None and config.roost.template is not None:
        check_template("roost.template", config.roost.template)


def check_template(field: str, name: str) -> str:
    if not _TEMPLATE.fullmatch(name):
        raise InvalidArgument(
            f"{field}: {name[:80]!r} is not a template's name; `roost template build` makes one from an image."
        )
    return name


def _check_resources(config: FunctionConfig) -> None:
    memory, cpu = config.memory_size, config.cpu
    if memory is not None and memory % 64:
        raise InvalidArgument(f"memorySize: {memory} is not a multiple of 64 (MB).")
    if cpu is not None and abs(cpu * 20 - round(cpu * 20)) > 1e-6:
        raise InvalidArgument(f"cpu: {cpu} is not a multiple of 0.05.")
    if memory is not None and cpu is not None and not 0.999 <= memory / 1024 / cpu <= 4.001:
        raise InvalidArgument(
            f"cpu, memorySize: {cpu} vCPU with {memory} MB; there must be 1 to 4 GB of memory for each vCPU."
        )


def _check_environment(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        if not _ENVIRONMENT_NAME.fullmatch(name):
            raise InvalidArgument(f"environmentVariables: {name[:80]!r} is not a variable's name.")
        if "\0" in value:
            raise InvalidArgument(f"environmentVariables.{name}: has a NUL in it.")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in variables.items())
    if size > _ENVIRONMENT_BYTES:
        raise InvalidArgument(f"environmentVariables: {size} bytes; all names and values together may have 4096.")


def _check_egress(field: str, rules: list[str] | None) -> None:
    try:
        parse_rules(rules or ())
    except InvalidArgument as error:
        raise InvalidArgument(f"{field}: {error.message}") from None


def _check_taint(taint: Taint | None) -> None:
    try:
        taint_policy(parse_taint(taint.model_dump() if taint else {}))
    except InvalidArgument as error:
        raise InvalidArgument(f"roost.{error.message}") from None


def _check_isolation(config: FunctionConfig) -> None:
    mode = isolation_mode(config)
    affinity = config.session_affinity or Affinity.NONE.value
    if mode is IsolationMode.SESSION_EXCLUSIVE and affinity == Affinity.NONE.value:
        raise InvalidArgument("instanceIsolationMode: SESSION_EXCLUSIVE needs a sessionAffinity.")
    if mode is IsolationMode.REQUEST_EXCLUSIVE and (config.instance_concurrency or 1) > 1:
        raise InvalidArgument("instanceConcurrency: must be 1 with REQUEST_EXCLUSIVE.")
    if mode is IsolationMode.REQUEST_EXCLUSIVE and affinity != Affinity.NONE.value:
        raise InvalidArgument(
            "sessionAffinity: has no meaning with REQUEST_EXCLUSIVE, where no two requests share an instance."
        )


def _check_live(config: FunctionConfig, runtime: Runtime) -> None:
    if config.roost is None or not config.roost.live:
        return
    if runtime is not Runtime.PYTHON:
        raise InvalidArgument(f"roost.live: instances of runtime {config.runtime} can't be copied while they run.")
    if (config.roost.isolation or NAMESPACES) != NAMESPACES:
        raise InvalidArgument(
            f"roost.live: rooms of isolation {config.roost.isolation} can't be copied while they run; use namespaces."
        )
    if isolation_mode(config) is not IsolationMode.SESSION_EXCLUSIVE:
        raise InvalidArgument(
            "roost.live: only with instanceIsolationMode SESSION_EXCLUSIVE; what is copied is a session's own instance."
        )


def isolation_mode(config: FunctionConfig) -> IsolationMode:
    """Raises InvalidArgument for an unknown one."""
    value = config.instance_isolation_mode or IsolationMode.SHARE.value
    try:
        return IsolationMode(value)
    except ValueError:
        known = ", ".join(mode.value for mode in IsolationMode)
        raise InvalidArgument(f"instanceIsolationMode: {value[:40]!r} is not one of {known}.") from None


def _check_hook(name: str, hook: LifecycleHook | None) -> None:
    if hook is None:
        return
    if bool(hook.handler) == bool(hook.command):
        raise InvalidArgument(f"instanceLifecycleConfig.{name}: exactly one of handler and command is needed.")
