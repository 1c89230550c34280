"""roost.toml: its keys (docs/reference/roost-toml.md), how it is checked, and the API request it stands for."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roost.sdk.errors import UsageError

FILE = "roost.toml"
#: What an agent's session is named by when roost.toml says `affinity = "header"` and no more.
SESSION_HEADER = "x-roost-session"

Kind = type | tuple[type, ...]
STRINGS = list
NUMBER = (int, float)

DEFAULT_HANDLER = "index.handler"

#: Every key there is: table -> key -> type. "" is the top level.
KEYS: dict[str, dict[str, Kind]] = {
    "": {
        "name": str,
        "description": str,
        "runtime": str,
        "handler": str,
        "command": STRINGS,
        "port": int,
        "memory": int,
        "cpu": NUMBER,
        "disk": int,
        "timeout": int,
        "concurrency": int,
        "template": str,
        "packages": STRINGS,
        "egress": str,
        "egress_mb": int,
        "egress_connections": int,
        "isolation": str,
        "live": bool,
        "allow_out": STRINGS,
        "deny_out": STRINGS,
        "layers": STRINGS,
        "pids": int,
        "open_files": int,
        "model_calls": int,
        "volume_quota": int,
    },
    "env": {},
    "secrets": {},
    "taint": {"mode": str, "trusted": STRINGS, "private": STRINGS, "volumes": STRINGS, "start": STRINGS},
    "session": {
        "affinity": str,
        "header": str,
        "exclusive": bool,
        "per_instance": int,
        "ttl": int,
        "idle_timeout": int,
        "sse_path": str,
        "reuse_id": bool,
    },
    "initializer": {"handler": str, "command": STRINGS, "timeout": int},
    "pre_stop": {"handler": str, "command": STRINGS, "timeout": int},
    "scaling": {"min": int, "max": int},
    "idle": {"freeze_after": NUMBER, "stop_after": NUMBER},
    "async": {"retries": int, "max_age": int, "delivery": str, "busy": str, "on_success": str, "on_failure": str},
    "volumes": {"name": str, "path": str, "target": str, "read_only": bool},
    "triggers": {
        "name": str,
        "type": str,
        "qualifier": str,
        "description": str,
        "enable": bool,
        "config": dict,
    },
}
#: Tables that come as often as one likes.
LISTS = ("volumes", "triggers")

RUNTIMES = {"python": "python3.12", "custom": "custom.debian12"}
AFFINITIES = {
    "none": "NONE",
    "header": "HEADER_FIELD",
    "cookie": "GENERATED_COOKIE",
    "mcp-sse": "MCP_SSE",
    "mcp-http": "MCP_STREAMABLE_HTTP",
}
BUSY = ("reject", "enqueue", "interrupt")
DELIVERIES = {"at-least-once": "atLeastOnce", "at-most-once": "atMostOnce"}
#: Fields of a function that roost.toml is the truth of: what it does not say goes back to the server's default.
MANAGED = (
    "description",
    "memorySize",
    "cpu",
    "diskSize",
    "timeout",
    "instanceConcurrency",
    "layers",
    "customRuntimeConfig",
    "instanceLifecycleConfig",
    "sessionAffinity",
    "sessionAffinityConfig",
    "instanceIsolationMode",
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_SECRET = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})")
_KIND_NAMES = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    list: "a list of strings",
    NUMBER: "a number",
    dict: "a table",
}


def load(directory: Path) -> dict[str, Any]:
    """The checked contents of `directory`/roost.toml. Raises UsageError with the file and the key that is wrong."""
    path = directory / FILE
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError as error:
        raise UsageError(f"There is no {FILE} in {directory}; see docs/reference/roost-toml.md.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}.") from error
    try:
        parsed = tomllib.loads(text)
        validate(parsed)
    except (tomllib.TOMLDecodeError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from error
    return parsed


def validate(parsed: Mapping[str, Any]) -> None:
    """Raise UsageError for the first unknown key, wrong type or contradiction."""
    top = {key: value for key, value in parsed.items() if key not in KEYS}
    _check_table("", top)
    for table, kinds in KEYS.items():
        if not table or table not in parsed:
            continue
        value = parsed[table]
        if table in LISTS:
            if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
                raise UsageError(f"`{table}` is a list of tables: write [[{table}]].")
            for one in value:
                _check_table(table, one)
        elif not isinstance(value, dict):
            raise UsageError(f"`{table}` is a table: write [{table}].")
        elif kinds:
            _check_table(table, value)
    _check_meaning(parsed)
    words = parsed.get("async") or {}
    for key, known in (("delivery", tuple(DELIVERIES)), ("busy", BUSY)):
        if key in words and words[key] not in known:
            raise UsageError(f"`async.{key}` is {words[key]!r}; it can be {', '.join(map(repr, known))}.")


def _check_table(table: str, values: Mapping[str, Any]) -> None:
    kinds = KEYS[table]
    for key, value in values.items():
        shown = f"{table}.{key}" if table else key
        if key not in kinds:
            raise UsageError(f"unknown key `{shown}`; there are: {', '.join(sorted(kinds))}.")
        kind = kinds[key]
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if kind is list:
            right = right and all(isinstance(item, str) for item in value)
        if not right:
            raise UsageError(f"`{shown}` has to be {_KIND_NAMES[kind]}.")


def _check_meaning(parsed: Mapping[str, Any]) -> None:
    name = parsed.get("name")
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(f"`name` is {name!r}; it takes a letter or _ first, then letters, digits, - and _.")
    _check_variables(parsed.get("env") or {}, parsed.get("secrets") or {})
    session = parsed.get("session") or {}
    affinity = session.get("affinity", "none")
    if affinity not in AFFINITIES:
        raise UsageError(f"`session.affinity` is {affinity!r}; there are: {', '.join(AFFINITIES)}.")
    for key, needed in (("header", "header"), ("sse_path", "mcp-sse")):
        if key in session and affinity != needed:
            raise UsageError(f'`session.{key}` goes with affinity = "{needed}" only.')
    if session.get("exclusive") and affinity == "none":
        raise UsageError("`session.exclusive` needs `session.affinity`: without it there are no sessions.")
    for table in ("initializer", "pre_stop"):
        hook = parsed.get(table)
        if hook is not None and ("handler" in hook) == ("command" in hook):
            raise UsageError(f"`{table}` needs one of `handler` and `command`.")
    scaling = parsed.get("scaling") or {}
    if "max" in scaling and scaling.get("min", 0) > scaling["max"]:
        raise UsageError(f"`scaling.min` is {scaling['min']}, more than `scaling.max`, {scaling['max']}.")
    for volume in parsed.get("volumes") or ():
        if "name" not in volume or not volume.get("target", "").startswith("/"):
            raise UsageError("each of `volumes` needs a `name` and an absolute `target`.")
    _check_triggers(parsed.get("triggers") or ())


def _check_variables(plain: Mapping[str, Any], secrets: Mapping[str, Any]) -> None:
    for key, value in plain.items():
        if not isinstance(value, str):
            raise UsageError(f"`env.{key}` has to be a string.")
    for key, value in secrets.items():
        if not isinstance(value, str) or not _SECRET.fullmatch(value):
            raise UsageError(f"`secrets.{key}` has to be the name of a secret, as `roost secrets ls` shows it.")
        if key in plain:
            raise UsageError(f"`{key}` is in both `env` and `secrets`.")


def _check_triggers(triggers: Sequence[Mapping[str, Any]]) -> None:
    if not all("name" in one and "type" in one for one in triggers):
        raise UsageError("each of `triggers` needs a `name` and a `type`.")
    if len({one["name"] for one in triggers}) < len(triggers):
        raise UsageError("`triggers` has two of the same `name`.")


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace `${NAME}`, `${NAME:-default}` and `$$`. Raises UsageError for a name that is not set."""

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name is None:
            return "$"
        value = environment.get(name) or default
        if value is None:
            raise UsageError(f"the environment variable {name} is not set; write ${{{name}:-}} if it may be empty.")
        return value

    return _VARIABLE.sub(replace, text)


