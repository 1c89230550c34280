"""All settings: their defaults, where they are read from, and what is refused. One place.

Order, later wins: defaults, the TOML file, the command line. The model's address and key also come from the
environment (`OPENAI_BASE_URL`, `OPENAI_API_KEY`, `OPENAI_MODEL`), as every OpenAI client reads them, and the trace
collector from `OTEL_EXPORTER_OTLP_ENDPOINT`; the database from `ROOST_DATABASE`, since a command line is no secret.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from roost.model.errors import RoostError
from roost.model.function import ISOLATIONS, NAMESPACES, PROXY, WAYS_OUT
from roost.model.taint import BLOCK, LABELS, OFF, TAINT_MODES
from roost.model.task import MAX_HOPS

_AT_LEAST_1 = (
    "max_instances", "max_waiting", "max_hops", "log_file_mb", "package_cache_mb", "max_sandboxes", "sandbox_timeout",
    "sandbox_max_timeout", "max_snapshots", "max_checkpoints", "build_cache_mb",
    "max_queued_tasks", "max_running_tasks", "max_running_tasks_per_function", "keep_tasks",
    "task_output_kb", "object_size_mb", "audit_mb",
)  # fmt: skip
#: Settings that are tables: from what to what.
_MAPS = {"keys": "access key IDs to secrets", "images": "images to templates"}
_LONG = 64  # of a directory's path: below it, a socket's has to fit into 107 bytes
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:[0-9]{1,5})?")


class ConfigError(RoostError):
    """A setting is wrong; the message names it."""

    code = "InvalidConfig"
    status = 400


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The OpenAI-compatible endpoint that rooms reach through the host; the key stays on the host."""

    base_url: str = ""
    api_key: str = field(default="", repr=False)
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """Files in PEM; both or neither. They are read again when they change."""

    cert: str = ""
    key: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class QuotaConfig:
    """What each account may use that has no quota of its own; 0 is no limit."""

    instances: int = 0
    memory_mb: int = 0
    sandboxes: int = 0
    queued_tasks: int = 0
    egress_mb_per_day: int = 0
    model_calls_per_day: int = 0
    requests_per_s: int = 0
    request_burst: int = 0