def _variables(parsed: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """What the function finds in its environment; in a secret's place what stands for it."""
    plain = {key: expand(value, environment) for key, value in (parsed.get("env") or {}).items()}
    return plain | {key: f"${{e2b.secrets.{name}}}" for key, name in (parsed.get("secrets") or {}).items()}


def to_function(parsed: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The body of CreateFunction and UpdateFunction, without the code. Keys that were left out stay out."""
    runtime = parsed.get("runtime", "python")
    function: dict[str, Any] = {
        "runtime": RUNTIMES.get(runtime, runtime),
        "handler": parsed.get("handler", DEFAULT_HANDLER),
        "environmentVariables": _variables(parsed, environment),
    }
    renamed = {
        "description": "description",
        "memory": "memorySize",
        "cpu": "cpu",
        "disk": "diskSize",
        "timeout": "timeout",
        "concurrency": "instanceConcurrency",
        "layers": "layers",
    }
    function |= {there: parsed[here] for here, there in renamed.items() if here in parsed}
    if "cpu" in function:
        function["cpu"] = float(function["cpu"])
    if "command" in parsed or "port" in parsed:
        function["customRuntimeConfig"] = {key: parsed[key] for key in ("command", "port") if key in parsed}
    hooks = {"initializer": "initializer", "pre_stop": "preStop"}
    lifecycle = {there: parsed[here] for here, there in hooks.items() if here in parsed}
    if lifecycle:
        function["instanceLifecycleConfig"] = lifecycle
    function |= _session(parsed.get("session") or {})
    function["ossMountConfig"] = {"mountPoints": [_mount(one) for one in parsed.get("volumes") or ()]}
    function["roost"] = _extension(parsed)
    return function


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    affinity = session.get("affinity", "none")
    if affinity == "none":
        return {"sessionAffinity": "NONE"}
    renamed: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "header": ("affinityHeaderFieldName", str),
        "per_instance": ("sessionConcurrencyPerInstance", int),
        "ttl": ("sessionTTLInSeconds", int),
        "idle_timeout": ("sessionIdleTimeoutInSeconds", int),
        "sse_path": ("sseEndpointPath", str),
        "reuse_id": ("disableSessionIdReuse", lambda reuse: not reuse),
    }
    given = dict(session)
    if affinity == "header":
        given.setdefault("header", SESSION_HEADER)
    config = {there: convert(given[here]) for here, (there, convert) in renamed.items() if here in given}
    return {
        "sessionAffinity": AFFINITIES[affinity],
        "sessionAffinityConfig": json.dumps(config),
        "instanceIsolationMode": "SESSION_EXCLUSIVE" if session.get("exclusive") else "SHARE",
    }


def _extension(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Roost's own settings, which Function Compute has no fields for."""
    idle, scaling = parsed.get("idle") or {}, parsed.get("scaling") or {}
    given = {
        "template": parsed.get("template"),
        "packages": parsed.get("packages"),
        "egress": parsed.get("egress"),
        "egressMB": parsed.get("egress_mb"),
        "egressConnections": parsed.get("egress_connections"),
        "isolation": parsed.get("isolation"),
        "live": parsed.get("live"),
        "taint": parsed.get("taint"),
        "allowOut": parsed.get("allow_out"),
        "denyOut": parsed.get("deny_out"),
        "pids": parsed.get("pids"),
        "openFiles": parsed.get("open_files"),
        "modelCalls": parsed.get("model_calls"),
        "volumeQuotaMB": parsed.get("volume_quota"),
        "freezeAfter": _seconds(idle.get("freeze_after")),
        "idleTimeout": _seconds(idle.get("stop_after")),
        "maxInstances": scaling.get("max"),
    }
    return {key: value for key, value in given.items() if value is not None}


def _seconds(value: float | None) -> float | None:
    return None if value is None else float(value)


def _mount(volume: Mapping[str, Any]) -> dict[str, Any]:
    """A volume as the API has it: what the cloud calls a bucket is a volume's name here."""
    return {
        "bucketName": volume["name"],
        "bucketPath": volume.get("path", "/"),
        "mountDir": volume["target"],
        "readOnly": volume.get("read_only", False),
    }


def to_async_config(parsed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The async invoke config that `[async]` stands for, None without that table. `parsed` has been validated."""
    table = parsed.get("async")
    if table is None:
        return None
    config: dict[str, Any] = {}
    for key, field in (("retries", "maxAsyncRetryAttempts"), ("max_age", "maxAsyncEventAgeInSeconds")):
        if key in table:
            config[field] = table[key]
    ours = {"delivery": DELIVERIES[table["delivery"]]} if "delivery" in table else {}
    ours |= {"busy": table["busy"]} if "busy" in table else {}
    if ours:
        config["roost"] = ours
    destinations = {
        field: {"destination": table[key]}
        for key, field in (("on_success", "onSuccess"), ("on_failure", "onFailure"))
        if key in table
    }
    return config | ({"destinationConfig": destinations} if destinations else {})


def to_triggers(parsed: Mapping[str, Any], environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """The bodies of CreateTrigger that `[[triggers]]` stand for, with their settings as an object; in the strings of
    those the environment is put in. `parsed` has been validated. Raises UsageError."""
    renamed = {"name": "triggerName", "type": "triggerType", "qualifier": "qualifier", "description": "description"}
    found = []
    for table in parsed.get("triggers") or ():
        config = _expanded(table.get("config", {}), environment)
        if "enable" in table:
            config["enable"] = table["enable"]
        trigger = {there: table[here] for here, there in renamed.items() if here in table}
        found.append({**trigger, "triggerConfig": config})
    return found


def _expanded(value: Any, environment: Mapping[str, str]) -> Any:
    """With every string in it expanded."""
    if isinstance(value, dict):
        return {key: _expanded(one, environment) for key, one in value.items()}
    if isinstance(value, list):
        return [_expanded(one, environment) for one in value]
    if not isinstance(value, str | int | float):
        raise UsageError(f"`triggers.config` has {value}, which JSON has no type for; write it as a string.")
    return expand(value, environment) if isinstance(value, str) else value