@dataclass(frozen=True, kw_only=True)
class TaintConfig:
    """What is asked of a room by what it has read (`model.taint.TaintRules`)."""

    mode: str = OFF
    trusted: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    start: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one server. Durations in seconds, sizes in MB."""

    host: str = "127.0.0.1"
    port: int = 8700
    data_dir: Path = Path()
    database: str = field(default="", repr=False)  # URL of a PostgreSQL database; empty: SQLite in data_dir
    region: str = "local"
    sandbox_isolation: str = NAMESPACES
    sandbox_egress: str = PROXY  # how sandboxes that don't say reach what they may
    sandbox_taint: TaintConfig = field(default_factory=TaintConfig)  # of sandboxes that say nothing of it
    runsc: Path = Path()  # gVisor's program; empty: the one that is installed
    sandbox_live: bool = True  # whether forks have what code contexts have in memory
    sandbox_allow_out: tuple[str, ...] = ()  # rules of what each sandbox may reach that does not refuse it
    egress_private: tuple[str, ...] = ()  # networks of this machine's that rules may open
    account: str = "default"  # owns everything where no keys are configured
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)  # access key id -> secret
    tls: TlsConfig = field(default_factory=TlsConfig)
    quota: QuotaConfig = field(default_factory=QuotaConfig)
    max_instances: int = 1000  # alive at once on this server
    max_waiting: int = 1000  # requests that wait for an instance, per function
    room_io_mb_per_s: int = 0  # that each room reads and writes of its disk; 0: no limit
    max_hops: int = MAX_HOPS  # invocations that may lead to another, each started by the one before
    start_timeout: float = 30.0
    stop_grace: float = 5.0
    queue_timeout: float = 60.0
    orphan_grace: float = 60.0  # that rooms of a killed server wait for the next one, before they are ended
    model: ModelConfig = field(default_factory=ModelConfig)
    otlp_endpoint: str = ""
    max_sandboxes: int = 1000  # with a room at once, paused with their memory or running
    sandbox_timeout: int = 300  # of sandboxes that are created without one
    sandbox_max_timeout: int = 30 * 24 * 3600  # longer ones are refused
    sandbox_domain: str = ""  # of <port>-<sandbox>.<domain>; empty: localhost:<port of this server>
    sandbox_public_traffic: bool = False  # whether sandboxes that don't say take requests without a token
    sandbox_memory_mb: int = 1024
    sandbox_disk_mb: int = 4096
    sandbox_cpu: float = 2.0
    sandbox_pause_spill_s: int = 600  # after which the memory of a paused one goes to disk, where it can; 0: never
    sandbox_model_calls: int = 0  # of each sandbox to its model, in its life; 0: no limit
    mcp_tools: tuple[str, ...] = ()  # that are offered by MCP; empty: all
    max_snapshots: int = 1000  # of an account, forks aside; and as many built templates
    max_checkpoints: int = 32  # of a sandbox; the oldest goes
    checkpoints_days: float = 7.0  # after which they go
    checkpoints_memory_mb: int = 4096  # that is held of all; the least used go to disk
    checkpoints_disk_mb: int = 16384  # that they take there; the least used go on with their files alone. 0: none is
    snapshots_disk_mb: int = 102400  # of snapshots, forks and built templates together, on the host's disk
    build_cache_mb: int = 20480  # of uploads, and as much of steps that later builds may take over
    images: Mapping[str, str] = field(default_factory=dict)  # image in FROM -> the template that stands for it
    volume_disk_mb: int = 10240  # of each volume that sandboxes mount
    object_store: str = ""  # s3://?endpoint=...&region=...; empty: <data_dir>/objects
    object_store_key_id: str = ""
    object_store_key_secret: str = field(default="", repr=False)
    audit_mb: int = 256  # of the audit log; the oldest records go
    object_size_mb: int = 5120  # of one object that is put through this server
    log_file_mb: int = 8
    package_cache_mb: int = 2048
    max_queued_tasks: int = 100_000  # asynchronous tasks that wait
    max_running_tasks: int = 64  # at once on this server
    max_running_tasks_per_function: int = 16
    keep_tasks: int = 100_000  # finished ones, for a look at them
    keep_tasks_days: float = 7.0
    task_output_kb: int = 1024  # of what a task puts out while it runs, kept with its record
    webhook_secret: str = field(default="", repr=False)  # signs events for webhooks

    @property
    def run_dir(self) -> Path:
        """Sockets and handles of live instances: short (a socket's path has at most 107 bytes), gone after a reboot."""
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:8]
        return runtime_dir(os.geteuid(), os.environ) / digest


def runtime_dir(uid: int, environment: Mapping[str, str]) -> Path:
    """Where servers of a user keep their sockets: what the login has for that, else a folder of /tmp."""
    if uid == 0:
        return Path("/run/roost")
    given = environment.get("XDG_RUNTIME_DIR", "")
    return Path(given) / "roost" if given.startswith("/") and len(given) < _LONG else Path(f"/tmp/roost-{uid}")  # noqa: S108


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/roost`, or `~/.local/share/roost`; the empty path for a user without a home."""
    if base := environment.get("XDG_DATA_HOME"):
        return Path(base) / "roost"
    try:
        return Path.home() / ".local" / "share" / "roost"
    except RuntimeError:
        return Path()


def load(
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read, merge and validate. Raises ConfigError naming the setting."""
    env = os.environ if environment is None else environment
    config = Config(
        data_dir=default_data_dir(env),
        model=ModelConfig(
            base_url=env.get("OPENAI_BASE_URL", ""),
            api_key=env.get("OPENAI_API_KEY", ""),
            name=env.get("OPENAI_MODEL", ""),
        ),
        otlp_endpoint=env.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        database=env.get("ROOST_DATABASE", ""),
    )
    if file is not None:
        config = _merge(config, _read(file), where=str(file))
    config = _merge(config, overrides or {}, where="the command line")
    return validate(config)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"Can't read the configuration file {file}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}.") from error


def _merge(config: Config, values: Mapping[str, Any], *, where: str) -> Config:
    known = {f.name: f for f in fields(Config)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"Unknown setting '{name}' in {where}; known are: {', '.join(sorted(known))}.")
        changes[name] = _typed(name, value, getattr(config, name), where)
    return replace(config, **changes)


def _typed(name: str, value: Any, present: Any, where: str) -> Any:
    if isinstance(present, Path) and isinstance(value, str | Path):
        return Path(value).expanduser()
    if isinstance(present, ModelConfig) and isinstance(value, dict):
        unknown = set(value) - {f.name for f in fields(ModelConfig)}
        if unknown or not all(isinstance(v, str) for v in value.values()):
            raise ConfigError(f"'model' in {where} takes the strings base_url, api_key and name.")
        return replace(present, **value)
    if isinstance(present, TlsConfig | QuotaConfig | TaintConfig) and isinstance(value, dict):
        return replace(present, **_part(name, value, present, where))
    if isinstance(present, Mapping) and isinstance(value, dict):
        if not all(isinstance(v, str) and v for v in value.values()):
            raise ConfigError(f"'{name}' in {where} maps {_MAPS[name]}.")
        return dict(value)
    if isinstance(present, tuple) and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    if isinstance(present, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is type(present):
        return value
    raise ConfigError(f"'{name}' in {where} must be {_kind(present)}, not {value!r}.")


def _part(
    name: str, value: Mapping[str, Any], present: TlsConfig | QuotaConfig | TaintConfig, where: str
) -> Mapping[str, Any]:
    """A table whose values have the types of their defaults."""
    known = {f.name: getattr(present, f.name) for f in fields(present)}
    for key, given in value.items():
        if key not in known:
            raise ConfigError(f"Unknown setting '{name}.{key}' in {where}; known are: {', '.join(sorted(known))}.")
        if not _fits(given, known[key]):
            raise ConfigError(f"'{name}.{key}' in {where} must be {_kind(known[key])}, not {given!r}.")
    return {key: tuple(given) if isinstance(given, list) else given for key, given in value.items()}


def _fits(given: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(given, list) and all(isinstance(one, str) for one in given)
    return type(given) is type(default)


def _kind(present: Any) -> str:
    """What a setting with this default takes, in words."""
    match present:
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case float():
            return "a number"
        case str():
            return "a string"
        case tuple():
            return "a list of strings"
        case Path():
            return "a path (a string)"
        case _:
            return "a table"


def is_loopback(host: str) -> bool:
    """Whether listening on `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def validate(config: Config) -> Config:
    """Return `config`, or raise ConfigError for the first setting that can't work."""
    if config.data_dir == Path():
        raise ConfigError("'data_dir' is needed, for this user has no home directory: give --data-dir.")
    if not 0 <= config.port <= 65535:
        raise ConfigError(f"'port' must be between 0 and 65535, not {config.port}.")
    if not config.keys and not is_loopback(config.host):
        raise ConfigError(
            f"Roost refuses to listen on {config.host} without keys: anyone could run code here. "
            "Add [keys] to the configuration, or use --host 127.0.0.1."
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", config.account):
        raise ConfigError("'account' has 1 to 64 letters, digits, '_' or '-'.")
    for name in _AT_LEAST_1:
        if getattr(config, name) < 1:
            raise ConfigError(f"'{name}' must be at least 1.")
    for name in ("start_timeout", "stop_grace", "queue_timeout", "orphan_grace"):
        if not 0 < getattr(config, name) <= 3600:
            raise ConfigError(f"'{name}' must be more than 0 and at most 3600 seconds.")
    _check_sandboxes(config)
    _check_addresses(config)
    _check_tenants(config)
    _check_egress(config)
    _check_tasks(config)
    return replace(config, data_dir=config.data_dir.absolute())


def _check_sandboxes(config: Config) -> None:
    if config.sandbox_timeout > config.sandbox_max_timeout:
        raise ConfigError("'sandbox_timeout' can't be more than 'sandbox_max_timeout'.")
    for name in ("sandbox_memory_mb", "sandbox_disk_mb", "snapshots_disk_mb", "volume_disk_mb"):
        if not 64 <= getattr(config, name) <= 1 << 24:
            raise ConfigError(f"'{name}' must be between 64 and {1 << 24}.")
    if not 0 <= config.checkpoints_disk_mb <= 1 << 24:
        raise ConfigError(f"'checkpoints_disk_mb' is at most {1 << 24}, or 0 to have none on disk.")
    if not 0 <= config.room_io_mb_per_s <= 1 << 20:
        raise ConfigError("'room_io_mb_per_s' is a number from 0, which is no limit.")
    if not 0 <= config.sandbox_pause_spill_s <= 1 << 31:
        raise ConfigError("'sandbox_pause_spill_s' is a number of seconds, or 0 to leave paused sandboxes in memory.")
    if not 0 <= config.sandbox_model_calls <= 1 << 40:
        raise ConfigError("'sandbox_model_calls' is a number from 0, which is no limit.")
    if not 0.01 <= config.sandbox_cpu <= 1024:
        raise ConfigError("'sandbox_cpu' must be between 0.01 and 1024.")


def _check_addresses(config: Config) -> None:
    if config.database and not config.database.startswith(("postgresql://", "postgres://")):
        raise ConfigError("'database' is a PostgreSQL URL, as in postgresql://user:password@host:5432/name.")
    if config.sandbox_domain and not _DOMAIN.fullmatch(config.sandbox_domain):
        raise ConfigError("'sandbox_domain' is a host name, in lower case, with a port if it is not 80 or 443.")


def _check_tenants(config: Config) -> None:
    if bool(config.tls.cert) != bool(config.tls.key):
        raise ConfigError("'tls.cert' and 'tls.key' go together: set both, or neither.")
    if config.tls.cert and not all(Path(file).is_absolute() for file in (config.tls.cert, config.tls.key)):
        raise ConfigError("'tls.cert' and 'tls.key' are absolute paths.")
    for f in fields(QuotaConfig):
        if not 0 <= getattr(config.quota, f.name) <= 1 << 40:
            raise ConfigError(f"'quota.{f.name}' is a number from 0, which is no limit.")


def _check_egress(config: Config) -> None:
    if config.sandbox_isolation not in ISOLATIONS:
        raise ConfigError(f"'sandbox_isolation' is one of {', '.join(ISOLATIONS)}, not {config.sandbox_isolation!r}.")
    if config.sandbox_egress not in WAYS_OUT:
        raise ConfigError(f"'sandbox_egress' is one of {', '.join(WAYS_OUT)}, not {config.sandbox_egress!r}.")
    if config.sandbox_taint.mode not in TAINT_MODES:
        raise ConfigError(f"'sandbox_taint.mode' is one of {', '.join(TAINT_MODES)}.")
    if config.sandbox_taint.mode == BLOCK and config.sandbox_public_traffic:
        raise ConfigError("'sandbox_taint.mode' can't be block where 'sandbox_public_traffic' lets strangers in.")
    if set(config.sandbox_taint.start) - LABELS:
        raise ConfigError(f"'sandbox_taint.start' lists labels: {', '.join(sorted(LABELS))}.")
    for text in config.egress_private:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise ConfigError(f"'egress_private' lists networks, as in \"10.1.0.0/16\": {error}.") from error


def _check_tasks(config: Config) -> None:
    if config.webhook_secret:
        try:
            key = base64.b64decode(config.webhook_secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not config.webhook_secret.startswith("whsec_") or len(key) < 16:
            raise ConfigError("'webhook_secret' is whsec_ and at least 16 random bytes in base64.")
    if not 0 < config.checkpoints_days <= 3650:
        raise ConfigError("'checkpoints_days' must be more than 0 and at most 3650 days.")
    if not 0 < config.keep_tasks_days <= 3650:
        raise ConfigError("'keep_tasks_days' must be more than 0 and at most 3650 days.")
